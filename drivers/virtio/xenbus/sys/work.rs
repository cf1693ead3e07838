// SPDX-License-Identifier: GPL-2.0

//! Work items that can be stopped.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use super::bindings;
use core::{
    marker::PhantomPinned,
    mem::offset_of,
    ops::Deref, //
};
use kernel::{
    prelude::*,
    sync::LockClassKey,
    types::Opaque, //
};

/// What a [`Work`] does.
pub(crate) trait Task: Send + Sync + 'static {
    /// Whether it is not to run while the system is suspended: it has ended before devices are
    /// suspended, and what is queued then begins when all have been resumed.
    const FREEZABLE: bool;

    /// Runs in a kernel worker thread, never twice at a time. May sleep.
    fn run(&self);
}

/// A work item together with the data that it works on.
///
/// `kernel::workqueue::Work` can be neither stopped nor awaited, which a module that may be
/// unloaded needs.
///
/// # Invariants
///
/// `work` is an initialised work item whose function is [`run_callback::<T>`]; it is not queued
/// and not running once `self` is dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct Work<T: Task> {
    #[pin]
    work: Opaque<bindings::work_struct>,

    #[pin]
    task: T,

    /// The C side holds pointers to `work`.
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: A work item may be queued and stopped by any thread, and `T` is `Send`.
unsafe impl<T: Task> Send for Work<T> {}

// SAFETY: Queueing and stopping lock the work item, and `T` is `Sync`.
unsafe impl<T: Task> Sync for Work<T> {}

impl<T: Task> Work<T> {
    /// Creates an initialiser of a work item that is not queued.
    pub(crate) fn new(
        task: impl PinInit<T, Error>,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self, Error> {
        // INVARIANT: The work item is initialised with `run_callback::<T>`.
        try_pin_init!(Self {
            task <- task,
            work <- Opaque::ffi_init(|slot: *mut bindings::work_struct| {
                // SAFETY: `slot` is valid for writes and stays where it is; name and key live
                // for ever.
                unsafe {
                    bindings::init_work_with_key(
                        slot,
                        Some(run_callback::<T>),
                        false,
                        name.as_char_ptr(),
                        key.as_ptr(),
                    )
                };
            }),
            _pin: PhantomPinned,
        })
    }

    /// Has the task run once more from now on. Callable in any context.
    pub(crate) fn queue(&self) {
        // SAFETY: By the type invariant `work` is initialised, and `drop()` waits for it. The
        // workqueues are the system's and live for ever.
        unsafe {
            let queue = if T::FREEZABLE {
                bindings::system_freezable_wq
            } else {
                bindings::system_dfl_wq
            };
            bindings::queue_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                queue,
                self.work.get(),
            )
        };
    }

    /// Stops the work item for good: waits until it has ended, and it cannot be queued again.
    pub(crate) fn stop(&self) {
        // SAFETY: By the type invariant `work` is initialised.
        unsafe { bindings::disable_work_sync(self.work.get()) };
    }
}

impl<T: Task> Deref for Work<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.task
    }
}

#[pinned_drop]
impl<T: Task> PinnedDrop for Work<T> {
    fn drop(self: Pin<&mut Self>) {
        self.stop();
    }
}

/// # Safety
///
/// `work` must be the field of that name in a [`Work<T>`].
unsafe extern "C" fn run_callback<T: Task>(work: *mut bindings::work_struct) {
    // SAFETY: By the requirement of this function, and because `Opaque<work_struct>` is
    // transparent. The `Work` lives at least until this function returns: `drop()` waits.
    let this = unsafe { &*work.byte_sub(offset_of!(Work<T>, work)).cast::<Work<T>>() };

    this.task.run();
}
