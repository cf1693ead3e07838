// SPDX-License-Identifier: GPL-2.0

//! Which units of something are free, as bits.

use core::cmp::min;

use kernel::prelude::*;

/// Units in a word.
const BITS: usize = u64::BITS as usize;

/// A set of free units.
///
/// The lowest that fit are taken first: what was just given back and is still in the cache is
/// used again, and the upper part stays in one piece for runs.
///
/// # Invariants
///
/// - In `words` the bit of each free unit is set, and no other.
/// - In `summary` the bit of each word that is not 0 is set, and no other.
pub(crate) struct FreeMap {
    words: KVVec<u64>,
    summary: KVVec<u64>,
}

impl FreeMap {
    /// A set of `units` units, all of them free.
    pub(crate) fn new(units: usize) -> Result<Self> {
        let words = units.div_ceil(BITS);
        let mut map = Self {
            words: KVVec::from_elem(0, words, GFP_KERNEL)?,
            summary: KVVec::from_elem(0, words.div_ceil(BITS), GFP_KERNEL)?,
        };
        map.mark(0, units, true);
        Ok(map)
    }

    /// Takes one unit.
    ///
    /// One word of the summary stands for 4096 units, so even the largest pool has but a few.
    pub(crate) fn take_one(&mut self) -> Option<usize> {
        let (s, bits) = self.summary.iter().enumerate().find(|(_, b)| **b != 0)?;
        let w = s * BITS + bits.trailing_zeros() as usize;
        let unit = w * BITS + self.words.get(w)?.trailing_zeros() as usize;
        self.mark_in_word(w, 1 << (unit % BITS), false);
        Some(unit)
    }

    /// Takes `count` units in a row and returns the first; `count` is not 0.
    ///
    /// Looks at each word at most once.
    pub(crate) fn take_run(&mut self, count: usize) -> Option<usize> {
        let first = self.find_run(count)?;
        self.mark(first, count, false);
        Some(first)
    }

    /// Gives back one unit, which is taken.
    pub(crate) fn give_one(&mut self, unit: usize) {
        self.mark_in_word(unit / BITS, 1 << (unit % BITS), true);
    }

    /// Gives back `count` units from `first` on, all of which are taken.
    pub(crate) fn give(&mut self, first: usize, count: usize) {
        self.mark(first, count, true);
    }

    fn find_run(&self, count: usize) -> Option<usize> {
        // Free units directly below the word.
        let mut below = 0;
        for (w, &word) in self.words.iter().enumerate() {
            let start = w * BITS;
            if below + word.trailing_ones() as usize >= count {
                return Some(start - below);
            }
            if word == u64::MAX {
                below += BITS;
                continue;
            }
            if let Some(bit) = run_in_word(word, count) {
                return Some(start + bit);
            }
            below = word.leading_ones() as usize;
        }
        None
    }

    fn mark(&mut self, first: usize, count: usize, free: bool) {
        let mut unit = first;
        let mut left = count;
        while left > 0 {
            let (w, bit) = (unit / BITS, unit % BITS);
            let n = min(BITS - bit, left);
            let mask = u64::MAX >> (BITS - n) << bit;
            self.mark_in_word(w, mask, free);
            unit += n;
            left -= n;
        }
    }

    fn mark_in_word(&mut self, w: usize, mask: u64, free: bool) {
        let (Some(word), Some(summary)) = (self.words.get_mut(w), self.summary.get_mut(w / BITS))
        else {
            return;
        };
        if free {
            *word |= mask;
            *summary |= 1 << (w % BITS);
        } else {
            *word &= !mask;
            if *word == 0 {
                *summary &= !(1 << (w % BITS));
            }
        }
    }
}

/// The lowest of `count` set bits in a row in `word`.
fn run_in_word(word: u64, count: usize) -> Option<usize> {
    if count > BITS {
        return None;
    }
    // A bit is left where `have` bits from it on are set.
    let mut starts = word;
    let mut have = 1;
    while have < count && starts != 0 {
        let step = min(have, count - have);
        starts &= starts >> step;
        have += step;
    }
    (starts != 0).then(|| starts.trailing_zeros() as usize)
}

#[kunit_tests(virtio_xenbus_free_map)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_map_has_nothing() -> Result {
        let mut map = FreeMap::new(0)?;
        assert_eq!(map.take_one(), None);
        assert_eq!(map.take_run(1), None);
        Ok(())
    }

    #[test]
    fn ones_come_in_order_and_end() -> Result {
        for units in [1, 63, 64, 65, 127, 128, 4095, 4096, 4097] {
            let mut map = FreeMap::new(units)?;
            for unit in 0..units {
                assert_eq!(map.take_one(), Some(unit));
            }
            assert_eq!(map.take_one(), None);
            assert_eq!(map.take_run(1), None);
            assert!(map.words.iter().all(|word| *word == 0));
            assert!(map.summary.iter().all(|word| *word == 0));
        }
        Ok(())
    }

    #[test]
    fn what_is_given_back_is_taken_next() -> Result {
        let mut map = FreeMap::new(5000)?;
        while map.take_one().is_some() {}
        for unit in [0, 1, 63, 64, 4095, 4096, 4999, 2500] {
            map.give_one(unit);
            assert_eq!(map.take_run(2), None);
            assert_eq!(map.take_one(), Some(unit));
            assert_eq!(map.take_one(), None);
        }
        Ok(())
    }

    #[test]
    fn runs_cross_words() -> Result {
        for count in [2, 3, 31, 63, 64, 65, 128, 129, 200, 4096] {
            for first in [0, 1, 62, 63, 64, 100, 127, 128, 300] {
                let units = first + count;
                let mut map = FreeMap::new(units + 70)?;
                assert_eq!(map.take_run(units + 70), Some(0));
                map.give(first, count);
                assert_eq!(map.take_run(count + 1), None);
                assert_eq!(map.take_run(count), Some(first));
                assert_eq!(map.take_one(), None);
            }
        }
        Ok(())
    }

    #[test]
    fn a_run_ends_with_the_units() -> Result {
        for units in [1, 2, 63, 64, 65, 130] {
            let mut map = FreeMap::new(units)?;
            assert_eq!(map.take_run(units + 1), None);
            assert_eq!(map.take_run(usize::MAX), None);
            assert_eq!(map.take_run(units), Some(0));
        }
        Ok(())
    }

    #[test]
    fn holes_that_are_too_small_are_passed_over() -> Result {
        let mut map = FreeMap::new(256)?;
        assert_eq!(map.take_run(256), Some(0));
        // Holes of 1, 2, 3 … 15 units, one taken unit between two holes.
        let mut at = 0;
        for hole in 1..16 {
            map.give(at, hole);
            at += hole + 1;
        }
        assert_eq!(map.take_run(16), None);
        for hole in (1..16).rev() {
            assert_eq!(map.take_run(hole), Some(hole * (hole + 1) / 2 - 1));
        }
        assert_eq!(map.take_one(), None);
        Ok(())
    }

    #[test]
    fn runs_in_a_word() {
        assert_eq!(run_in_word(0, 1), None);
        assert_eq!(run_in_word(u64::MAX, 64), Some(0));
        assert_eq!(run_in_word(u64::MAX, 65), None);
        assert_eq!(run_in_word(u64::MAX << 1, 64), None);
        assert_eq!(run_in_word(u64::MAX << 1, 63), Some(1));
        assert_eq!(run_in_word(1 << 63, 1), Some(63));
        assert_eq!(run_in_word(0b1011_0111_0110, 3), Some(4));
        assert_eq!(run_in_word(0xaaaa_aaaa_aaaa_aaaa, 2), None);
    }
}
