// SPDX-License-Identifier: GPL-2.0

//! Abstractions for xenbus frontends.
//!
//! C header: [`include/xen/xenbus.h`](srctree/include/xen/xenbus.h)

use super::{
    bindings,
    debugfs::Dir, //
};
use core::{
    marker::PhantomData,
    ptr::{
        addr_of_mut,
        NonNull, //
    },
};
use kernel::{
    device,
    error::to_result,
    prelude::*,
    sync::aref::AlwaysRefCounted,
    types::Opaque, //
};

mod adapter;

pub(crate) use adapter::Adapter;

/// A table of the device types of a [`Driver`], with the end mark that C expects.
#[repr(transparent)]
pub(crate) struct IdTable<const N: usize = 1>([bindings::xenbus_device_id; N]);

impl IdTable {
    const EMPTY: &'static Self = &IdTable::new([]);
}

impl<const N: usize> IdTable<N> {
    /// Makes a table of `N - 1` device types, each of at most 31 bytes.
    pub(crate) const fn new<const TYPES: usize>(types: [&str; TYPES]) -> Self {
        assert!(TYPES + 1 == N);

        let mut ids = [bindings::xenbus_device_id {
            devicetype: [0; 32],
        }; N];
        let mut i = 0;
        while i < TYPES {
            let name = types[i].as_bytes();
            assert!(name.len() < 32);

            let mut j = 0;
            while j < name.len() {
                ids[i].devicetype[j] = name[j];
                j += 1;
            }
            i += 1;
        }
        Self(ids)
    }
}

/// An [`IdTable`] of any length.
pub(crate) trait RawIdTable: Sync {
    #[doc(hidden)]
    fn as_ptr(&self) -> *const bindings::xenbus_device_id;
}

impl<const N: usize> RawIdTable for IdTable<N> {
    fn as_ptr(&self) -> *const bindings::xenbus_device_id {
        self.0.as_ptr()
    }
}

