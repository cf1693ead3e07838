// SPDX-License-Identifier: GPL-2.0

//! What the driver has been told of configuration space before it made its virtqueues.
//!
//! A driver that is restored goes on with what it has set up at its probe, but reads some fields
//! again, virtio_blk the number of its queues for instance, and relies on finding the same. A
//! backend, an honest one on another host or not, may say something else by then.

use core::ops::Range;
use kernel::prelude::*;

/// Remembers configuration space as the driver knows it.
pub(crate) struct Told {
    bytes: KVec<u8>,
    /// The driver has virtqueues: its probe is over.
    has_queues: bool,
    /// It is to find what it has found at its probe.
    frozen: bool,
}

impl Told {
    /// Before the probe, when configuration space is `bytes`.
    pub(crate) fn new(bytes: KVec<u8>) -> Self {
        Self {
            bytes,
            has_queues: false,
            frozen: false,
        }
    }

    /// The driver has got `data`, which is at `range`.
    pub(crate) fn remember(&mut self, range: Range<usize>, data: &[u8]) {
        if self.has_queues || self.frozen {
            return;
        }
        if let Some(bytes) = self.bytes.get_mut(range) {
            for (byte, &new) in bytes.iter_mut().zip(data) {
                *byte = new;
            }
        }
    }

    /// Copies to `data` what the driver is to find at `range`; returns whether that is not what is
    /// there now.
    pub(crate) fn recall(&self, range: Range<usize>, data: &mut [u8]) -> bool {
        if !self.frozen {
            return false;
        }
        let Some(bytes) = self.bytes.get(range) else {
            return false;
        };
        for (to, &byte) in data.iter_mut().zip(bytes) {
            *to = byte;
        }
        true
    }

    /// The driver has made its virtqueues, or deleted them.
    pub(crate) fn set_queues(&mut self, present: bool) {
        self.has_queues = present;
    }

    /// The driver is about to be frozen, or has been restored.
    pub(crate) fn set_frozen(&mut self, frozen: bool) {
        self.frozen = frozen;
    }
}

#[kunit_tests(virtio_xenbus_told)]
mod tests {
    use super::*;

    fn told() -> Result<Told> {
        let mut bytes = KVec::new();
        bytes.extend_from_slice(&[1, 2, 3, 4], GFP_KERNEL)?;
        Ok(Told::new(bytes))
    }

    fn recalled(told: &Told) -> Option<[u8; 4]> {
        let mut data = [0; 4];
        told.recall(0..4, &mut data).then_some(data)
    }

    #[test]
    fn a_restored_driver_finds_what_it_has_found() -> Result {
        let mut told = told()?;
        told.remember(1..3, &[7, 8]);
        told.set_queues(true);
        told.remember(0..4, &[9; 4]);
        told.set_frozen(true);
        told.set_queues(false);
        assert_eq!(recalled(&told), Some([1, 7, 8, 4]));
        told.remember(0..4, &[9; 4]);
        told.set_queues(true);
        assert_eq!(recalled(&told), Some([1, 7, 8, 4]));
        Ok(())
    }

    #[test]
    fn others_find_what_is_there() -> Result {
        let mut told = told()?;
        assert_eq!(recalled(&told), None);
        told.set_queues(true);
        assert_eq!(recalled(&told), None);
        told.set_frozen(true);
        told.set_frozen(false);
        assert_eq!(recalled(&told), None);
        Ok(())
    }

    #[test]
    fn each_probe_is_remembered_anew() -> Result {
        let mut told = told()?;
        told.set_queues(true);
        told.set_queues(false);
        told.remember(0..4, &[9; 4]);
        told.set_queues(true);
        told.set_frozen(true);
        assert_eq!(recalled(&told), Some([9; 4]));
        Ok(())
    }

    #[test]
    fn what_is_outside_is_neither_remembered_nor_recalled() -> Result {
        let mut told = told()?;
        told.remember(3..5, &[9; 2]);
        told.set_frozen(true);
        assert!(!told.recall(3..5, &mut [0; 2]));
        assert_eq!(recalled(&told), Some([1, 2, 3, 4]));
        Ok(())
    }
}
