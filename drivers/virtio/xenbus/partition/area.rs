// SPDX-License-Identifier: GPL-2.0

//! A range of the pool in units of one size, and which buffer has which of them.

use core::ops::Range;

use kernel::prelude::*;

use super::super::free_map::FreeMap;

/// What is known of a unit.
#[derive(Clone, Copy)]
struct Unit {
    /// The caller's tag, plus the distance of this unit from the first.
    tag: usize,
    /// Bytes from the beginning of this unit to the end of the buffer; 0 if there is none.
    left: u32,
    /// Whether the buffer begins here.
    first: bool,
}

impl Unit {
    const FREE: Unit = Unit {
        tag: 0,
        left: 0,
        first: false,
    };
}

/// A range of the pool in units of one size.
///
/// # Invariants
///
/// The entries of the units in `free` are [`Unit::FREE`]. Those of a buffer are one that says
/// `first` and as many others as its `left` asks for.
pub(super) struct Area {
    /// Pool offset of the first unit, in bytes.
    base: usize,
    /// Binary logarithm of the size of a unit.
    shift: u32,
    units: KVVec<Unit>,
    free: FreeMap,
    /// Bytes of the units that are not free.
    used: usize,
}

impl Area {
    /// `bytes` from pool offset `base` on, in units of `unit` bytes, a power of two.
    pub(super) fn new(base: usize, bytes: usize, unit: usize) -> Result<Self> {
        let shift = unit.trailing_zeros();
        let units = bytes >> shift;
        Ok(Self {
            base,
            shift,
            units: KVVec::from_elem(Unit::FREE, units, GFP_KERNEL)?,
            free: FreeMap::new(units)?,
            used: 0,
        })
    }

    /// The pool offsets of all units.
    pub(super) fn range(&self) -> Range<usize> {
        self.base..self.base + (self.units.len() << self.shift)
    }

    /// Bytes of the units that are not free.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// The number of units that `len` bytes take, which are more than one unit.
    fn units_of(&self, len: usize) -> usize {
        len.div_ceil(1 << self.shift)
    }

    /// Finds units in a row for `len` bytes and returns the pool offset of the first.
    pub(super) fn alloc(&mut self, len: usize, tag: usize) -> Option<usize> {
        let mut left = u32::try_from(len).ok()?;
        if len <= 1 << self.shift {
            let at = self.free.take_one()?;
            let first = true;
            *self.units.get_mut(at)? = Unit { tag, left, first };
            self.used += 1 << self.shift;
            return Some(self.base + (at << self.shift));
        }
        let count = self.units_of(len);
        let first = self.free.take_run(count)?;

        let mut tag = tag;
        for (i, unit) in self.units.iter_mut().skip(first).take(count).enumerate() {
            let first = i == 0;
            *unit = Unit { tag, left, first };
            tag = tag.wrapping_add(1 << self.shift);
            left = left.saturating_sub(1 << self.shift);
        }
        self.used += count << self.shift;
        Some(self.base + (first << self.shift))
    }

    /// The tag of the buffer at `offset`, plus the distance of `offset` from its beginning.
    pub(super) fn lookup(&self, offset: usize) -> Option<usize> {
        let at = offset.checked_sub(self.base)?;
        let unit = self.units.get(at >> self.shift)?;
        let inside = at & ((1 << self.shift) - 1);
        (inside < unit.left as usize).then(|| unit.tag.wrapping_add(inside))
    }

    /// Gives back the buffer of `len` bytes at `offset`, if there is one, and returns its tag.
    pub(super) fn free(&mut self, offset: usize, len: usize) -> Option<usize> {
        let at = offset.checked_sub(self.base)?;
        let first = at >> self.shift;
        let unit = self.units.get_mut(first)?;
        let tag = unit.tag;
        if first << self.shift != at || !unit.first || unit.left as usize != len {
            return None;
        }
        if len <= 1 << self.shift {
            *unit = Unit::FREE;
            self.free.give_one(first);
            self.used -= 1 << self.shift;
            return Some(tag);
        }
        let count = self.units_of(len);
        self.units
            .get_mut(first..first.checked_add(count)?)?
            .fill(Unit::FREE);
        self.free.give(first, count);
        self.used -= count << self.shift;
        Some(tag)
    }
}
