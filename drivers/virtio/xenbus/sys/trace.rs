// SPDX-License-Identifier: GPL-2.0

//! Tracepoints, those of `trace.h`.
//!
//! One that nobody listens to is an instruction that does nothing: the test is a static branch,
//! here and not behind a call, and what it guards computes the fields.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

use super::{
    bindings,
    xenbus, //
};
use kernel::{
    prelude::*,
    sync::aref::ARef, //
};

/// Calls a tracepoint, if anybody listens to it.
///
/// `kernel::tracepoint::declare_trace` can do this only for those that the `kernel` crate has
/// bindings for.
///
/// Pointers among the arguments must be valid during the call.
macro_rules! trace {
    ($tracepoint:ident($($argument:expr),* $(,)?)) => {
        kernel::macros::paste! {
            #[cfg(CONFIG_TRACEPOINTS)]
            {
                // SAFETY: The key is the one of a tracepoint, defined by C.
                let enabled = unsafe {
                    kernel::jump_label::static_branch_unlikely!(
                        bindings::[<__tracepoint_ $tracepoint>],
                        bindings::tracepoint,
                        key
                    )
                };
                if enabled {
                    // SAFETY: Tracepoints may be called in any context; this one reads what the
                    // pointers point to and keeps none.
                    unsafe { bindings::[<rust_do_trace_ $tracepoint>]($($argument),*) };
                }
            }

            #[cfg(not(CONFIG_TRACEPOINTS))]
            {
                $(let _ = || $argument;)*
            }
        }
    };
}

/// Reports what has become of a request to the backend of `dev`.
#[inline(always)]
pub(crate) fn request(
    dev: &xenbus::Device,
    name: &str,
    argument: u64,
    result: &Result,
    latency_us: u64,
) {
    trace!(virtio_xenbus_request(
        dev.as_raw(),
        name.as_ptr().cast::<c_char>(),
        name.len(),
        argument,
        result.map_or_else(Error::to_errno, |()| 0),
        latency_us,
    ));
}

/// The virtqueue that events are about.
#[derive(Clone)]
pub(crate) struct Source {
    dev: ARef<xenbus::Device>,
    queue: u16,
}

impl Source {
    /// Virtqueue `queue` of `dev`.
    pub(crate) fn new(dev: &xenbus::Device, queue: u16) -> Self {
        Self {
            dev: dev.into(),
            queue,
        }
    }

    /// Reports that the backend is notified.
    #[inline(always)]
    pub(super) fn kick(&self) {
        trace!(virtio_xenbus_kick(self.dev.as_raw(), self.queue));
    }

    /// Reports that the backend has notified us.
    #[inline(always)]
    pub(super) fn interrupt(&self) {
        trace!(virtio_xenbus_interrupt(self.dev.as_raw(), self.queue));
    }

    /// Reports which address the device is told for the `length` bytes at `buffer`; [`None`] if
    /// there was no room in the pool.
    #[inline(always)]
    pub(super) fn map(
        &self,
        buffer: usize,
        dma: Option<u64>,
        length: usize,
        direction: bindings::dma_data_direction,
    ) {
        trace!(virtio_xenbus_map(
            self.dev.as_raw(),
            self.queue,
            buffer,
            dma.unwrap_or(0),
            length,
            direction,
            dma.map_or(ENOMEM.to_errno(), |_| 0),
        ));
    }

    /// Reports that `length` bytes were taken back for which the device was told the address
    /// `dma`. `buffer` is where they are, 0 if that is not known any more, or what was wrong.
    #[inline(always)]
    pub(super) fn unmap(
        &self,
        dma: u64,
        buffer: Result<usize>,
        length: usize,
        direction: bindings::dma_data_direction,
    ) {
        trace!(virtio_xenbus_unmap(
            self.dev.as_raw(),
            self.queue,
            buffer.unwrap_or(0),
            dma,
            length,
            direction,
            buffer.map_or_else(Error::to_errno, |_| 0),
        ));
    }
}
