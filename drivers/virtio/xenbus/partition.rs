// SPDX-License-Identifier: GPL-2.0

//! Who has which part of the pool.
//!
//! A [`Partition`] gives out parts of a range of pool pages and remembers for whom. It is called
//! with a spinlock held and interrupts off: nothing here allocates after `new`, one chunk or page
//! costs a few instructions, and a run of pages one pass over one bit per page at most.
//!
//! It knows offsets and sizes only. The memory and the lock are its caller's.

use core::cmp::max;

use kernel::prelude::*;

use super::wire::PAGE_SIZE;

mod area;
mod plan;

use area::Area;
pub(crate) use plan::{
    fit,
    plan, //
};

/// Bytes of the unit for headers, status bytes and indirect tables.
pub(crate) const CHUNK: usize = 256;

/// Bytes of the unit for everything else.
pub(crate) const PAGE: usize = PAGE_SIZE;

/// Bytes of the largest buffer that drivers map at once. They split what is longer, and a run of
/// this many pages can be found in a partition that is in use.
pub(crate) const MAX_BUFFER: usize = 64 * 1024;

/// One page in so many of a partition is cut into chunks.
const CHUNK_SHARE: usize = 8;

/// How much of a [`Partition`] is in use, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// What there is.
    pub(crate) size: usize,
    /// What is in use, in whole chunks and pages.
    pub(crate) used: usize,
    /// The most that was in use at a time.
    pub(crate) high_water: usize,
}

/// A range of pool pages and what is in use of it.
///
/// The first eighth of the pages is cut into chunks, the rest is for whole pages in a row. Offsets
/// are in bytes from the beginning of the pool.
pub(crate) struct Partition {
    chunks: Area,
    pages: Area,
    high_water: usize,
}

impl Partition {
    /// A partition of `pages` pages from page `first_page` of the pool on, with nothing in use.
    ///
    /// It may have no pages; then it never has any for others.
    ///
    /// # Errors
    ///
    /// `EINVAL` if offsets would overflow, `ENOMEM` if there is no memory for the tables: 16 bytes
    /// for each page and for each chunk.
    pub(crate) fn new(first_page: usize, pages: usize) -> Result<Self> {
        let end = first_page.checked_add(pages).ok_or(EINVAL)?;
        end.checked_mul(PAGE).ok_or(EINVAL)?;
        let chunk_pages = pages / CHUNK_SHARE;
        let first_run_page = first_page + chunk_pages;
        Ok(Self {
            chunks: Area::new(first_page * PAGE, chunk_pages * PAGE, CHUNK)?,
            pages: Area::new(first_run_page * PAGE, (end - first_run_page) * PAGE, PAGE)?,
            high_water: 0,
        })
    }

    /// Finds room for `len` bytes and returns its pool offset, or [`None`] if there is none.
    ///
    /// Up to [`CHUNK`] bytes take a chunk, or a page if no chunk is left; more take pages in a row.
    /// `tag`, the address of the caller's buffer or 0, is what [`Self::lookup`] and [`Self::free`]
    /// give back.
    pub(crate) fn alloc(&mut self, len: usize, tag: usize) -> Option<usize> {
        let chunk = if len <= CHUNK {
            self.chunks.alloc(len, tag)
        } else {
            None
        };
        let offset = match chunk {
            Some(offset) => offset,
            None => self.pages.alloc(len, tag)?,
        };
        self.high_water = max(self.high_water, self.used());
        Some(offset)
    }

    /// The tag of the buffer in use at `offset`, plus the distance of `offset` from its beginning.
    ///
    /// [`None`] if `offset` is not inside of a buffer.
    pub(crate) fn lookup(&self, offset: usize) -> Option<usize> {
        self.chunks
            .lookup(offset)
            .or_else(|| self.pages.lookup(offset))
    }

    /// Gives back the buffer at `offset` and returns its tag.
    ///
    /// [`None`], and nothing changes, if no buffer of exactly `len` bytes begins at `offset`.
    pub(crate) fn free(&mut self, offset: usize, len: usize) -> Option<usize> {
        self.chunks
            .free(offset, len)
            .or_else(|| self.pages.free(offset, len))
    }

    /// Whether `offset` is in this partition, in use or not.
    pub(crate) fn contains(&self, offset: usize) -> bool {
        (self.chunks.range().start..self.pages.range().end).contains(&offset)
    }

    /// Bytes in use, in whole chunks and pages.
    fn used(&self) -> usize {
        self.chunks.used() + self.pages.used()
    }

