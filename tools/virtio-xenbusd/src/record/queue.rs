// SPDX-License-Identifier: GPL-2.0-or-later
//! Which buffers a queue works on.
//!
//! A split ring whose buffers are used out of order tells how many are under way, not which: the
//! place of one in the available ring is written over while it is worked on. So there is a flag
//! for each descriptor that is the head of a buffer, and the number of used elements up to which
//! the flags are right.
//!
//! =======================================  =================================================
//! Killed after                             the next daemon finds
//! =======================================  =================================================
//! the available element is read            no flag: takes the element
//! `take`: the flag is set                  the flag: carries the request out
//! the request is carried out               the flag: does it again. The driver does not know
//!                                          that it was done, so no other depends on it
//! the used element is written              the same; the element is written over
//! the used index is written                the index is ahead of the record's: clears the flags
//!                                          of the heads in the elements between
//! `finish`: the flag is cleared            the same
//! `finish`: the record's index is written  all as it is
//! =======================================  =================================================
//!
//! Where to go on in the available ring follows: the used index and the number of flags.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use vm_memory::{Bytes, VolatileMemory};
use xen::Mapping;

/// Bytes of a queue in the record: its index, and a flag for each of up to 1984 descriptors.
pub const STRIDE: usize = 2048;

const USED: usize = 0;
const FLAGS: usize = 64;

/// The buffers that a queue works on.
#[derive(Debug)]
pub struct Taken {
    memory: Arc<Mapping>,
    start: usize,
}

impl Taken {
    /// Those recorded at `start` of `memory`.
    pub fn new(memory: Arc<Mapping>, start: usize) -> Self {
        Self { memory, start }
    }

    /// The queue works on none, and has used none.
    pub fn clear(&self) -> Result<()> {
        for head in 0..STRIDE - FLAGS {
            self.store(0u8, FLAGS + head)?;
        }
        self.begin(0)
    }

    /// All is right up to used index `used`.
    pub fn begin(&self, used: u16) -> Result<()> {
        self.store(used, USED)
    }

    /// The queue is going to work on the buffer with `head`.
    ///
    /// # Errors
    ///
    /// It does so already, or there is no such descriptor.
    pub fn take(&self, head: u16, size: u16) -> Result<()> {
        ensure!(head < size, "there is no descriptor {head}");
        ensure!(
            !self.is_taken(head)?,
            "descriptor {head} is made available twice"
        );
        self.store(1u8, FLAGS + usize::from(head))
    }

    /// The buffer with `head` is in the used ring, whose index is `used` now.
    pub fn finish(&self, head: u16, used: u16) -> Result<()> {
        self.clear_flag(head)?;
        self.begin(used)
    }

    fn clear_flag(&self, head: u16) -> Result<()> {
        self.store(0u8, FLAGS + usize::from(head))
    }

    /// The buffers that an earlier process has not finished, in a ring of `size` whose used index
    /// is `used` and whose used elements `element` tells.
    ///
    /// # Errors
    ///
    /// Record and ring do not fit together: somebody else has written to one of them.
    pub fn recover(
        &self,
        used: u16,
        size: u16,
        element: impl Fn(u16) -> Result<u32>,
    ) -> Result<Vec<u16>> {
        let recorded: u16 = self.place(USED, 2)?.load(0, Ordering::Acquire)?;
        let ahead = used.wrapping_sub(recorded);
        ensure!(
            ahead <= size,
            "its used index is {used}, and {recorded} in the record"
        );
        for offset in 0..ahead {
            let index = recorded.wrapping_add(offset);
            let head = element(index)?;
            let head = u16::try_from(head).ok().filter(|&head| head < size);
            let head = head.with_context(|| format!("used element {index} has no descriptor"))?;
            // This daemon may be killed, too, and the next one does it once more.
            self.clear_flag(head)?;
        }
        self.begin(used)?;
        let mut heads = Vec::new();
        for head in 0..size {
            if self.is_taken(head)? {
                heads.push(head);
            }
        }
        Ok(heads)
    }

    fn is_taken(&self, head: u16) -> Result<bool> {
        let place = self.place(FLAGS + usize::from(head), 1)?;
        Ok(place.load::<u8>(0, Ordering::Acquire)? != 0)
    }

    fn store<T: vm_memory::AtomicAccess>(&self, value: T, at: usize) -> Result<()> {
        #[cfg(test)]
        if !super::tests::lives() {
            return Ok(());
        }
        Ok(self
            .place(at, size_of::<T>())?
            .store(value, 0, Ordering::Release)?)
    }

    fn place(&self, at: usize, len: usize) -> Result<vm_memory::VolatileSlice<'_>> {
        ensure!(
            at + len <= STRIDE,
            "byte {at} is outside the queue's record"
        );
        Ok(self.memory.get_slice(self.start + at, len)?)
    }
}
