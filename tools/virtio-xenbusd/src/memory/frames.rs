// SPDX-License-Identifier: GPL-2.0-or-later
//! Buffers in frames of the guest, mapped for as long as they are needed.
//!
//! What is written is mapped for its request alone. As long as anybody can write to a page, a PV
//! guest's kernel cannot make a page table of it, as it may want to at once: Xen refuses.
//!
//! For reading, a frame of the host stays what it is as long as it is mapped. Such mappings are
//! kept for the next buffers, but not longer than [`SWEEP`] without use: Xen cannot give a page that
//! is mapped to anybody else, even though the guest has given it back. A translated guest's frame
//! may become another page when the guest gives the page back and takes one again; it is mapped
//! anew for each request.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::volatile_memory::Result as VolatileResult;
use vm_memory::{VolatileMemory, VolatileSlice};
use xen::{DomainId, ForeignMemory, Mapping, PAGE_SIZE};

use super::{Access, Fault, Lent, Parts, Segment};
use crate::stats::Stats;

/// Frames of a queue that are lent at a time, and those that are kept: 16 MiB of each.
pub const LIMIT: usize = 4096;

/// What was not used from one sweep to the next is unmapped.
pub const SWEEP: Duration = Duration::from_secs(1);

/// Memory of one domain, by frames.
pub trait Frames: Send + Sync {
    /// Maps frames side by side.
    ///
    /// # Errors
    ///
    /// One of them is not the domain's.
    fn map(&self, frames: &[u64], writable: bool) -> io::Result<Mapping>;

    /// Whether a frame cannot become another page while it is mapped.
    fn stay(&self) -> bool;
}

/// Frames of a domain that this one may map.
pub struct DomainFrames {
    /// Whose.
    pub domain: DomainId,
    /// The way to them.
    pub memory: Arc<ForeignMemory>,
    /// They are numbered by the host.
    pub host: bool,
}

impl Frames for DomainFrames {
    fn map(&self, frames: &[u64], writable: bool) -> io::Result<Mapping> {
        self.memory.map(self.domain, frames, writable)
    }

    fn stay(&self) -> bool {
        self.host
    }
}

/// Frames that are mapped together.
struct Mapped {
    mapping: Mapping,
    frames: Vec<u64>,
    stats: Arc<Stats>,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.stats.frames_unmapped.add(self.frames.len() as u64);
    }
}

/// A frame that is kept mapped.
struct Page {
    mapped: Weak<Mapped>,
    /// Which of the mapping's.
    index: usize,
    /// Since the last sweep.
    used: bool,
}

/// A frame of a buffer, mapped.
struct Place {
    mapped: Rc<Mapped>,
    index: usize,
}

/// Frames side by side that are lent.
pub struct Loan {
    mapped: Rc<Mapped>,
    /// Of the first frame.
    index: usize,
    count: usize,
    lent: Rc<Cell<usize>>,
}

/// The frames that one queue has mapped.
pub struct Cache {
    source: Arc<dyn Frames>,
    /// Of mappings that are kept.
    pages: HashMap<u64, Page>,
    /// Oldest first. Nothing is lent of one that nobody else refers to.
    mappings: VecDeque<Rc<Mapped>>,
    /// Frames in `mappings`.
    kept: usize,
    /// Frames that are lent.
    lent: Rc<Cell<usize>>,
    swept: Instant,
    stats: Arc<Stats>,
}

impl Cache {
    /// The way to `source`, with nothing mapped yet.
    pub fn new(source: &Arc<dyn Frames>, stats: &Arc<Stats>) -> Self {
        Self {
            source: Arc::clone(source),
            pages: HashMap::new(),
            mappings: VecDeque::new(),
            kept: 0,
            lent: Rc::default(),
            swept: Instant::now(),
            stats: Arc::clone(stats),
        }
    }

