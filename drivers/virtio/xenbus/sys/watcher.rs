// SPDX-License-Identifier: GPL-2.0

//! What the virtio core is told of a device by its transport.
//!
//! C header: [`include/linux/virtio.h`](srctree/include/linux/virtio.h)

use super::{
    bindings,
    compat::{
        new_spinlock_irq,
        SpinLockIrq, //
    },
    virtio::{
        Device,
        Transport, //
    },
    virtqueue::{
        give_back,
        Abandoned,
        Queue, //
    },
};
use core::ptr::NonNull;
use kernel::{
    new_mutex,
    prelude::*,
    sync::Mutex, //
};

/// What a transport tells a device of, as long as its driver has virtqueues.
///
/// The virtio core may only be called between the registration of a device and the end of it, and
/// before that there is nothing that a driver would want to know.
#[pin_data]
pub(crate) struct Watcher {
    #[pin]
    config: SpinLockIrq<Option<Target>>,

    /// Breaking a device takes locks that are not for interrupts.
    #[pin]
    breaking: Mutex<Option<Breakable>>,
}

/// A device that can be broken.
struct Breakable {
    target: Target,

    /// Those of its queues whose driver waits for what the device has of them.
    waiting: KVec<Abandoned>,
}

/// # Invariants
///
/// The device is registered.
struct Target(NonNull<bindings::virtio_device>);

// SAFETY: The device is only used for calls that any thread may make.
unsafe impl Send for Target {}

impl Watcher {
    /// Creates an initialiser of a watcher that tells nobody.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            config <- new_spinlock_irq!(None, "virtio_xenbus_config"),
            breaking <- new_mutex!(None, "virtio_xenbus_breaking"),
        })
    }

    /// Tells `dev`, which has `queues`, from now on, until [`disarm`](Self::disarm), which its
    /// transport must call in [`Transport::delete_queues`] before it deletes them. Sleeps.
    pub(crate) fn arm<'a, T: Transport>(
        &self,
        dev: &Device<T>,
        queues: impl Iterator<Item = &'a Queue>,
    ) -> Result {
        let mut waiting = KVec::new();
        for queue in queues.filter(|_| dev.driver_waits()) {
            // SAFETY: It is deleted after `disarm()`.
            waiting.push(unsafe { Abandoned::new(queue) }?, GFP_KERNEL)?;
        }
        // INVARIANT: Queues are made and deleted while the device is registered.
        let target = || NonNull::new(dev.as_raw()).map(Target);
        *self.config.lock() = target();
        *self.breaking.lock() = target().map(|target| Breakable { target, waiting });
        Ok(())
    }

    /// Tells nobody from now on. Sleeps.
    pub(crate) fn disarm(&self) {
        *self.config.lock() = None;
        *self.breaking.lock() = None;
    }

    /// Tells that configuration space has changed. Callable in any context.
    pub(crate) fn config_changed(&self) {
        if let Some(Target(vdev)) = &*self.config.lock() {
            // SAFETY: By the type invariant the device is registered.
            unsafe { bindings::virtio_config_changed(vdev.as_ptr()) };
        }
    }

    /// Lets no virtqueue be used any more, for good, and gives the driver its buffers back. Sleeps.
    ///
    /// `released` is whether the device has said that it will not touch them. Otherwise those that
    /// it could go on to write to stay where they are. Returns whether none have to.
    pub(crate) fn break_device(&self, released: bool) -> bool {
        let mut breaking = self.breaking.lock();
        let Some(Breakable { target, waiting }) = &mut *breaking else {
            return true;
        };
        // SAFETY: By the type invariant the device is registered.
        unsafe { bindings::virtio_break_device(target.0.as_ptr()) };

        // SAFETY: They have just been broken, and the driver waits for them.
        unsafe { give_back(waiting, released) };
        !waiting.iter().any(Abandoned::is_held)
    }
}
