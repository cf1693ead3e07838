// SPDX-License-Identifier: GPL-2.0-or-later
//! Local memory for buffers, in the form that readv(2) and its like take.
//!
//! The `unsafe` code of the memory is here.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::rc::Rc;

use tap::IoVec;
use vm_memory::VolatileSlice;

use super::bounce::Run;
use super::frames::Loan;
use super::{Fault, Pool, Segment};

/// What keeps memory as it is.
enum Hold {
    Run(Rc<Run>),
    Loan(#[allow(dead_code)] Loan),
}

/// Local memory for buffers, which is kept as it is until they are dropped from here.
///
/// # Invariants
///
/// The memory of each vector from `start` on is in `pool`, or in that of one of the `holds`, whose
/// memory does not move. A hold with a vector that is in it is there.
pub struct Parts {
    pool: Pool,
    vectors: Vec<IoVec<'static>>,
    /// Vectors before this one have been dropped.
    start: usize,
    /// With the index of the vector after the last that needs it.
    holds: VecDeque<(usize, Hold)>,
}

impl Parts {
    /// None, with memory in `pool` or not.
    pub fn new(pool: &Pool) -> Self {
        Self {
            pool: pool.clone(),
            vectors: Vec::new(),
            start: 0,
            holds: VecDeque::new(),
        }
    }

    /// The memory.
    pub fn vectors(&self) -> &[IoVec<'_>] {
        self.vectors.get(self.start..).unwrap_or_default()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.vectors.len() - self.start
    }

    /// Drops all.
    pub fn clear(&mut self) {
        self.vectors.clear();
        self.start = 0;
        self.holds.clear();
    }

    /// Drops those after the first `len`.
    pub fn truncate(&mut self, len: usize) {
        let end = self.start + len;
        // INVARIANT: Holds of vectors that stay are those with an index up to `end`: each lends
        // to vectors that were added with it.
        self.vectors.truncate(end);
        while self.holds.back().is_some_and(|&(last, _)| last > end) {
            self.holds.pop_back();
        }
    }

    /// Drops the first `count`.
    pub fn drop_front(&mut self, count: usize) {
        /// Vectors that are kept though they have been dropped.
        const SLACK: usize = tap::MAX_PARTS;

        self.start = (self.start + count).min(self.vectors.len());
        if self.start == self.vectors.len() {
            self.clear();
            return;
        }
        while self
            .holds
            .front()
            .is_some_and(|&(last, _)| last <= self.start)
        {
            self.holds.pop_front();
        }
        if self.start > SLACK {
            self.vectors.drain(..self.start);
            for (last, _) in &mut self.holds {
                *last -= self.start;
            }
            self.start = 0;
        }
    }

    /// Adds memory of the pool.
    pub fn add_pool(&mut self, segment: Segment) -> Result<(), Fault> {
        let slice = self.pool.slice(segment).ok_or(Fault::Outside(segment))?;
        // SAFETY: The slice is in `pool`, which stays mapped as long as `self` has it.
        let slice = unsafe { unbound(slice) };
        self.vectors.push(slice);
        Ok(())
    }

    /// Adds `len` bytes of `run` from `offset` on.
    pub fn add_run(&mut self, run: &Rc<Run>, offset: usize, len: usize) -> Result<(), Fault> {
        let slice = run.slice(offset, len).map_err(Fault::internal)?;
        // SAFETY: The slice is in `run`, of which a reference is kept.
        let slice = unsafe { unbound(slice) };
        self.vectors.push(slice);
        self.hold(Hold::Run(Rc::clone(run)));
        Ok(())
    }

    /// Adds `len` bytes of the frames of `loan` from `offset` on.
    pub fn add_loan(&mut self, loan: Loan, offset: usize, len: usize) -> Result<(), Fault> {
        let slice = loan.slice(offset, len).map_err(Fault::internal)?;
        // SAFETY: The slice is in mapped memory, which the loan, that is kept, does not let go.
        let slice = unsafe { unbound(slice) };
        self.vectors.push(slice);
        self.hold(Hold::Loan(loan));
        Ok(())
    }

    /// Keeps what the last vector needs.
    fn hold(&mut self, hold: Hold) {
        self.holds.push_back((self.vectors.len(), hold));
    }

    /// The run that the first of them are in that are in one.
    pub fn run(&self) -> Option<&Rc<Run>> {
        self.holds.iter().find_map(|(_, hold)| match hold {
            Hold::Run(run) => Some(run),
            Hold::Loan(_) => None,
        })
    }

    /// Calls `with` with the first `count` of them, and `last` after those.
    pub fn with_last<T>(
        &mut self,
        count: usize,
        last: VolatileSlice<'_>,
        with: impl FnOnce(&[IoVec<'_>]) -> T,
    ) -> T {
        let at = self.start + count.min(self.len());
        // SAFETY: It is taken away again below. Were it not, because `with` panics, nobody would
        // get it: `self` is borrowed by who has panicked.
        let last = unsafe { unbound(last) };
        let replaced = match self.vectors.get_mut(at) {
            Some(vector) => Some(std::mem::replace(vector, last)),
            None => {
                self.vectors.push(last);
                None
            }
        };
        let result = with(self.vectors.get(self.start..=at).unwrap_or_default());
        match (replaced, self.vectors.get_mut(at)) {
            (Some(replaced), Some(vector)) => *vector = replaced,
            _ => self.vectors.truncate(at),
        }
        result
    }
}

/// A slice as a vector that no lifetime bounds.
///
/// # Safety
///
/// It must not be used when the slice may not be.
unsafe fn unbound(slice: VolatileSlice<'_>) -> IoVec<'static> {
    // SAFETY: It is used as long as `slice` may be, and no longer.
    unsafe { VolatileSlice::new(slice.ptr_guard_mut().as_ptr(), slice.len()) }.into()
}