    /// Adds the memory of `segments`, in frames and in the pool, to `parts`. If it is not
    /// `limited`, it is for a copy: few, and only for now.
    ///
    /// # Errors
    ///
    /// Xen refuses a frame. Some may have been added.
    pub fn lend(
        &mut self,
        segments: impl Iterator<Item = Segment> + Clone,
        access: Access,
        limited: bool,
        parts: &mut Parts,
    ) -> Result<Lent, Fault> {
        let machine = segments.clone().filter(Segment::is_machine);
        let count: usize = machine
            .clone()
            .map(|segment| segment.frames().count())
            .sum();
        if limited && self.lent.get() + count > LIMIT {
            return Ok(match self.lent.get() {
                0 => Lent::Never,
                _ => Lent::Later,
            });
        }
        let frames = machine.flat_map(|segment| segment.frames());
        let places = self.find(frames, access).map_err(Fault::Refused)?;
        let mut places = places.into_iter().peekable();
        for segment in segments {
            if segment.is_machine() {
                self.add(segment, &mut places, parts)?;
            } else {
                parts.add_pool(segment)?;
            }
        }
        Ok(Lent::Yes)
    }

    /// Adds the memory of a segment that is in the next of `places`.
    fn add(
        &self,
        segment: Segment,
        places: &mut std::iter::Peekable<impl Iterator<Item = Place>>,
        parts: &mut Parts,
    ) -> Result<(), Fault> {
        let mut offset = segment.page_offset();
        let mut left = segment.len;
        while left > 0 {
            let Some(Place { mapped, index }) = places.next() else {
                return Err(Fault::Outside(segment));
            };
            let mut count = 1;
            while count * PAGE_SIZE < offset + left
                && places
                    .next_if(|next| {
                        Rc::ptr_eq(&next.mapped, &mapped) && next.index == index + count
                    })
                    .is_some()
            {
                count += 1;
            }
            let len = left.min(count * PAGE_SIZE - offset);
            parts.add_loan(self.loan(mapped, index, count), offset, len)?;
            left -= len;
            offset = 0;
        }
        Ok(())
    }

    fn loan(&self, mapped: Rc<Mapped>, index: usize, count: usize) -> Loan {
        self.lent.set(self.lent.get() + count);
        Loan {
            mapped,
            index,
            count,
            lent: Rc::clone(&self.lent),
        }
    }

    /// Where each of `frames` is mapped, from now on at the latest.
    fn find(
        &mut self,
        frames: impl Iterator<Item = u64> + Clone,
        access: Access,
    ) -> io::Result<Vec<Place>> {
        let writable = access == Access::Write;
        if writable || !self.source.stay() {
            return self.map_once(frames, writable);
        }
        let mut missing = Vec::new();
        let mut places: Vec<_> = frames
            .clone()
            .map(|frame| {
                let place = self.look(frame);
                if place.is_none() {
                    missing.push(frame);
                }
                place
            })
            .collect();
        let hits = places.len() - missing.len();
        self.stats.frame_hits.add(hits as u64);
        if !missing.is_empty() {
            // Side by side if they are so in the host.
            missing.sort_unstable();
            missing.dedup();
            if !self.make_room(missing.len()) {
                return self.map_once(frames, false);
            }
            let mapped = self.map(missing, false)?;
            let missing = places.iter_mut().zip(frames);
            for (place, frame) in missing.filter(|(place, _)| place.is_none()) {
                let index = mapped.frames.binary_search(&frame).ok();
                *place = index.map(|index| Place {
                    mapped: Rc::clone(&mapped),
                    index,
                });
            }
            self.keep(mapped);
        }
        Ok(places.into_iter().flatten().collect())
    }

    /// The frame, if it is mapped.
    fn look(&mut self, frame: u64) -> Option<Place> {
        let page = self.pages.get_mut(&frame)?;
        let mapped = page.mapped.upgrade()?;
        page.used = true;
        let index = page.index;
        Some(Place { mapped, index })
    }

