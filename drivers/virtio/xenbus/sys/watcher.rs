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
    breaking: Mutex<Option<Target>>,
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

    /// Tells `dev` from now on, until [`disarm`](Self::disarm), which its transport must call in
    /// [`Transport::delete_queues`]. Sleeps.
    pub(crate) fn arm<T: Transport>(&self, dev: &Device<T>) {
        // INVARIANT: Queues are made and deleted while the device is registered.
        *self.config.lock() = NonNull::new(dev.as_raw()).map(Target);
        *self.breaking.lock() = NonNull::new(dev.as_raw()).map(Target);
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

    /// Lets no virtqueue be used any more, for good. Sleeps.
    pub(crate) fn break_device(&self) {
        if let Some(Target(vdev)) = &*self.breaking.lock() {
            // SAFETY: By the type invariant the device is registered.
            unsafe { bindings::virtio_break_device(vdev.as_ptr()) };
        }
    }
}
