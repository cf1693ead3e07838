// SPDX-License-Identifier: GPL-2.0

//! Virtio devices, from the side of the transport.
//!
//! C headers: [`include/linux/virtio.h`](srctree/include/linux/virtio.h),
//! [`include/linux/virtio_config.h`](srctree/include/linux/virtio_config.h)

use super::{
    bindings,
    map::{
        BufferLimit,
        QueueMap, //
    },
    virtqueue::{
        Queue,
        Request, //
    },
    xenbus, //
};
use core::{
    marker::PhantomPinned,
    mem::{
        offset_of,
        ManuallyDrop, //
    },
    ptr::NonNull,
};
use kernel::{
    cpumask::Cpumask,
    device,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    sync::Completion,
    types::Opaque, //
};

/// Feature bits 0 to 127, the lower ones first.
pub(crate) type Features = [u64; 2];

/// What a virtio transport does; see `struct virtio_config_ops` for what each function means.
///
/// All functions are called in process context and may sleep, except where noted.
pub(crate) trait Transport: Send + Sync + Sized + 'static {
    /// Reads configuration space; what cannot be read is zero.
    fn get(&self, offset: u32, buf: &mut [u8]);

    /// Writes configuration space.
    fn set(&self, offset: u32, buf: &[u8]);

    /// A number that changes when configuration space does.
    fn generation(&self) -> u32;

    /// The device status byte. Called at any time: must not wait for the device.
    fn status(&self) -> u8;

    /// Writes the device status byte; never 0.
    fn set_status(&self, status: u8);

    /// Resets the device. When this returns the device does not access any buffer, and no
    /// callback of a virtqueue is running or will run.
    ///
    /// If that cannot be had, the device is to be broken: see [`super::watcher`].
    fn reset(&self);

    /// Makes virtqueues: one for each request that has a name, numbered without the others, and
    /// hands them to `found` in that order. On an error none is left.
    fn find_queues(
        &self,
        dev: &Device<Self>,
        requests: &[Request],
        spread: Option<&Spread>,
        found: &mut dyn FnMut(usize, &Queue),
    ) -> Result;

    /// Deletes all virtqueues.
    fn delete_queues(&self);

    /// Waits for callbacks of virtqueues that are running.
    fn synchronize(&self);

    /// The features that the device offers.
    fn features(&self) -> Features;

    /// Tells the device the features that the driver takes, of which the transport may clear
    /// some.
    fn finalize_features(&self, features: &mut Features) -> Result;

    /// The name of the device on its bus.
    fn bus_name(&self) -> &CStr;

    /// Runs `f` with the virtqueue of that number, if there is one.
    fn with_queue(&self, index: usize, f: &mut dyn FnMut(&Queue));
}

/// CPUs for the interrupts of virtqueues, in groups near to each other.
///
/// # Invariants
///
/// `masks` points to `count` CPU masks that were allocated with `kmalloc()` and belong to `self`.
pub(crate) struct Spread {
    masks: NonNull<bindings::cpumask>,
    count: usize,
    /// Virtqueues before the first that is spread.
    first: usize,
}

impl Spread {
    /// Divides all CPUs among `queues` virtqueues but the `first` ones. Sleeps.
    fn new(queues: usize, first: usize) -> Option<Self> {
        let groups = queues.checked_sub(first)?;
        let mut count = 0;

        // SAFETY: `count` is valid for writes.
        let masks = unsafe { bindings::group_cpus_evenly(u32::try_from(groups).ok()?, &mut count) };

        // INVARIANT: The function gives an array of its own with that many masks.
        Some(Self {
            masks: NonNull::new(masks)?,
            count: usize::try_from(count).ok()?,
            first,
        })
    }

    /// The CPUs of a virtqueue.
    fn get(&self, queue: usize) -> Option<&Cpumask> {
        let group = queue.checked_sub(self.first)?;
        if group >= self.count {
            return None;
        }
        // SAFETY: By the type invariant and the check.
        Some(unsafe { Cpumask::from_raw(self.masks.as_ptr().add(group)) })
    }

