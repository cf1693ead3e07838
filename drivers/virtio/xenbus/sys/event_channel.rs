// SPDX-License-Identifier: GPL-2.0

//! Interdomain event channels.
//!
//! C header: [`include/xen/events.h`](srctree/include/xen/events.h)

use super::{
    bindings,
    compat::IRQ_HANDLED,
    xenbus, //
};
use core::marker::PhantomPinned;
use kernel::{
    cpumask::Cpumask,
    error::to_result,
    prelude::*,
    str::CString, //
};

/// What an event was about, as the handler has found.
pub(crate) enum Event {
    /// There was work to do.
    Handled,
    /// There was nothing to do. Xen's event code then delays the channel's next events, so that
    /// a peer cannot keep a CPU busy (XSA-332).
    Spurious,
    /// There will never be anything to do again: the channel stays masked.
    Dead,
}

/// Handles the events of a [`Channel`].
pub(crate) trait Handler: Send + Sync {
    /// Called in hard interrupt context, never on two CPUs at a time.
    fn handle(&self, irq: i32) -> Event;
}

/// Whether the other end of the channel with `port`, one of this domain, is bound. Xen closes it
/// when who has bound it ends. Callable in any context.
pub(crate) fn is_bound(port: u32) -> bool {
    // SAFETY: Xen is asked; a port that is none is not bound.
    unsafe { bindings::vxb_port_is_bound(port) }
}

/// An event channel to another domain, allocated here and bound there.
///
/// # Invariants
///
/// `irq` is bound to the event channel `port` with [`handle_callback::<T>`] as the handler and a
/// pointer to `self` as its cookie.
#[pin_data(PinnedDrop)]
pub(crate) struct Channel<T: Handler> {
    irq: u32,
    port: u32,

    handler: T,

    /// The name that /proc/interrupts shows; the interrupt core keeps a pointer to it.
    _name: CString,

    /// The interrupt core keeps a pointer to `self`.
    #[pin]
    _pin: PhantomPinned,
}

impl<T: Handler> Channel<T> {
    /// Allocates an event channel that the other end of `dev` may bind to. Sleeps.
    pub(crate) fn new<'a>(
        dev: &'a xenbus::Device,
        name: CString,
        handler: T,
    ) -> impl PinInit<Self, Error> + 'a
    where
        T: 'a,
    {
        // INVARIANT: Once `bind()` has succeeded, `irq` and `port` are bound as the type demands.
        try_pin_init!(&this in Self {
            handler,
            port: dev.alloc_event_channel()?,
            irq: {
                // SAFETY: `handler`, which is all that the callback uses, and the name, whose
                // heap memory does not move, are initialised before the events can come; they
                // live until `drop()` has unbound the channel.
                unsafe {
                    bind::<T>(dev, *port, name.as_char_ptr(), this.as_ptr().cast::<c_void>())
                }?
            },
            _name: name,
            _pin: PhantomPinned,
        })
    }

    /// The port in this domain, to be told to the other end.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// What handles the events.
    pub(crate) fn handler(&self) -> &T {
        &self.handler
    }

    /// Sends an event to the other end. Callable in any context.
    pub(crate) fn notify(&self) {
        // CAST: Interrupt numbers are small.
        // SAFETY: By the type invariant `irq` is bound to an event channel.
        unsafe { bindings::notify_remote_via_irq(self.irq as c_int) };
    }

    /// Waits until no handler is running that began before. Sleeps.
    pub(crate) fn synchronize(&self) {
        // SAFETY: By the type invariant `irq` is a bound interrupt.
        unsafe { bindings::synchronize_irq(self.irq) };
    }

    /// Has the events delivered to a CPU out of `mask`.
    pub(crate) fn set_affinity(&self, mask: &Cpumask) -> Result {
        // SAFETY: By the type invariant `irq` is a bound interrupt; the mask is only read.
        to_result(unsafe { bindings::irq_set_affinity(self.irq, mask.as_raw().cast_const()) })
    }
}

#[pinned_drop]
impl<T: Handler> PinnedDrop for Channel<T> {
    fn drop(self: Pin<&mut Self>) {
        let cookie = core::ptr::from_ref(&*self).cast_mut().cast::<c_void>();

        // SAFETY: By the type invariant `irq` was bound with this cookie. This waits for running
        // handlers and closes the port.
        unsafe { bindings::unbind_from_irqhandler(self.irq, cookie) };
    }
}

/// Binds `port` to an interrupt, or frees it.
///
/// # Safety
///
/// `cookie` must point to a [`Channel<T>`] whose `handler` is initialised and lives, like `name`,
/// until the interrupt is unbound.
unsafe fn bind<T: Handler>(
    dev: &xenbus::Device,
    port: u32,
    name: *const c_char,
    cookie: *mut c_void,
) -> Result<u32> {
    // SAFETY: The callback suits the cookie, by the requirement of this function.
    let irq = unsafe {
        bindings::bind_evtchn_to_irqhandler_lateeoi(
            port,
            Some(handle_callback::<T>),
            0,
            name,
            cookie,
        )
    };

    u32::try_from(irq).map_err(|_| {
        // The interrupt owns the port only once it is bound.
        dev.free_event_channel(port);
        Error::from_errno(irq)
    })
}

/// # Safety
///
/// `cookie` must point to a [`Channel<T>`] whose `handler` is initialised.
unsafe extern "C" fn handle_callback<T: Handler>(
    irq: c_int,
    cookie: *mut c_void,
) -> bindings::irqreturn_t {
    let channel = cookie.cast_const().cast::<Channel<T>>();

    // SAFETY: By the requirement of this function. Only the handler is borrowed: the other fields
    // may still be written when the first event comes.
    let handler = unsafe { &*core::ptr::addr_of!((*channel).handler) };

    let flags = match handler.handle(irq) {
        Event::Handled => Some(0),
        Event::Spurious => Some(bindings::XEN_EOI_FLAG_SPURIOUS),
        Event::Dead => None,
    };

    if let Some(flags) = flags {
        // CAST: Interrupt numbers are positive.
        // SAFETY: `irq` is bound as lateeoi, and this is the one EOI of the event.
        unsafe { bindings::xen_irq_lateeoi(irq as u32, flags) };
    }

    // The event has been dealt with in any case; the interrupt core must not take it for one that
    // nobody cared about.
    IRQ_HANDLED
}
