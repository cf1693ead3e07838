// SPDX-License-Identifier: GPL-2.0

//! A completion that is waited for with a time limit.
//!
//! C header: [`include/linux/completion.h`](srctree/include/linux/completion.h)

use super::bindings;
use kernel::{
    prelude::*,
    time::Jiffies,
    types::Opaque, //
};

/// A `struct completion` that is used again and again.
///
/// `kernel::sync::Completion` can only be waited for without a limit.
#[pin_data]
pub(crate) struct Completion {
    #[pin]
    inner: Opaque<bindings::completion>,
}

// SAFETY: `struct completion` has no owner; all its functions may be called by any thread.
unsafe impl Send for Completion {}

// SAFETY: All functions of `struct completion` lock it themselves.
unsafe impl Sync for Completion {}

impl Completion {
    /// Creates an initialiser of a completion that nothing has been signalled on.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot: *mut bindings::completion| {
                // SAFETY: `slot` is valid for writes and stays where it is.
                unsafe { bindings::init_completion(slot) };
            }),
        })
    }

    /// Lets one waiter go on, or the next one that comes. Callable in any context.
    pub(crate) fn complete(&self) {
        // SAFETY: `self.inner` is an initialised completion.
        unsafe { bindings::complete(self.inner.get()) };
    }

    /// Waits until it is signalled once, at most `timeout` jiffies. A signal to the task does not
    /// end the wait. Sleeps.
    pub(crate) fn wait(&self, timeout: Jiffies) {
        // SAFETY: `self.inner` is an initialised completion.
        unsafe { bindings::wait_for_completion_timeout(self.inner.get(), timeout) };
    }
}