    /// Gives `queue` its CPUs.
    pub(crate) fn apply(&self, queue: &Queue) {
        // A queue whose interrupt stays where it is works all the same.
        if let Some(mask) = self.get(queue.index().into()) {
            let _ = queue.set_affinity(Some(mask));
        }
    }
}

impl Drop for Spread {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::kfree(self.masks.as_ptr().cast()) };
    }
}

/// A virtio device together with its transport.
///
/// The transport lives until the device has been unregistered, the rest until the last reference
/// to the C device is gone.
#[pin_data]
pub(crate) struct Device<T: Transport> {
    #[pin]
    vdev: Opaque<bindings::virtio_device>,

    transport: ManuallyDrop<Pin<KBox<T>>>,

    buffer_limit: BufferLimit,

    /// Completed when nothing refers to `vdev` any more.
    #[pin]
    released: Completion,

    #[pin]
    _pin: PhantomPinned,
}

impl<T: Transport> Device<T> {
    pub(super) fn as_raw(&self) -> *mut bindings::virtio_device {
        self.vdev.get()
    }

    /// # Safety
    ///
    /// `vdev` must be part of a `Device<T>` whose transport has not been dropped.
    unsafe fn from_raw<'a>(vdev: *mut bindings::virtio_device) -> &'a Self {
        // SAFETY: By the requirement of this function; `Opaque` is transparent.
        unsafe {
            &*vdev
                .byte_sub(offset_of!(Self, vdev))
                .cast_const()
                .cast::<Self>()
        }
    }

    /// Sets how long a buffer is at most that the driver should map at once, in bytes. Drivers
    /// ask once they have their virtqueues.
    pub(crate) fn limit_buffers(&self, bytes: usize) {
        self.buffer_limit.set(bytes);
    }

    /// Whether the driver of such a device waits until it has got all its buffers back when it is
    /// unbound, and can be given them as the device would.
    pub(super) fn driver_waits(&self) -> bool {
        // SAFETY: The device has been initialised.
        unsafe { bindings::vxb_driver_waits(self.as_raw()) }
    }

    /// The transport.
    pub(crate) fn transport(&self) -> &T {
        &self.transport
    }

    /// The features that the driver has accepted, or some of before and some of after if it
    /// accepts others at the moment.
    pub(crate) fn accepted(&self) -> Features {
        // SAFETY: The device has been initialised, and all bits make features. No reference is made
        // to what C may write.
        unsafe {
            (&raw const (*self.as_raw()).__bindgen_anon_1)
                .cast::<Features>()
                .read_volatile()
        }
    }