    /// How much of it is in use, and has been.
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            size: self.pages.range().end - self.chunks.range().start,
            used: self.used(),
            high_water: self.high_water,
        }
    }
}

#[kunit_tests(virtio_xenbus_partition)]
mod tests {
    use super::*;

    /// Where the test partitions begin, and their number of chunks and of pages for runs.
    const FIRST: usize = 5;
    const PAGES: usize = 160;
    const CHUNKS: usize = PAGES / CHUNK_SHARE * (PAGE / CHUNK);
    const RUN_PAGES: usize = PAGES - PAGES / CHUNK_SHARE;
    const BASE: usize = FIRST * PAGE;
    const RUN_BASE: usize = (FIRST + PAGES / CHUNK_SHARE) * PAGE;
    const TAG: usize = 0xffff_8880_1234_5678;
    const RUN_TAG: usize = 0xffff_8881_0000_0a00;

    impl Partition {
        fn is_empty(&self) -> bool {
            self.used() == 0
        }
    }

    #[test]
    fn sizes_are_rounded_to_chunks_and_pages() -> Result {
        for (len, offset, used) in [
            (0, BASE, CHUNK),
            (1, BASE, CHUNK),
            (256, BASE, CHUNK),
            (257, RUN_BASE, PAGE),
            (4096, RUN_BASE, PAGE),
            (4097, RUN_BASE, 2 * PAGE),
            (RUN_PAGES * PAGE, RUN_BASE, RUN_PAGES * PAGE),
        ] {
            let mut part = Partition::new(FIRST, PAGES)?;
            assert!(part.is_empty());
            assert_eq!(part.alloc(len, TAG), Some(offset));
            assert_eq!(part.used(), used);
            assert!(!part.is_empty());
            assert_eq!(part.free(offset, len), Some(TAG));
            let usage = Usage {
                size: PAGES * PAGE,
                used: 0,
                high_water: used,
            };
            assert_eq!(part.usage(), usage);
        }
        Ok(())
    }

    #[test]
    fn more_than_there_is_is_refused() -> Result {
        let mut part = Partition::new(FIRST, PAGES)?;
        for len in [
            RUN_PAGES * PAGE + 1,
            PAGES * PAGE,
            u32::MAX as usize,
            u32::MAX as usize + 1,
            usize::MAX - 4095,
            usize::MAX,
        ] {
            assert_eq!(part.alloc(len, TAG), None);
        }
        assert!(part.is_empty());
        assert_eq!(part.usage().high_water, 0);
        Ok(())
    }

    #[test]
    fn a_partition_cannot_be_beyond_addresses() {
        assert!(Partition::new(usize::MAX, 1).is_err());
        assert!(Partition::new(usize::MAX / PAGE, 1).is_err());
        assert!(Partition::new(1, usize::MAX).is_err());
    }

    #[test]
    fn small_partitions_have_no_chunks() -> Result {
        for pages in 0..8 {
            let mut part = Partition::new(FIRST, pages)?;
            for i in 0..pages {
                assert_eq!(part.alloc(16, TAG), Some(BASE + i * PAGE));
            }
            assert_eq!(part.alloc(16, TAG), None);
        }
        let mut part = Partition::new(FIRST, 8)?;
        assert_eq!(part.alloc(16, TAG), Some(BASE));
        assert_eq!(part.alloc(16, TAG), Some(BASE + CHUNK));
        Ok(())
    }

    #[test]
    fn contains_its_pages_and_no_other() -> Result {
        let part = Partition::new(FIRST, PAGES)?;
        for offset in [BASE, RUN_BASE - 1, RUN_BASE, (FIRST + PAGES) * PAGE - 1] {
            assert!(part.contains(offset));
        }
        for offset in [0, BASE - 1, (FIRST + PAGES) * PAGE, usize::MAX] {
            assert!(!part.contains(offset));
        }
        assert!(!Partition::new(FIRST, 0)?.contains(BASE));
        Ok(())
    }

