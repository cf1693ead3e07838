// SPDX-License-Identifier: GPL-2.0

//! What a driver needs that is to go on with its device after a suspend, or with another.

use super::{
    Link,
    XenbusTransport, //
};
use crate::wire::{
    Identity,
    Op, //
};
use kernel::{
    prelude::*,
    sync::atomic::ordering, //
};

impl XenbusTransport {
    /// What the device was like when the driver was probed.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How many virtqueues the driver has, or had when it was frozen.
    pub(crate) fn queue_count(&self) -> usize {
        self.queues.lock().last
    }

    /// Has the driver find what it knows from its probe until [`thaw`](Self::thaw).
    ///
    /// If the link is dead meanwhile, the driver is told that everything succeeds, and gets
    /// virtqueues that are broken: so it fails what it holds back, and can be taken down.
    pub(crate) fn freeze(&self) {
        self.told.lock().set_frozen(true);
        self.frozen.store(true, ordering::Relaxed);
    }

    /// The end of [`freeze`](Self::freeze).
    pub(crate) fn thaw(&self) {
        self.told.lock().set_frozen(false);
        self.frozen.store(false, ordering::Relaxed);
    }

    /// Has the backend carry out `op`; nothing is asked of one that is gone by a driver that must
    /// be restored in order to be taken down.
    pub(super) fn ask(&self, op: Op, argument: u64) -> Result {
        match self.link.request(op, argument) {
            Err(e) if e == ENODEV && self.frozen.load(ordering::Relaxed) => Ok(()),
            result => result,
        }
    }
}

/// Configuration space as it is now. A backend that never stops changing it is told of where that
/// matters, when the driver reads.
pub(super) fn snapshot(link: &Link, length: usize) -> Result<KVec<u8>> {
    let mut bytes = KVec::from_elem(0, length, GFP_KERNEL)?;
    let _ = link.control.read_config(0, &mut bytes);
    Ok(bytes)
}