/// The xenbus frontend driver trait.
///
/// The implementor is at the same time the driver's private data of a device.
pub(crate) trait Driver: Sized + Send + Sync + 'static {
    /// The device types that the driver binds to.
    const ID_TABLE: &'static dyn RawIdTable;

    /// Called when a device is bound to the driver; `debugfs` is a directory for it. A call of
    /// [`states_changed`](Self::states_changed) follows in any case.
    fn probe<'a>(dev: &'a Device<device::Core<'_>>, debugfs: Dir)
        -> impl PinInit<Self, Error> + 'a;

    /// Called when the state of either side may have changed, in the one thread that serves all
    /// xenstore watches: it must wait neither for another watch nor for long. Returns whether
    /// [`work`](Self::work) is to be called.
    ///
    /// Only here may a driver go to state Initialising or from there to another: the same thread
    /// compares what is in xenstore with what the driver has set, and takes a difference for a new
    /// device.
    fn states_changed(dev: &Device<device::Bound>, this: &Self) -> bool;

    /// Called in a kernel worker thread, which may wait. Not called twice at a time for a device,
    /// nor while `unbind` is, nor from before `suspend` until after `complete`.
    fn work(dev: &Device<device::Bound>, this: &Self);

    /// Called when the system is about to be suspended. Processes are frozen.
    ///
    /// This and the two following functions are called in the thread of all watches: what it would
    /// call comes afterwards. Waiting for the backend is possible, by looking.
    fn suspend(dev: &Device<device::Bound>, this: &Self);

    /// Called when the system goes on from what has been saved of it. The backend is another one;
    /// all grants are gone and all event channels closed. The device is in state Initialising.
    ///
    /// If the backend's directory is missing this is not called, and [`Device::backend`] is empty.
    fn restore(dev: &Device<device::Bound>, this: &Self);

    /// Called in the end in any case: after `restore`, or after `suspend` alone, or neither, if the
    /// suspend has been cancelled.
    fn complete(dev: &Device<device::Bound>, this: &Self);

    /// Called when the device is about to be unbound: before [`work`](Self::work), if it is under
    /// way, is waited for.
    fn unbinding(dev: &Device<device::Core<'_>>, this: &Self);

    /// Called when the device is unbound. The core switches it to Closed afterwards.
    fn unbind(dev: &Device<device::Core<'_>>, this: &Self);
}

/// A device on the xenbus.
///
/// # Invariants
///
/// A [`Device`] instance represents a valid `struct xenbus_device` created by the C portion of the
/// kernel.
#[repr(transparent)]
pub(crate) struct Device<Ctx: device::DeviceContext = device::Normal>(
    Opaque<bindings::xenbus_device>,
    PhantomData<Ctx>,
);

impl<Ctx: device::DeviceContext> Device<Ctx> {
    pub(super) fn as_raw(&self) -> *mut bindings::xenbus_device {
        self.0.get()
    }

    /// The device as the driver core knows it, to be the parent of another one.
    pub(super) fn raw_device(&self) -> *mut bindings::device {
        // SAFETY: By the type invariant `self.as_raw()` is valid; no reference is made.
        unsafe { addr_of_mut!((*self.as_raw()).dev) }
    }
}

impl Device {
    /// The device's type: the directory below `device/` that it is in.
    pub(crate) fn device_type(&self) -> &CStr {
        // SAFETY: Type and node name are set before the device is registered and live as long as
        // the device.
        unsafe { CStr::from_char_ptr((*self.as_raw()).devicetype) }
    }

    /// The device's directory in xenstore, relative to the domain's own.
    pub(crate) fn node_name(&self) -> &CStr {
        // SAFETY: As in `device_type()`.
        unsafe { CStr::from_char_ptr((*self.as_raw()).nodename) }
    }

    /// Switches the frontend to `state`: a value of `enum xenbus_state`. Sleeps.
    ///
    /// If that fails the core reports it to dmesg and xenstore, and tries to switch to Closing.
    pub(crate) fn switch_state(&self, state: u32) {
        // SAFETY: By the type invariant `self.as_raw()` is valid.
        unsafe { bindings::xenbus_switch_state(self.as_raw(), state) };
    }

    /// The frontend's state as it was last switched to.
    pub(crate) fn state(&self) -> u32 {
        // SAFETY: By the type invariant `self.as_raw()` is valid. Only this driver switches it.
        unsafe { addr_of_mut!((*self.as_raw()).state).read_volatile() }
    }

    /// Switches to Closed, and lets a shutdown that waits for that go on. Sleeps.
    pub(crate) fn closed(&self) {
        // SAFETY: By the type invariant `self.as_raw()` is valid.
        unsafe { bindings::xenbus_frontend_closed(self.as_raw()) };
    }

    /// Writes `text` to dmesg and to the device's error node, and switches to Closing. Sleeps.
    pub(crate) fn fatal(&self, err: Error, text: &CStr) {
        // SAFETY: `self.as_raw()` is valid, and the text ends with a NUL.
        unsafe { bindings::vxb_dev_fatal(self.as_raw(), err.to_errno(), text.as_char_ptr()) };
    }

    /// Allocates an event channel that the backend may bind to.
    pub(super) fn alloc_event_channel(&self) -> Result<u32> {
        let mut port = 0;

        // SAFETY: By the type invariant `self.as_raw()` is valid.
        to_result(unsafe { bindings::xenbus_alloc_evtchn(self.as_raw(), &mut port) })?;
        Ok(port)
    }

    /// Frees an event channel that is not bound to an interrupt.
    pub(super) fn free_event_channel(&self, port: u32) {
        // SAFETY: By the type invariant `self.as_raw()` is valid. A wrong port is refused by Xen.
        unsafe { bindings::xenbus_free_evtchn(self.as_raw(), port) };
    }
}

impl Device<device::Bound> {
    /// The domain of the backend.
    pub(crate) fn backend_domain(&self) -> u16 {
        // CAST: Domain identifiers have 16 bits; the field is the text of one.
        // SAFETY: The field is set before the driver is bound.
        unsafe { (*self.as_raw()).otherend_id as u16 }
    }

    /// The backend's directory in xenstore; empty if there was none when the system was restored.
    pub(crate) fn backend(&self) -> &CStr {
        // SAFETY: The path is set before the driver is bound, and freed after it is unbound. It is
        // replaced only between `Driver::suspend()` and `Driver::restore()`.
        unsafe {
            let path = (*self.as_raw()).otherend;
            if path.is_null() {
                return c"";
            }
            CStr::from_char_ptr(path)
        }
    }

    /// Reads the backend's state from xenstore: a value of `enum xenbus_state`, 0 when the
    /// backend's directory is gone. Sleeps.
    pub(crate) fn backend_state(&self) -> u32 {
        // SAFETY: `self.as_raw()` is valid, and the path ends with a NUL.
        unsafe { bindings::xenbus_read_driver_state(self.as_raw(), self.backend().as_char_ptr()) }
    }
}

// SAFETY: `Device` is a transparent wrapper of a type that doesn't depend on `Device`'s generic
// argument.
kernel::impl_device_context_deref!(unsafe { Device });
kernel::impl_device_context_into_aref!(Device);

// SAFETY: Instances of `Device` are always reference-counted.
unsafe impl AlwaysRefCounted for Device {
    fn inc_ref(&self) {
        // SAFETY: The existence of a shared reference guarantees that the refcount is non-zero.
        unsafe { bindings::get_device(self.raw_device()) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The safety requirements guarantee that the refcount is non-zero.
        unsafe { bindings::put_device(obj.as_ref().raw_device()) };
    }
}

impl<Ctx: device::DeviceContext> AsRef<device::Device<Ctx>> for Device<Ctx> {
    fn as_ref(&self) -> &device::Device<Ctx> {
        // SAFETY: By the type invariant of `Self`, `self.as_raw()` is a pointer to a valid
        // `struct xenbus_device`, which embeds a `struct device`.
        unsafe { device::Device::from_raw(self.raw_device()) }
    }
}

// SAFETY: A `Device` is always reference-counted and can be released from any thread.
unsafe impl Send for Device {}

// SAFETY: `Device` can be shared among threads because all methods of `Device` are thread safe.
unsafe impl Sync for Device {}
