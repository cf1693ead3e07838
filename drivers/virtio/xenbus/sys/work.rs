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
    time::{
        msecs_to_jiffies,
        Msecs, //
    },
    types::Opaque, //
};

/// What a [`Work`] does.
pub(crate) trait Task: Send + Sync + 'static {
    /// Whether it is not to run while the system is suspended: it has ended before devices are
    /// suspended, and what is queued then begins when all have been resumed.
    const FREEZABLE: bool;

    /// Runs in a kernel worker thread, never twice at a time. May sleep.
    fn run(&self);

    /// How long after it has ended it runs again by itself, in milliseconds, if it does.
    fn again(&self) -> Option<Msecs> {
        None
    }
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
    work: Opaque<bindings::delayed_work>,

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
            work <- Opaque::ffi_init(|slot: *mut bindings::delayed_work| {
                // SAFETY: `slot` is valid for writes and stays where it is; name and keys live
                // for ever.
                unsafe {
                    bindings::init_work_with_key(
                        &raw mut (*slot).work,
                        Some(run_callback::<T>),
                        false,
                        name.as_char_ptr(),
                        key.as_ptr(),
                    );
                    bindings::timer_init_key(
                        &raw mut (*slot).timer,
                        Some(bindings::delayed_work_timer_fn),
                        bindings::TIMER_IRQSAFE,
                        name.as_char_ptr(),
                        kernel::static_lock_class!().as_ptr(),
                    );
                };
            }),
            _pin: PhantomPinned,
        })
    }

    /// Has the task run once more from now on. Callable in any context.
    pub(crate) fn queue(&self) {
        self.queue_after(0);
    }

    fn queue_after(&self, delay: Msecs) {
        // SAFETY: By the type invariant `work` is initialised, and `drop()` waits for it. The
        // workqueues are the system's and live for ever.
        unsafe {
            let queue = if T::FREEZABLE {
                bindings::system_freezable_wq
            } else {
                bindings::system_dfl_wq
            };
            bindings::queue_delayed_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                queue,
                self.work.get(),
                msecs_to_jiffies(delay),
            )
        };
    }

    /// Stops the work item for good: waits until it has ended, and it cannot be queued again.
    pub(crate) fn stop(&self) {
        // SAFETY: By the type invariant `work` is initialised.
        unsafe { bindings::disable_delayed_work_sync(self.work.get()) };
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
/// `work` must be part of the field of that name in a [`Work<T>`].
unsafe extern "C" fn run_callback<T: Task>(work: *mut bindings::work_struct) {
    // SAFETY: By the requirement of this function, and because `Opaque<delayed_work>` is
    // transparent. The `Work` lives at least until this function returns: `drop()` waits.
    let this = unsafe {
        &*work
            .byte_sub(offset_of!(bindings::delayed_work, work))
            .byte_sub(offset_of!(Work<T>, work))
            .cast::<Work<T>>()
    };

    this.task.run();
    if let Some(delay) = this.task.again() {
        this.queue_after(delay);
    }
}
