// SPDX-License-Identifier: GPL-2.0

//! Virtqueues, each with an event channel.
//!
//! C header: [`include/linux/virtio_ring.h`](srctree/include/linux/virtio_ring.h)

use super::{
    bindings,
    compat::IRQ_HANDLED,
    event_channel::{
        Channel,
        Event,
        Handler, //
    },
    map::QueueMap,
    trace::Source,
    virtio,
    xenbus, //
};
use core::{
    marker::PhantomPinned,
    ptr::{
        addr_of,
        NonNull, //
    },
};
use kernel::{
    cpumask::Cpumask,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            ordering,
            Atomic, //
        },
        Arc, //
    },
    types::Opaque, //
};

mod give_back;

pub(super) use give_back::{
    give_back,
    Abandoned, //
};

/// The alignment of the used ring in a split virtqueue, in bytes.
const RING_ALIGN: u32 = 64;

/// A virtqueue as its driver has asked for it.
///
/// # Invariants
///
/// The name is NULL or a string; it and the callback are the driver's and stay.
#[repr(transparent)]
pub(crate) struct Request(bindings::virtqueue_info);

impl Request {
    /// What the driver calls the virtqueue; `None` if it does not want it.
    pub(crate) fn name(&self) -> Option<&CStr> {
        if self.0.name.is_null() {
            return None;
        }
        // SAFETY: By the type invariant.
        Some(unsafe { CStr::from_char_ptr(self.0.name) })
    }
}

/// Where the parts of a virtqueue are, as addresses for the device.
pub(crate) struct Areas {
    pub(crate) desc: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
}

/// A virtqueue of the virtio core.
///
/// # Invariants
///
/// `vq` is a virtqueue made by `vring_create_virtqueue_map()` with the token of `map`.
struct Ring {
    vq: NonNull<bindings::virtqueue>,
    map: Arc<QueueMap>,
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; the virtqueue is deleted once, before its map.
        unsafe { bindings::vring_del_virtqueue(self.vq.as_ptr()) };
    }
}

// SAFETY: A virtqueue belongs to no thread.
unsafe impl Send for Ring {}

/// Hands the events of a queue's channel to the virtqueue.
struct Interrupt {
    vq: NonNull<bindings::virtqueue>,
    /// The device is not to be listened to any more.
    deaf: Atomic<bool>,
    /// Events without work since the last one that had some.
    idle: Atomic<u32>,
    /// Events with and without work.
    events: Atomic<u64>,
    /// Events without work.
    spurious: Atomic<u64>,
    source: Source,
}

impl Interrupt {
    fn new(vq: NonNull<bindings::virtqueue>, source: Source) -> Self {
        Self {
            vq,
            deaf: Atomic::new(false),
            idle: Atomic::new(0),
            events: Atomic::new(0),
            spurious: Atomic::new(0),
            source,
        }
    }

    /// Counts one more; only the handler does, which runs on one CPU at a time.
    fn count(counter: &Atomic<u64>) {
        let count = counter.load(ordering::Relaxed);
        counter.store(count.wrapping_add(1), ordering::Relaxed);
    }
}

/// So many events in a row may be without work before the next ones are delayed.
///
/// A driver that polls takes what the device has just announced, so that even an honest device
/// sends an event too many now and then; to have it delayed by a tick would cost throughput.
const MAX_IDLE: u32 = 8;

// SAFETY: A virtqueue belongs to no thread.
unsafe impl Send for Interrupt {}

// SAFETY: The handler is never run on two CPUs at a time.
unsafe impl Sync for Interrupt {}

impl Handler for Interrupt {
    fn handle(&self, irq: i32) -> Event {
        let vq = self.vq.as_ptr();

        // SAFETY: The channel, and with it the handler, goes before the virtqueue.
        let broken = unsafe { bindings::virtqueue_is_broken(vq) };
        if broken || self.deaf.load(ordering::Relaxed) {
            return Event::Dead;
        }

        Self::count(&self.events);
        self.source.interrupt();

        // SAFETY: As above.
        let answer = unsafe { bindings::vring_interrupt(irq, vq.cast()) };
        let worked = answer == IRQ_HANDLED;

        let idle = if worked {
            0
        } else {
            Self::count(&self.spurious);
            self.idle.load(ordering::Relaxed).saturating_add(1)
        };
        self.idle.store(idle, ordering::Relaxed);

        if idle > MAX_IDLE {
            Event::Spurious
        } else {
            Event::Handled
        }
    }
}

/// A virtqueue, its event channel and its mappings.
///
/// # Invariants
///
/// The virtqueue's `priv` field points to `self`.
#[pin_data]
pub(crate) struct Queue {
    // Dropped first, so that no event comes when the ring goes.
    #[pin]
    channel: Channel<Interrupt>,

    ring: Ring,

    index: u16,

    /// Notifications that were sent to the device.
    kicks: Atomic<u64>,