    const CONFIG_OPS: &'static bindings::virtio_config_ops = &bindings::virtio_config_ops {
        get: Some(Self::get),
        set: Some(Self::set),
        generation: Some(Self::generation),
        get_status: Some(Self::get_status),
        set_status: Some(Self::set_status),
        reset: Some(Self::reset),
        find_vqs: Some(Self::find_vqs),
        del_vqs: Some(Self::del_vqs),
        synchronize_cbs: Some(Self::synchronize_cbs),
        get_features: None,
        get_extended_features: Some(Self::get_extended_features),
        finalize_features: Some(Self::finalize_features),
        bus_name: Some(Self::bus_name),
        set_vq_affinity: Some(Self::set_vq_affinity),
        get_vq_affinity: Some(Self::get_vq_affinity),
        // Devices with shared memory regions would need a region in the protocol.
        get_shm_region: None,
        // Without these two the rings do not accept VIRTIO_F_RING_RESET.
        disable_vq_and_reset: None,
        enable_vq_after_reset: None,
    };

    // The operations. The virtio core calls them with a device that was registered by
    // `Registration::new()` and has not been unregistered, and with buffers of the given length.

    extern "C" fn get(
        vdev: *mut bindings::virtio_device,
        offset: c_uint,
        buf: *mut c_void,
        len: c_uint,
    ) {
        // SAFETY: The buffer has that length; it is zeroed first because it may not be initialised.
        let buf = unsafe {
            buf.cast::<u8>().write_bytes(0, len as usize);
            core::slice::from_raw_parts_mut(buf.cast::<u8>(), len as usize)
        };

        // SAFETY: The core passes a registered device of ours.
        unsafe { Self::from_raw(vdev) }.transport().get(offset, buf);
    }

    extern "C" fn set(
        vdev: *mut bindings::virtio_device,
        offset: c_uint,
        buf: *const c_void,
        len: c_uint,
    ) {
        // SAFETY: The buffer has that length.
        let buf = unsafe { core::slice::from_raw_parts(buf.cast::<u8>(), len as usize) };

        // SAFETY: The core passes a registered device of ours.
        unsafe { Self::from_raw(vdev) }.transport().set(offset, buf);
    }

    extern "C" fn generation(vdev: *mut bindings::virtio_device) -> u32 {
        // SAFETY: The core passes a registered device of ours.
        unsafe { Self::from_raw(vdev) }.transport.generation()
    }

    extern "C" fn get_status(vdev: *mut bindings::virtio_device) -> u8 {
        // SAFETY: The core passes a registered device of ours.
        unsafe { Self::from_raw(vdev) }.transport.status()
    }

    extern "C" fn set_status(vdev: *mut bindings::virtio_device, status: u8) {
        // SAFETY: The core passes a registered device of ours.
        unsafe { Self::from_raw(vdev) }.transport.set_status(status);
    }

    extern "C" fn reset(vdev: *mut bindings::virtio_device) {
        // SAFETY: The core passes a registered device of ours.
        unsafe { Self::from_raw(vdev) }.transport.reset();
    }

    extern "C" fn find_vqs(
        vdev: *mut bindings::virtio_device,
        nvqs: c_uint,
        vqs: *mut *mut bindings::virtqueue,
        info: *mut bindings::virtqueue_info,
        desc: *mut bindings::irq_affinity,
    ) -> c_int {
        let count = nvqs as usize;

        // SAFETY: The core passes a registered device of ours, and both arrays have `nvqs` entries.
        // `Request` is transparent.
        let (dev, requests, vqs) = unsafe {
            vqs.write_bytes(0, count);
            (
                Self::from_raw(vdev),
                core::slice::from_raw_parts(info.cast_const().cast::<Request>(), count),
                core::slice::from_raw_parts_mut(vqs, count),
            )
        };

        // The driver spreads its queues over the CPUs itself, or it lets the transport do it.
        let spread = if desc.is_null() {
            None
        } else {
            // SAFETY: The driver's description is valid during the call.
            Spread::new(count, unsafe { (*desc).pre_vectors } as usize)
        };

        from_result(|| {
            dev.transport
                .find_queues(dev, requests, spread.as_ref(), &mut |i, queue| {
                    if let Some(vq) = vqs.get_mut(i) {
                        *vq = queue.as_raw();
                    }
                })?;
            Ok(0)
        })
    }

    extern "C" fn del_vqs(vdev: *mut bindings::virtio_device) {
        // SAFETY: The core passes a registered device of ours.
        unsafe { Self::from_raw(vdev) }.transport.delete_queues();
    }

    extern "C" fn synchronize_cbs(vdev: *mut bindings::virtio_device) {
        // SAFETY: The core passes a registered device of ours.
        unsafe { Self::from_raw(vdev) }.transport.synchronize();
    }

    extern "C" fn get_extended_features(vdev: *mut bindings::virtio_device, features: *mut u64) {
        // SAFETY: The core passes a registered device of ours, and an array for 128 bits.
        unsafe { *features.cast::<Features>() = Self::from_raw(vdev).transport.features() };
    }

    extern "C" fn finalize_features(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The core passes a registered device. This clears what the rings cannot do.
        unsafe { bindings::vring_transport_features(vdev) };

        // SAFETY: The core passes a registered device of ours, and does not use its features at the
        // same time.
        let (dev, features) = unsafe {
            (
                Self::from_raw(vdev),
                &mut *(&raw mut (*vdev).__bindgen_anon_1).cast::<Features>(),
            )
        };

        from_result(|| {
            dev.transport.finalize_features(features)?;
            Ok(0)
        })
    }

    extern "C" fn bus_name(vdev: *mut bindings::virtio_device) -> *const c_char {
        // SAFETY: The core passes a registered device of ours.
        unsafe { Self::from_raw(vdev) }
            .transport
            .bus_name()
            .as_char_ptr()
    }

    extern "C" fn set_vq_affinity(
        vq: *mut bindings::virtqueue,
        mask: *const bindings::cpumask,
    ) -> c_int {
        // SAFETY: The driver has the virtqueue from `find_vqs`; the mask is valid or NULL.
        let (queue, mask) = unsafe {
            (
                Queue::from_raw(vq),
                (!mask.is_null()).then(|| Cpumask::from_raw(mask)),
            )
        };

        from_result(|| {
            queue.set_affinity(mask)?;
            Ok(0)
        })
    }

    extern "C" fn get_vq_affinity(
        vdev: *mut bindings::virtio_device,
        index: c_int,
    ) -> *const bindings::cpumask {
        let mut mask = core::ptr::null();

        if let Ok(index) = usize::try_from(index) {
            // SAFETY: The core passes a registered device of ours. The driver that asks has the
            // queues, and with them the masks.
            unsafe { Self::from_raw(vdev) }
                .transport
                .with_queue(index, &mut |queue| mask = queue.affinity());
        }
        mask
    }

    /// Called when nothing refers to the device any more.
    extern "C" fn release(dev: *mut bindings::device) {
        // SAFETY: The driver core calls this once, with the `dev` field of our `vdev`. The memory
        // is there until the completion.
        let this = unsafe {
            let vdev = dev
                .byte_sub(offset_of!(bindings::virtio_device, dev))
                .cast::<bindings::virtio_device>();
            &*vdev.byte_sub(offset_of!(Self, vdev)).cast::<Self>()
        };
        this.released.complete_all();
    }
}