    #[test]
    fn chunks_that_are_out_become_pages() -> Result {
        let mut part = Partition::new(FIRST, PAGES)?;
        for i in 0..CHUNKS {
            assert_eq!(part.alloc(CHUNK, i), Some(BASE + i * CHUNK));
        }
        for i in 0..RUN_PAGES {
            assert_eq!(part.alloc(16, CHUNKS + i), Some(RUN_BASE + i * PAGE));
        }
        assert_eq!(part.alloc(1, 0), None);
        assert_eq!(part.alloc(PAGE, 0), None);
        assert_eq!(part.used(), PAGES * PAGE);

        // Its length was 16, though it has a page.
        assert_eq!(part.free(RUN_BASE, PAGE), None);
        assert_eq!(part.free(RUN_BASE, 16), Some(CHUNKS));
        assert_eq!(part.alloc(2 * PAGE, 0), None);
        assert_eq!(part.alloc(PAGE, TAG), Some(RUN_BASE));

        // A page never becomes chunks, nor chunks a page.
        assert_eq!(part.free(BASE, CHUNK), Some(0));
        assert_eq!(part.alloc(CHUNK + 1, 0), None);
        assert_eq!(part.alloc(CHUNK, TAG), Some(BASE));
        Ok(())
    }

    #[test]
    fn interior_addresses_are_found() -> Result {
        let mut part = Partition::new(FIRST, PAGES)?;
        let chunk = part.alloc(200, TAG).ok_or(ENOMEM)?;
        let run = part.alloc(3 * PAGE + 100, RUN_TAG).ok_or(ENOMEM)?;
        for inside in [0, 1, 199] {
            assert_eq!(part.lookup(chunk + inside), Some(TAG + inside));
        }
        for inside in [0, 1, PAGE - 1, PAGE, 2 * PAGE + 77, 3 * PAGE + 99] {
            assert_eq!(part.lookup(run + inside), Some(RUN_TAG + inside));
        }
        // Behind the end of the buffer, though in its chunk or page.
        assert_eq!(part.lookup(chunk + 200), None);
        assert_eq!(part.lookup(chunk + CHUNK), None);
        assert_eq!(part.lookup(run + 3 * PAGE + 100), None);
        assert_eq!(part.lookup(run + 4 * PAGE), None);
        // Elsewhere.
        for offset in [0, BASE - 1, (FIRST + PAGES) * PAGE, usize::MAX] {
            assert_eq!(part.lookup(offset), None);
        }
        assert_eq!(part.free(run, 3 * PAGE + 100), Some(RUN_TAG));
        assert_eq!(part.lookup(run), None);
        assert_eq!(part.lookup(run + 2 * PAGE), None);
        Ok(())
    }

    #[test]
    fn only_what_is_in_use_can_be_freed() -> Result {
        let mut part = Partition::new(FIRST, PAGES)?;
        let chunk = part.alloc(100, TAG).ok_or(ENOMEM)?;
        let run = part.alloc(3 * PAGE, TAG).ok_or(ENOMEM)?;
        let used = part.used();
        for (offset, len) in [
            // Misaligned.
            (chunk + 1, 100),
            (chunk + 1, 99),
            (run + 1, 3 * PAGE),
            // Of another length.
            (chunk, 99),
            (chunk, 101),
            (chunk, 3 * PAGE),
            (chunk, usize::MAX),
            (run, 3 * PAGE - 1),
            (run, 4 * PAGE),
            (run, 16),
            (run, usize::MAX),
            // The inside of a run, with exactly what is left of it.
            (run + PAGE, 2 * PAGE),
            (run + 2 * PAGE, PAGE),
            // Not in use.
            (chunk + CHUNK, 100),
            (run + 3 * PAGE, PAGE),
            (run + 3 * PAGE, 0),
            // Not in the partition.
            (0, 100),
            (BASE - CHUNK, CHUNK),
            (BASE - PAGE, PAGE),
            ((FIRST + PAGES) * PAGE, PAGE),
            (usize::MAX & !(PAGE - 1), PAGE),
            (usize::MAX, usize::MAX),
        ] {
            assert_eq!(part.free(offset, len), None);
            assert_eq!(part.used(), used);
        }
        assert_eq!(part.free(chunk, 100), Some(TAG));
        assert_eq!(part.free(run, 3 * PAGE), Some(TAG));
        // Twice.
        assert_eq!(part.free(chunk, 100), None);
        assert_eq!(part.free(run, 3 * PAGE), None);
        assert!(part.is_empty());
        Ok(())
    }

    #[test]
    fn holes_are_joined_again() -> Result {
        let mut part = Partition::new(FIRST, PAGES)?;
        while part.alloc(PAGE, TAG).is_some() {}
        for page in (0..RUN_PAGES).step_by(2) {
            assert_eq!(part.free(RUN_BASE + page * PAGE, PAGE), Some(TAG));
        }
        // Half of it is free, but no two pages in a row.
        assert_eq!(part.used(), RUN_PAGES / 2 * PAGE);
        assert_eq!(part.alloc(2 * PAGE, TAG), None);
        for page in (1..RUN_PAGES).step_by(2) {
            assert_eq!(part.free(RUN_BASE + page * PAGE, PAGE), Some(TAG));
        }
        assert_eq!(part.alloc(RUN_PAGES * PAGE, TAG), Some(RUN_BASE));
        Ok(())
    }