    /// CPUs that the interrupt is meant for, if `has_affinity`.
    #[pin]
    affinity: Opaque<bindings::cpumask>,
    has_affinity: Atomic<bool>,

    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: None of the parts belongs to a thread.
unsafe impl Send for Queue {}

// SAFETY: The virtqueue's functions that are used here may be called by any thread; `affinity` is
// only written by `set_affinity()`, which the virtio core serialises.
unsafe impl Sync for Queue {}

impl Queue {
    /// Makes virtqueue `index` of `dev` with at most `size` entries. Sleeps.
    pub(crate) fn new<T: virtio::Transport>(
        dev: &virtio::Device<T>,
        xenbus: &xenbus::Device,
        index: u16,
        size: u16,
        request: &Request,
        map: Arc<QueueMap>,
    ) -> Result<Pin<KBox<Self>>> {
        // SAFETY: The device is valid; names and callback are the driver's and live as long as
        // the virtqueue; the map does too, as part of `Ring`.
        let vq = unsafe {
            bindings::vring_create_virtqueue_map(
                index.into(),
                size.into(),
                RING_ALIGN,
                dev.as_raw(),
                true,
                true,
                request.0.ctx,
                Some(notify),
                request.0.callback,
                request.0.name,
                map.as_arc_borrow().token(),
            )
        };
        let vq = NonNull::new(vq).ok_or(ENOMEM)?;

        // INVARIANT: Just made.
        let ring = Ring { vq, map };

        // SAFETY: The virtqueue is valid and nobody else uses it yet.
        unsafe { (*vq.as_ptr()).num_max = size.into() };

        let name = match request.name() {
            Some(driver) => CString::try_from_fmt(fmt!("{}-{}", dev.as_ref().name(), driver))?,
            None => return Err(EINVAL),
        };

        let interrupt = Interrupt::new(vq, ring.map.source().clone());
        let queue = KBox::pin_init(
            try_pin_init!(Self {
                channel <- Channel::new(xenbus, name, interrupt),
                ring,
                index,
                kicks: Atomic::new(0),
                affinity <- Opaque::zeroed(),
                has_affinity: Atomic::new(false),
                _pin: PhantomPinned,
            }? Error),
            GFP_KERNEL,
        )?;

        // SAFETY: The virtqueue is valid, and its driver does not have it yet.
        unsafe { (*vq.as_ptr()).priv_ = core::ptr::from_ref(&*queue).cast_mut().cast() };
        Ok(queue)
    }

    /// The queue that a virtqueue of the virtio core belongs to.
    ///
    /// # Safety
    ///
    /// `vq` must have been made by [`Queue::new`] and not have been deleted.
    pub(super) unsafe fn from_raw<'a>(vq: *mut bindings::virtqueue) -> &'a Self {
        // SAFETY: By the type invariant.
        unsafe { &*(*vq).priv_.cast_const().cast() }
    }

    pub(super) fn as_raw(&self) -> *mut bindings::virtqueue {
        self.ring.vq.as_ptr()
    }

    /// The virtqueue's number.
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// The number of entries, which may be less than what was asked for.
    pub(crate) fn size(&self) -> u16 {
        // CAST: The size was at most a `u16` when the virtqueue was made.
        // SAFETY: By the type invariant of `Ring`.
        unsafe { bindings::virtqueue_get_vring_size(self.as_raw()) as u16 }
    }

    /// What the driver calls it.
    pub(crate) fn name(&self) -> &CStr {
        // SAFETY: By the type invariant of `Ring`; the name is the driver's and stays.
        unsafe { CStr::from_char_ptr((*self.as_raw()).name) }
    }

    /// The descriptors that are in use now.
    pub(crate) fn in_use(&self) -> u32 {
        // SAFETY: By the type invariant of `Ring`. The driver may change the field meanwhile: then
        // this is the number of before or after.
        let free = unsafe { addr_of!((*self.as_raw()).num_free).read_volatile() };
        u32::from(self.size()).saturating_sub(free)
    }

    /// The notifications that were sent to the device.
    pub(crate) fn kicks(&self) -> u64 {
        self.kicks.load(ordering::Relaxed)
    }

    /// The events that have come from the device, and those among them without work.
    pub(crate) fn events(&self) -> (u64, u64) {
        let interrupt = self.channel.handler();
        (
            interrupt.events.load(ordering::Relaxed),
            interrupt.spurious.load(ordering::Relaxed),
        )
    }

    /// Its mappings.
    pub(crate) fn map(&self) -> &QueueMap {
        &self.ring.map
    }

    /// The addresses that the device is told.
    pub(crate) fn areas(&self) -> Areas {
        let vq = self.as_raw();

        // SAFETY: By the type invariant of `Ring`.
        unsafe {
            Areas {
                desc: bindings::virtqueue_get_desc_addr(vq),
                driver: bindings::virtqueue_get_avail_addr(vq),
                device: bindings::virtqueue_get_used_addr(vq),
            }
        }
    }

    /// The event channel's port in this domain.
    pub(crate) fn port(&self) -> u32 {
        self.channel.port()
    }

    /// Waits for callbacks that are running. Sleeps.
    pub(crate) fn synchronize(&self) {
        self.channel.synchronize();
    }

    /// Has the virtqueue's callback run on a CPU of `mask`, or on any if there is none.
    ///
    /// Must not be called twice at a time.
    pub(super) fn set_affinity(&self, mask: Option<&Cpumask>) -> Result {
        let Some(mask) = mask else {
            self.has_affinity.store(false, ordering::Relaxed);
            return Ok(());
        };

        self.channel.set_affinity(mask)?;

        // SAFETY: The only writer is this function; C code that reads at the same time gets some
        // mix of two valid masks.
        mask.copy(unsafe { Cpumask::from_raw_mut(self.affinity.get()) });
        self.has_affinity.store(true, ordering::Release);
        Ok(())
    }

    /// The CPUs that were last set.
    pub(super) fn affinity(&self) -> *const bindings::cpumask {
        if self.has_affinity.load(ordering::Acquire) {
            self.affinity.get().cast_const()
        } else {
            core::ptr::null()
        }
    }
}

/// # Safety
///
/// Called by the virtio core with a virtqueue that its driver has, in any context.
unsafe extern "C" fn notify(vq: *mut bindings::virtqueue) -> bool {
    // SAFETY: The driver has the virtqueue only after `Queue::new()`.
    let queue = unsafe { Queue::from_raw(vq) };

    // Beside the hypercall this is nothing.
    queue.kicks.fetch_add(1, ordering::Relaxed);
    queue.map().source().kick();
    queue.channel.notify();
    true
}
