// SPDX-License-Identifier: GPL-2.0

//! Buffers of a device that is gone are given back to their driver.

use super::{
    bindings,
    Queue, //
};
use crate::{
    address::{
        self,
        Address, //
    },
    used::{
        nothing_written,
        SplitRings, //
    },
};
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::atomic::ordering, //
};

/// How often it is tried, as a device that is not quite gone can spoil the ring once more.
const TRIES: usize = 3;

/// A queue whose driver waits for its buffers, whatever has become of the device.
///
/// # Invariants
///
/// `tokens` has room for as many as the queue has descriptors.
pub(in super::super) struct Abandoned {
    queue: NonNull<Queue>,
    tokens: KVec<NonNull<c_void>>,
}

// SAFETY: A queue belongs to no thread, and tokens are only passed on.
unsafe impl Send for Abandoned {}

impl Abandoned {
    /// Prepares for the end of the device. Sleeps.
    ///
    /// # Safety
    ///
    /// The queue must live as long as the result is used.
    pub(in super::super) unsafe fn new(queue: &Queue) -> Result<Self> {
        // INVARIANT: By the capacity.
        Ok(Self {
            queue: queue.into(),
            tokens: KVec::with_capacity(queue.size().into(), GFP_KERNEL)?,
        })
    }

    fn queue(&self) -> &Queue {
        // SAFETY: By the requirement of `new()`.
        unsafe { self.queue.as_ref() }
    }

    /// Cuts the queue off from the device: no event is handled any more, no buffer mapped, nothing
    /// copied back. Sleeps.
    fn close(&self) {
        let queue = self.queue();
        queue.ring.map.close();
        queue.channel.handler().deaf.store(true, ordering::Relaxed);
        queue.synchronize();
    }

    /// Whether there is something to give back when the device has released it.
    pub(in super::super) fn is_held(&self) -> bool {
        let queue = self.queue();
        queue.in_use() > 0 && queue.ring.map.names_frames
    }

    /// Whether there is something to give back, and the device can do no harm to it: that of
    /// buffers which the device has only been told the place of has said so, if `released`.
    fn is_due(&self, released: bool) -> bool {
        self.queue().in_use() > 0 && (released || !self.is_held())
    }

    /// Gives the driver all its buffers back as if the device had used them and written nothing;
    /// what the driver adds at the same time is refused. Sleeps.
    ///
    /// # Safety
    ///
    /// The virtqueue must be one of those of [`give_back`], and closed, and no operation of the
    /// driver be under way that has not seen that.
    unsafe fn give_back(&mut self) {
        // SAFETY: By the requirement of `new()`; not borrowed from `self`, whose other field is
        // written.
        let queue = unsafe { self.queue.as_ref() };
        let vq = queue.as_raw();

        let stand_in = queue.ring.map.stand_in();

        // The ring does not tell which of its buffers are out, and its own record is nobody
        // else's to read. So all are taken out by their tokens, which also takes their memory
        // from the device, and the tokens are put in again, each with a buffer that does not
        // matter: the last entries of the available ring are theirs then.
        //
        // SAFETY: By the requirement of this function nobody else uses the virtqueue.
        while let Some(token) = NonNull::new(unsafe { bindings::virtqueue_detach_unused_buf(vq) }) {
            // Cannot fail, by the type invariant.
            let _ = self.tokens.push_within_capacity(token);
        }

        // The index up to which the driver has seen used buffers, from memory that the device
        // cannot change.
        //
        // CAST: Split rings have indices of 16 bits.
        //
        // SAFETY: By the requirement of this function nobody else uses the virtqueue.
        let seen = unsafe { bindings::virtqueue_enable_cb_prepare(vq) } as u16;

        // The driver can add again as far as the virtqueue is concerned. But none of its buffers
        // can be mapped, and before they are the ring changes nothing of itself.
        //
        // SAFETY: The virtqueue is valid.
        unsafe { bindings::__virtqueue_unbreak(vq) };

        // There is room for them: no more buffers than there were, each with one byte.
        let mut count = 0_u16;
        for token in self.tokens.drain_all() {
            // SAFETY: The tokens are the driver's own, and each was a buffer of one descriptor at
            // least; the stand-in lives as long as the map.
            let ret = unsafe { bindings::vxb_add_byte(vq, stand_in, token.as_ptr()) };
            if ret == 0 {
                count = count.wrapping_add(1);
            }
        }
        queue.publish_used(seen, count);

        // SAFETY: The virtqueue is valid. No callback is running: the handler does nothing any
        // more.
        unsafe {
            bindings::vxb_ring_interrupt(vq);
            bindings::__virtqueue_break(vq);
        }
    }
}

impl Queue {
    /// Writes the used ring for the `count` buffers that were made available last, the first of
    /// them at index `from`.
    fn publish_used(&self, from: u16, count: u16) {
        let areas = self.areas();
        let (Address::Pool(avail), Address::Pool(used)) =
            (address::decode(areas.driver), address::decode(areas.device))
        else {
            return;
        };
        let size = self.size();
        let rings = SplitRings { avail, used, size };
        let memory = self.ring.map.memory();

        for (avail, used) in rings.places(from, count) {
            let mut head = [0; 2];
            // What a hostile device makes of the head the ring checks.
            memory.read(avail, &mut head);
            memory.write(used, &nothing_written(head));
        }
        let (offset, word) = rings.used_word(from.wrapping_add(count));
        memory.store_release(offset, word);
    }
}

/// Gives the driver of `queues` back what the device has of them. Sleeps.
///
/// # Safety
///
/// The virtqueues must be broken, and of a device with
/// [`driver_waits`](super::super::virtio::Device::driver_waits).
pub(in super::super) unsafe fn give_back(queues: &mut [Abandoned], released: bool) {
    for _ in 0..TRIES {
        let due = || queues.iter().filter(|queue| queue.is_due(released));
        if due().next().is_none() {
            break;
        }
        due().for_each(Abandoned::close);

        // Whoever holds a spinlock is waited for.
        //
        // SAFETY: Called where one may sleep.
        unsafe { bindings::synchronize_rcu() };
        for queue in queues.iter_mut().filter(|queue| queue.is_due(released)) {
            // SAFETY: What was under way when the virtqueue was broken and closed has come to its
            // end: such a driver has a spinlock meanwhile.
            unsafe { queue.give_back() };
        }
    }
}