impl<T: Transport> AsRef<device::Device> for Device<T> {
    fn as_ref(&self) -> &device::Device {
        // SAFETY: The embedded device has been initialised.
        unsafe { device::Device::from_raw(&raw mut (*self.as_raw()).dev) }
    }
}

/// A virtio device that the virtio bus knows.
///
/// # Invariants
///
/// The device is registered, and its transport has not been dropped.
pub(crate) struct Registration<T: Transport>(NonNull<Device<T>>);

// SAFETY: A registration belongs to no thread, and `T` is `Send` and `Sync`.
unsafe impl<T: Transport> Send for Registration<T> {}

// SAFETY: As above.
unsafe impl<T: Transport> Sync for Registration<T> {}

impl<T: Transport> Registration<T> {
    /// Registers a device of type `device_id`, a child of `parent`. If there is a driver for it,
    /// the driver is bound before this returns. Sleeps.
    pub(crate) fn new(
        parent: &xenbus::Device<device::Bound>,
        device_id: u32,
        vendor_id: u32,
        transport: impl PinInit<T, Error>,
    ) -> Result<Self> {
        let dev = KBox::pin_init(
            try_pin_init!(Device {
                vdev <- Opaque::zeroed(),
                transport: ManuallyDrop::new(KBox::pin_init(transport, GFP_KERNEL)?),
                buffer_limit: BufferLimit::new(),
                released <- Completion::new(),
                _pin: PhantomPinned,
            }? Error),
            GFP_KERNEL,
        )?;

        // SAFETY: The device is given to C, which does not move it.
        let dev = unsafe { Pin::into_inner_unchecked(dev) };
        let dev = KBox::into_raw(dev);

        // SAFETY: Zeroed memory is how `register_virtio_device()` wants the rest of the device.
        let ret = unsafe {
            let vdev = (*dev).as_raw();
            (*vdev).dev.parent = parent.raw_device();
            (*vdev).dev.release = Some(Device::<T>::release);
            (*vdev).id.device = device_id;
            (*vdev).id.vendor = vendor_id;
            (*vdev).config = Device::<T>::CONFIG_OPS;
            (*vdev).map = QueueMap::OPS;
            (*vdev).vmap = (*dev).buffer_limit.token();
            bindings::register_virtio_device(vdev)
        };

        // INVARIANT: Registered, or else dropped below.
        // SAFETY: `dev` comes from a `KBox`.
        let this = Self(unsafe { NonNull::new_unchecked(dev) });
        if let Err(e) = to_result(ret) {
            // SAFETY: A failed registration leaves one reference to a device that nobody uses.
            unsafe { this.release() };
            core::mem::forget(this);
            return Err(e);
        }
        Ok(this)
    }

