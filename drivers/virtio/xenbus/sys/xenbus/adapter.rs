// SPDX-License-Identifier: GPL-2.0

//! The adapter between the C side's xenbus drivers and [`Driver`].

use super::{
    super::{
        bindings,
        debugfs::Dir,
        work::{
            Task,
            Work, //
        },
    },
    Device,
    Driver,
    IdTable,
    RawIdTable, //
};
use core::{
    marker::PhantomPinned,
    mem::offset_of,
    ptr::addr_of_mut, //
};
use kernel::{
    device,
    driver,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    str::CString,
    sync::{
        aref::ARef,
        atomic::{
            ordering,
            Atomic, //
        },
    },
    types::Opaque,
    ThisModule, //
};

/// A driver as C knows it, and what all its devices share.
#[derive(Default)]
#[repr(C)]
pub(crate) struct RawDriver {
    driver: bindings::xenbus_driver,

    /// The driver's directory in debugfs, as long as it is registered.
    debugfs: Dir,
}

/// An adapter for the registration of xenbus frontend drivers.
pub(crate) struct Adapter<T: Driver>(T);

// SAFETY:
// - `RawDriver` is declared as `repr(C)`.
// - `Binding<T>` is the type of the driver's device private data.
// - `RawDriver` embeds a `struct device_driver` at `DEVICE_DRIVER_OFFSET`.
unsafe impl<T: Driver> driver::DriverLayout for Adapter<T> {
    type DriverType = RawDriver;
    type DriverData<'bound> = Binding<T>;
    const DEVICE_DRIVER_OFFSET: usize = offset_of!(Self::DriverType, driver.driver);
}

// SAFETY: A call to `unregister` for a given instance of `DriverType` is guaranteed to be valid if
// a preceding call to `register` has been successful.
unsafe impl<T: Driver> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        drv: &Opaque<Self::DriverType>,
        name: &'static CStr,
        _module: &'static ThisModule,
    ) -> Result {
        let raw = drv.get();

        // SAFETY: `raw` is guaranteed to be a valid `DriverType`, and nobody uses it yet.
        let ret = unsafe {
            (*raw).debugfs = Dir::new(name);
            Self::register_frontend(&raw mut (*raw).driver, name)
        };
        if ret.is_err() {
            // SAFETY: As above: it has not been registered.
            unsafe { (*raw).debugfs = Dir::default() };
        }
        ret
    }

    unsafe fn unregister(drv: &Opaque<Self::DriverType>) {
        let raw = drv.get();

        // SAFETY: `raw` is guaranteed to be a valid `DriverType` that is registered, and nobody
        // uses it when it is not any more.
        unsafe {
            bindings::xenbus_unregister_driver(&raw mut (*raw).driver);
            (*raw).debugfs = Dir::default();
        }
    }
}

impl<T: Driver> Adapter<T> {
    /// Registers `driver` and binds it to the devices that there are. Sleeps.
    ///
    /// # Safety
    ///
    /// `driver` must be zeroed, part of a [`RawDriver`], and stay where it is until it has been
    /// unregistered.
    unsafe fn register_frontend(
        driver: *mut bindings::xenbus_driver,
        name: &'static CStr,
    ) -> Result {
        // SAFETY: It's safe to set the fields of `struct xenbus_driver` on initialization.
        unsafe {
            (*driver).name = name.as_char_ptr();
            (*driver).ids = IdTable::EMPTY.as_ptr();
            (*driver).not_essential = true;
            (*driver).probe = Some(Self::probe_callback);
            (*driver).otherend_changed = Some(Self::otherend_changed_callback);
            (*driver).remove = Some(Self::remove_callback);
            (*driver).suspend = Some(Self::suspend_callback);
            (*driver).resume = Some(Self::resume_callback);
            (*driver).driver.pm = Self::PM_OPS;
        }

        // The xenbus takes a reference to the owner for each device that is bound, so that the
        // module could not be unloaded as long as there is a device. It need not: the driver's
        // end unbinds all devices and waits for that. Hence there is no owner.
        //
        // SAFETY: `driver` is valid by the requirement of this function.
        to_result(unsafe {
            bindings::__xenbus_register_frontend(driver, core::ptr::null_mut(), name.as_char_ptr())
        })?;

        // A module's registration waits up to half a minute for devices whose backend does not
        // answer. Nothing is gained by that, so the registration is done with no device in
        // sight, and the devices are bound after it.
        //
        // SAFETY: `driver` is registered; the table lives for ever. Binding that goes on at the
        // same time sees one table or the other.
        unsafe {
            addr_of_mut!((*driver).ids).write_volatile(T::ID_TABLE.as_ptr());
        }

        // SAFETY: `driver` is registered.
        let ret = to_result(unsafe { bindings::driver_attach(addr_of_mut!((*driver).driver)) });
        if ret.is_err() {
            // SAFETY: `driver` is registered, and will not be used after an error is returned.
            unsafe { bindings::xenbus_unregister_driver(driver) };
        }
        ret
    }