    /// The same policy without any of the cleverness: one owner for each unit.
    struct Model {
        chunks: KVec<bool>,
        pages: KVec<bool>,
        buffers: KVec<(usize, usize, usize)>,
    }

    impl Model {
        fn new() -> Result<Self> {
            Ok(Self {
                chunks: KVec::from_elem(false, CHUNKS, GFP_KERNEL)?,
                pages: KVec::from_elem(false, RUN_PAGES, GFP_KERNEL)?,
                buffers: KVec::new(),
            })
        }

        /// Takes the first `count` units in a row that are not used.
        fn take(units: &mut [bool], count: usize) -> Option<usize> {
            let first = units.windows(count).position(|w| !w.contains(&true))?;
            units.get_mut(first..first + count)?.fill(true);
            Some(first)
        }

        fn alloc(&mut self, len: usize, tag: usize) -> Result<Option<usize>> {
            let chunk = match len {
                0..=CHUNK => Self::take(&mut self.chunks, 1).map(|unit| BASE + unit * CHUNK),
                _ => None,
            };
            let offset = chunk.or_else(|| {
                Self::take(&mut self.pages, max(len.div_ceil(PAGE), 1))
                    .map(|unit| RUN_BASE + unit * PAGE)
            });
            if let Some(offset) = offset {
                self.buffers.push((offset, len, tag), GFP_KERNEL)?;
            }
            Ok(offset)
        }

        fn free(&mut self, buffer: usize) -> Result<(usize, usize, usize)> {
            let (offset, len, tag) = self.buffers.remove(buffer).map_err(|_| EINVAL)?;
            let (units, first, unit) = if offset < RUN_BASE {
                (&mut self.chunks, (offset - BASE) / CHUNK, CHUNK)
            } else {
                (&mut self.pages, (offset - RUN_BASE) / PAGE, PAGE)
            };
            let end = first + max(len.div_ceil(unit), 1);
            units.get_mut(first..end).ok_or(EINVAL)?.fill(false);
            Ok((offset, len, tag))
        }

        fn used(&self) -> usize {
            let count = |units: &[bool]| units.iter().filter(|used| **used).count();
            count(&self.chunks) * CHUNK + count(&self.pages) * PAGE
        }
    }

    /// Marsaglia's xorshift: the same numbers in every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 16) as usize % max(end, 1)
        }
    }

    #[test]
    fn behaves_as_the_model() -> Result {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut part = Partition::new(FIRST, PAGES)?;
        let mut model = Model::new()?;
        let mut refused = 0;

        for step in 0..20_000 {
            // The share of allocations swings, so that it is full at times and empty at others.
            let wanted = if step / 1000 % 2 == 0 { 60 } else { 40 };
            if random.below(100) < wanted {
                let len = match random.below(8) {
                    0..=2 => random.below(CHUNK + 1),
                    3..=5 => random.below(PAGE + 1),
                    6 => random.below(9 * PAGE),
                    _ => random.below(80 * PAGE),
                };
                // Sometimes a ring, which has no buffer behind it.
                let tag = (step % 17) * PAGE;
                let offset = part.alloc(len, tag);
                assert_eq!(offset, model.alloc(len, tag)?);
                refused += usize::from(offset.is_none());
            } else if !model.buffers.is_empty() {
                let (offset, len, tag) = model.free(random.below(model.buffers.len()))?;
                assert_eq!(part.free(offset, len + 1), None);
                assert_eq!(part.free(offset + 1, len), None);
                assert_eq!(part.free(offset, len), Some(tag));
                assert_eq!(part.free(offset, len), None);
                assert_eq!(part.lookup(offset), None);
            }
            assert_eq!(part.used(), model.used());
            if step % 64 == 0 {
                for &(offset, len, tag) in model.buffers.iter() {
                    for inside in [0, len / 2, len.saturating_sub(1)] {
                        let found = (inside < len).then_some(tag + inside);
                        assert_eq!(part.lookup(offset + inside), found);
                    }
                }
            }
        }
        // It was full at times, or little was tried.
        assert!(refused > 100);

        while !model.buffers.is_empty() {
            let (offset, len, tag) = model.free(0)?;
            assert_eq!(part.free(offset, len), Some(tag));
        }
        assert!(part.is_empty());
        Ok(())
    }
}