    /// Drops the transport, then the device when nothing refers to it any more. Sleeps.
    ///
    /// Somebody may hold a reference to the device for a while, but not to what the transport
    /// shares with others.
    ///
    /// # Safety
    ///
    /// The device must not be registered, and one reference to it must be `self`'s. Neither device
    /// nor transport may be used afterwards.
    unsafe fn release(&self) {
        let dev = self.0.as_ptr();

        // SAFETY: By the requirements of this function, no reference to the transport exists. The
        // memory is that of the `KBox` which `new()` gave to C, and C has done with it.
        unsafe {
            ManuallyDrop::drop(&mut (*dev).transport);
            bindings::put_device(&raw mut (*(*dev).vdev.get()).dev);
            (*dev).released.wait_for_completion();
            drop(KBox::from_raw(dev));
        }
    }

    /// The device.
    pub(crate) fn device(&self) -> &Device<T> {
        // SAFETY: By the type invariant.
        unsafe { self.0.as_ref() }
    }

    /// Has the driver finish what is under way and delete its virtqueues, until
    /// [`restore`](Self::restore). Sleeps, as long as the device takes.
    ///
    /// To be called while the system is being suspended: no driver is bound or unbound then.
    ///
    /// # Errors
    ///
    /// `ENOTSUPP` if the driver cannot do that, or what it says. The device is then as before.
    pub(crate) fn freeze(&self) -> Result {
        let vdev = self.device().as_raw();

        // SAFETY: By the type invariant the device is registered; its driver stays.
        to_result(unsafe {
            if !bindings::vxb_virtio_can_freeze(vdev) {
                return Err(ENOTSUPP);
            }
            bindings::virtio_device_freeze(vdev)
        })
    }

    /// Has the driver make its virtqueues and go on, after [`freeze`](Self::freeze). Sleeps.
    ///
    /// After an error this can be tried again.
    pub(crate) fn restore(&self) -> Result {
        // SAFETY: By the type invariant the device is registered.
        to_result(unsafe { bindings::virtio_device_restore(self.device().as_raw()) })
    }
}

impl<T: Transport> Drop for Registration<T> {
    /// Unbinds the driver and takes the device off the bus. Sleeps.
    fn drop(&mut self) {
        let vdev = self.device().as_raw();

        // SAFETY: By the type invariant the device is registered. The extra reference keeps it
        // until its transport is gone, which nobody calls once it is unregistered.
        unsafe {
            bindings::get_device(&raw mut (*vdev).dev);
            bindings::unregister_virtio_device(vdev);
        }

        // SAFETY: The device has just been unregistered, and there is the reference taken above.
        unsafe { self.release() };
    }
}