    /// Makes the directory of `dev` in debugfs. Sleeps.
    ///
    /// # Safety
    ///
    /// `dev` must be bound to this driver.
    unsafe fn debugfs(dev: &Device<device::CoreInternal<'_>>) -> Dir {
        // SAFETY: By the requirement of this function the device's driver is part of a `RawDriver`
        // that is registered.
        let driver = unsafe {
            &*(*dev.raw_device())
                .driver
                .byte_sub(<Self as driver::DriverLayout>::DEVICE_DRIVER_OFFSET)
                .cast::<RawDriver>()
        };
        driver.debugfs.subdir(dev.as_ref().name())
    }

    extern "C" fn probe_callback(
        dev: *mut bindings::xenbus_device,
        _id: *const bindings::xenbus_device_id,
    ) -> c_int {
        // SAFETY: The xenbus only ever calls the probe callback with a valid pointer to a
        // `struct xenbus_device`.
        //
        // INVARIANT: `dev` is valid for the duration of `probe_callback()`.
        let dev = unsafe { &*dev.cast::<Device<device::CoreInternal<'_>>>() };

        // SAFETY: The core has set the driver of `dev` to this one before it calls the callback.
        let debugfs = unsafe { Self::debugfs(dev) };

        from_result(|| {
            dev.as_ref().set_drvdata(Binding::<T>::new(dev, debugfs))?;
            Ok(0)
        })
    }

    extern "C" fn otherend_changed_callback(
        dev: *mut bindings::xenbus_device,
        _state: bindings::xenbus_state,
    ) {
        // SAFETY: The xenbus only ever calls the callback with a valid pointer to a
        // `struct xenbus_device`.
        //
        // INVARIANT: `dev` is valid for the duration of `otherend_changed_callback()`.
        let dev = unsafe { &*dev.cast::<Device<device::CoreInternal<'_>>>() };

        // SAFETY: The watch that leads here is registered after a successful `probe_callback` and
        // is unregistered, with all its callbacks done, before `remove_callback`.
        let binding = unsafe { dev.as_ref().drvdata_borrow::<Binding<T>>() };

        binding.states_changed();
    }

    /// The xenbus has callbacks of its own for all but this: then the driver's is called.
    const PM_OPS: &'static bindings::dev_pm_ops = &bindings::dev_pm_ops {
        complete: Some(Self::complete_callback),
        ..pin_init::zeroed()
    };

    /// Runs `f` with what a bound device holds, in the midst of a suspend.
    ///
    /// # Safety
    ///
    /// `dev` must be bound to this driver, and stay so until this returns.
    unsafe fn while_suspending(
        dev: *mut bindings::xenbus_device,
        f: fn(&Device<device::Bound>, &T),
    ) {
        // SAFETY: By the requirement of this function.
        let dev = unsafe { &*dev.cast::<Device<device::CoreInternal<'_>>>() };

        // SAFETY: The device is bound, so that `Device::set_drvdata()` has been called and stored
        // a `Pin<KBox<Binding<T>>>`.
        let binding = unsafe { dev.as_ref().drvdata_borrow::<Binding<T>>() };

        // Memory must not be sought by writing to disks that are suspended.
        //
        // SAFETY: What is saved is restored by the same thread.
        let flags = unsafe { bindings::vxb_memalloc_noio_save() };
        f(binding.task.bound(), &binding.task.driver);
        // SAFETY: As above.
        unsafe { bindings::vxb_memalloc_noio_restore(flags) };
    }

    extern "C" fn suspend_callback(dev: *mut bindings::xenbus_device) -> c_int {
        // SAFETY: The core calls this with a device that is bound, and holds its lock.
        unsafe { Self::while_suspending(dev, T::suspend) };
        0
    }

    extern "C" fn resume_callback(dev: *mut bindings::xenbus_device) -> c_int {
        // SAFETY: As in `suspend_callback()`.
        unsafe { Self::while_suspending(dev, T::restore) };
        0
    }

    extern "C" fn complete_callback(dev: *mut bindings::device) {
        // SAFETY: The driver's devices are part of a `struct xenbus_device`. The core calls this
        // with a device that is bound, and holds its lock.
        unsafe {
            let dev = dev
                .byte_sub(offset_of!(bindings::xenbus_device, dev))
                .cast();
            Self::while_suspending(dev, T::complete);
        }
    }

    extern "C" fn remove_callback(dev: *mut bindings::xenbus_device) {
        // SAFETY: The xenbus only ever calls the remove callback with a valid pointer to a
        // `struct xenbus_device`.
        //
        // INVARIANT: `dev` is valid for the duration of `remove_callback()`.
        let dev = unsafe { &*dev.cast::<Device<device::CoreInternal<'_>>>() };

        // SAFETY: `remove_callback` is only ever called after a successful call to
        // `probe_callback`, hence it's guaranteed that `Device::set_drvdata()` has been called
        // and stored a `Pin<KBox<Binding<T>>>`.
        let binding = unsafe { dev.as_ref().drvdata_borrow::<Binding<T>>() };

        T::unbinding(dev, &binding.task.driver);
        binding.stop();
        T::unbind(dev, &binding.task.driver);
    }
}

/// What a device holds while it is bound to a driver.
///
/// # Invariants
///
/// `watch` is registered as long as `watching`, with [`own_state_callback::<T>`] and `path`.
#[pin_data(PinnedDrop)]
pub(crate) struct Binding<T: Driver> {
    /// Watches the device's own state, as the core watches the backend's.
    #[pin]
    watch: Opaque<bindings::xenbus_watch>,
    watching: Atomic<bool>,
    path: CString,

    #[pin]
    task: Work<DriverTask<T>>,

    /// The C side holds pointers to `watch`.
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: Watches belong to no thread; the rest is `Send`.
unsafe impl<T: Driver> Send for Binding<T> {}

// SAFETY: `watch` is only used by C, which locks its list of watches; the rest is `Sync`.
unsafe impl<T: Driver> Sync for Binding<T> {}

impl<T: Driver> Binding<T> {
    fn new<'a, 'b>(
        dev: &'a Device<device::Core<'b>>,
        debugfs: Dir,
    ) -> impl PinInit<Self, Error> + use<'a, 'b, T> {
        // INVARIANT: The watch is registered last, with the path that is already in its place.
        try_pin_init!(&this in Self {
            task <- Work::new(
                try_pin_init!(DriverTask {
                    driver <- T::probe(dev, debugfs),
                    dev: dev.into(),
                }? Error),
                c"virtio_xenbus",
                kernel::static_lock_class!(),
            ),
            path: CString::try_from_fmt(fmt!("{}/state", dev.node_name()))?,
            watch <- Opaque::zeroed(),
            watching: Atomic::new(true),
            _pin: PhantomPinned,
            _: {
                // SAFETY: All fields are initialised and stay where they are. The path's memory is
                // that of the `CString`, which lives until `stop()` has unregistered the watch.
                unsafe {
                    let this = this.as_ptr();
                    let watch = (*this).watch.get();
                    (*watch).node = (*this).path.as_char_ptr();
                    (*watch).callback = Some(own_state_callback::<T>);
                    to_result(bindings::register_xenbus_watch(watch)).inspect_err(|_| {
                        (*this).watching.store(false, ordering::Relaxed);
                    })?;
                }
            },
        }? Error)
    }

    /// Called in the thread of all watches when the state of either side may have changed.
    fn states_changed(&self) {
        if T::states_changed(self.task.bound(), &self.task.driver) {
            self.task.queue();
        }
    }

    /// Lets the driver be called no more, and waits until it is not.
    fn stop(&self) {
        if self.watching.xchg(false, ordering::Relaxed) {
            // SAFETY: By the type invariant the watch is registered.
            unsafe { bindings::unregister_xenbus_watch(self.watch.get()) };
        }
        self.task.stop();
    }
}

#[pinned_drop]
impl<T: Driver> PinnedDrop for Binding<T> {
    fn drop(self: Pin<&mut Self>) {
        self.stop();
    }
}

/// # Safety
///
/// `watch` must be the field of that name in a [`Binding<T>`].
unsafe extern "C" fn own_state_callback<T: Driver>(
    watch: *mut bindings::xenbus_watch,
    _path: *const c_char,
    _token: *const c_char,
) {
    // SAFETY: By the requirement of this function; `Opaque` is transparent. The `Binding` lives
    // until the watch has been unregistered, which waits for this function.
    let this = unsafe {
        &*watch
            .byte_sub(offset_of!(Binding<T>, watch))
            .cast::<Binding<T>>()
    };

    this.states_changed();
}

/// Runs [`Driver::work`].
///
/// # Invariants
///
/// `dev` is bound as long as the [`Binding`] that this belongs to has not been stopped.
#[pin_data]
struct DriverTask<T: Driver> {
    dev: ARef<Device>,

    #[pin]
    driver: T,
}

impl<T: Driver> DriverTask<T> {
    /// The device, for what is called before [`Binding::stop`] returns.
    fn bound(&self) -> &Device<device::Bound> {
        let dev: *const Device = &*self.dev;

        // CAST: The context does not change the layout.
        // SAFETY: By the type invariant.
        unsafe { &*dev.cast() }
    }
}

impl<T: Driver> Task for DriverTask<T> {
    // Devices that come or go meanwhile would be in the way of the core, and of the driver.
    const FREEZABLE: bool = true;

    fn run(&self) {
        T::work(self.bound(), &self.driver);
    }
}