    /// Maps frames that are not kept.
    fn map_once(
        &self,
        frames: impl Iterator<Item = u64>,
        writable: bool,
    ) -> io::Result<Vec<Place>> {
        let frames: Vec<_> = frames.collect();
        if frames.is_empty() {
            return Ok(Vec::new());
        }
        let mapped = self.map(frames, writable)?;
        let place = |index| Place {
            mapped: Rc::clone(&mapped),
            index,
        };
        Ok((0..mapped.frames.len()).map(place).collect())
    }

    fn map(&self, frames: Vec<u64>, writable: bool) -> io::Result<Rc<Mapped>> {
        let mapping = self.source.map(&frames, writable)?;
        self.stats.frames_mapped.add(frames.len() as u64);
        Ok(Rc::new(Mapped {
            mapping,
            frames,
            stats: Arc::clone(&self.stats),
        }))
    }

    fn keep(&mut self, mapped: Rc<Mapped>) {
        if self.mappings.is_empty() {
            self.swept = Instant::now();
        }
        for (index, &frame) in mapped.frames.iter().enumerate() {
            let page = Page {
                mapped: Rc::downgrade(&mapped),
                index,
                used: true,
            };
            self.pages.insert(frame, page);
        }
        self.kept += mapped.frames.len();
        self.mappings.push_back(mapped);
    }

    /// Unmaps what is not lent, the oldest first, until `count` more frames may be kept; whether
    /// they may.
    fn make_room(&mut self, count: usize) -> bool {
        let mut index = 0;
        while self.kept + count > LIMIT {
            match self.mappings.get(index) {
                None => return false,
                Some(mapped) if Rc::strong_count(mapped) > 1 => index += 1,
                Some(_) => {
                    if let Some(mapped) = self.mappings.remove(index) {
                        self.forget(&mapped);
                    }
                }
            }
        }
        true
    }

    fn forget(&mut self, mapped: &Rc<Mapped>) {
        for frame in &mapped.frames {
            if self.pages.get(frame).is_some_and(|page| page.is_of(mapped)) {
                self.pages.remove(frame);
            }
        }
        self.kept -= mapped.frames.len();
    }

    /// The time until the next sweep, if there is one to come.
    pub fn until_sweep(&self) -> Option<Duration> {
        (!self.mappings.is_empty()).then(|| SWEEP.saturating_sub(self.swept.elapsed()))
    }

    /// Unmaps what has not been used, if it is time. Of frames that were mapped together, all must
    /// have been.
    pub fn sweep(&mut self) {
        if self.until_sweep().is_some_and(|left| left.is_zero()) {
            self.sweep_now();
        }
    }

    fn sweep_now(&mut self) {
        self.swept = Instant::now();
        for _ in 0..self.mappings.len() {
            let Some(mapped) = self.mappings.pop_front() else {
                return;
            };
            let mut used = true;
            for frame in &mapped.frames {
                let page = self.pages.get_mut(frame).filter(|page| page.is_of(&mapped));
                used &= page.is_some_and(|page| std::mem::take(&mut page.used));
            }
            if used || Rc::strong_count(&mapped) > 1 {
                self.mappings.push_back(mapped);
            } else {
                self.forget(&mapped);
            }
        }
    }
}

impl Page {
    fn is_of(&self, mapped: &Rc<Mapped>) -> bool {
        self.mapped.as_ptr() == Rc::as_ptr(mapped)
    }
}

impl Loan {
    /// `len` bytes from `offset` on.
    pub fn slice(&self, offset: usize, len: usize) -> VolatileResult<VolatileSlice<'_>> {
        let start = self.index * PAGE_SIZE;
        let all = self
            .mapped
            .mapping
            .get_slice(start, self.count * PAGE_SIZE)?;
        all.subslice(offset, len)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.lent.set(self.lent.get() - self.count);
    }
}

#[cfg(test)]
mod tests;
