// SPDX-License-Identifier: GPL-2.0

//! The control page: the frontend's access to each of its fields, and its interrupt.
//!
//! Nothing here waits for the backend; [`crate::link`] does.

use crate::{
    state::State,
    sys::{
        bindings::{
            virtio_xenbus_control_page as Page,
            virtio_xenbus_identity,
            virtio_xenbus_queue, //
        },
        compat::smp_rmb,
        completion::Completion,
        event_channel::{
            Event,
            Handler, //
        },
        grant::SharedPages,
        virtio::Features,
        virtqueue::Queue,
        watcher::Watcher, //
    },
    wire::{
        self,
        Generation,
        Op, //
    },
};
use core::mem::offset_of;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            ordering,
            Atomic, //
        },
        Arc, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

/// The control page and what its event channel reports.
#[pin_data]
pub(crate) struct Control {
    page: SharedPages,

    /// Signalled when a request may have been answered.
    #[pin]
    pub(crate) answered: Completion,

    /// Told when configuration space has changed, or when the backend is gone.
    #[pin]
    pub(crate) watcher: Watcher,

    /// The number of the request that is to be answered next, 0 if there is none.
    awaited: Atomic<u32>,

    /// The configuration interrupts that the interrupt handler has seen.
    seen_interrupts: Atomic<u32>,

    /// The backend is not to be talked to any more.
    dead: Atomic<bool>,

    /// The backend has been gone for too long.
    lost: Atomic<bool>,

    /// Requests are under way on a dead link.
    held: Atomic<bool>,
}

impl Control {
    /// Creates an initialiser that shares a zeroed control page with `domain`.
    pub(crate) fn new(domain: u16) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            page: SharedPages::new(domain, 1)?,
            answered <- Completion::new(),
            watcher <- Watcher::new(),
            awaited: Atomic::new(0),
            seen_interrupts: Atomic::new(0),
            dead: Atomic::new(false),
            lost: Atomic::new(false),
            held: Atomic::new(false),
        })
    }

    /// Forgets all that either side has written, for another backend. Nobody else may use the page.
    pub(crate) fn clear(&self) {
        self.page.fill(0, 0, self.page.size());
        self.awaited.store(0, ordering::Relaxed);
        self.seen_interrupts.store(0, ordering::Relaxed);
    }

    /// Grants the page anew, as [`SharedPages::grant_anew`].
    pub(crate) fn grant_anew(&self, domain: u16) -> Result {
        self.page.grant_anew(domain)
    }

    /// The grant reference of the page.
    pub(crate) fn reference(&self) -> Result<u32> {
        self.page.references().next().ok_or(EINVAL)
    }

    /// Whether [`kill`](Self::kill) has been called.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(ordering::Relaxed)
    }

    /// Whether [`lose`](Self::lose) has been called.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(ordering::Relaxed)
    }

    /// Lets the backend count as gone, whatever state it has left; returns whether it did not.
    pub(crate) fn lose(&self) -> bool {
        !self.lost.xchg(true, ordering::Relaxed)
    }

    /// Has nobody wait for the backend from now on, and breaks the virtio device. Sleeps.
    pub(crate) fn kill(&self) {
        self.end(false);
    }

    /// The same if the backend is in state `theirs`: once it is Closed it has let go of all memory.
    pub(crate) fn abandon(&self, theirs: State) {
        self.end(theirs == State::Closed);
    }

    fn end(&self, released: bool) {
        self.dead.store(true, ordering::Relaxed);
        self.answered.complete();
        let all = self.watcher.break_device(released);
        self.held.store(!all, ordering::Relaxed);
    }

    /// Whether requests are under way on a dead link whose memory the backend may still use.
    pub(crate) fn is_held(&self) -> bool {
        self.held.load(ordering::Relaxed)
    }

    /// Ends them if it does not any more, which is so when it has unmapped the control page.
    pub(crate) fn look_again(&self) {
        if self.is_held() && self.page.end() {
            self.end(true);
        }
    }

    /// A copy of what the backend says the device is.
    pub(crate) fn identity(&self) -> Result<virtio_xenbus_identity> {
        self.page
            .read_plain(offset_of!(Page, identity))
            .ok_or(EINVAL)
    }

    /// The status byte that the backend has applied, with what it has added.
    pub(crate) fn device_status(&self) -> u8 {
        // CAST: The status is the lowest byte.
        self.page.load_acquire(offset_of!(Page, device.status)) as u8
    }

    /// Records the status byte.
    pub(crate) fn set_status(&self, status: u8) {
        self.page
            .store_release(offset_of!(Page, driver.status), status.into());
    }

    /// Records the features that the driver has accepted.
    pub(crate) fn set_features(&self, features: Features) {
        let at = offset_of!(Page, driver.features);
        for (i, word) in wire::features_to_wire(features).into_iter().enumerate() {
            // The words are little-endian already; the request that follows is what releases them.
            self.page
                .write(at + i * size_of::<u32>(), &word.to_ne_bytes());
        }
    }

    /// Records the pool's size in pages, and the references of the pages of its directory.
    pub(crate) fn set_pool(&self, pages: u32, directory: impl Iterator<Item = u32>) {
        let at = offset_of!(Page, driver.pool_directory);
        for (i, reference) in directory.enumerate() {
            self.page
                .store_release(at + i * size_of::<u32>(), reference);
        }
        self.page
            .store_release(offset_of!(Page, driver.pool_pages), pages);
    }

    /// Records a virtqueue as enabled.
    pub(crate) fn set_queue(&self, queue: &Queue) {
        let areas = queue.areas();
        let registers = virtio_xenbus_queue {
            desc: areas.desc.to_le(),
            driver: areas.driver.to_le(),
            device: areas.device.to_le(),
            event_channel: queue.port().to_le(),
            size: 0,
            enabled: 0,
        };
        let at = queue_registers(queue.index());
        self.page.write_plain(at, &registers);

        // A backend that starts anew takes over what is enabled, so that comes last. Both fields
        // are written at once, in the order of their addresses.
        self.page.store_release(
            at + offset_of!(virtio_xenbus_queue, size),
            u32::from(queue.size()) | 1 << 16,
        );
    }

    /// Records a virtqueue as not enabled any more.
    pub(crate) fn clear_queue(&self, index: u16) {
        self.page.store_release(
            queue_registers(index) + offset_of!(virtio_xenbus_queue, size),
            0,
        );
    }

    /// The generation of configuration space.
    pub(crate) fn generation(&self) -> u32 {
        self.page
            .load_acquire(offset_of!(Page, device.config_generation))
    }

    /// Copies `to.len()` bytes of configuration space that belong together. Sleeps.
    ///
    /// Errors: [`EINVAL`] if there are not as many bytes, [`EBUSY`] if the backend never stops
    /// changing them.
    pub(crate) fn read_config(&self, offset: usize, to: &mut [u8]) -> Result {
        const TRIES: usize = 100;

        for _ in 0..TRIES {
            if let Some(generation) = Generation::begin(self.generation()) {
                if !self.page.read(offset_of!(Page, config) + offset, to) {
                    return Err(EINVAL);
                }
                // The bytes are read before it is known that they belong together.
                smp_rmb();
                if generation.is_still(self.generation()) {
                    return Ok(());
                }
            }
            fsleep(Delta::from_micros(100));
        }
        Err(EBUSY)
    }

    /// Puts a request into the slot, without telling the backend. The argument is that of
    /// [`Link::request`](crate::link::Link::request).
    pub(crate) fn post(&self, sequence: u32, op: Op, argument: u64, data: &[u8]) -> Result {
        let (queue, offset) = match op {
            Op::QueueEnable | Op::QueueReset => (u32::try_from(argument)?, 0),
            Op::ConfigWrite => (0, u32::try_from(argument)?),
            // The backend finds it among the registers.
            Op::Reset | Op::Status | Op::Features => (0, 0),
        };
        let length = u32::try_from(data.len())?;
        if data.len() > wire::WRITE_SIZE || !self.page.write(offset_of!(Page, request.data), data) {
            return Err(EINVAL);
        }
        let page = &self.page;
        page.store_release(offset_of!(Page, request.op), op.raw());
        page.store_release(offset_of!(Page, request.queue), queue);
        page.store_release(offset_of!(Page, request.offset), offset);
        page.store_release(offset_of!(Page, request.length), length);
        self.awaited.store(sequence, ordering::Relaxed);
        page.store_release(offset_of!(Page, request.seq), sequence);
        Ok(())
    }

    /// The answer to the request with that number, if there is one.
    pub(crate) fn answer(&self, sequence: u32) -> Option<Result> {
        if self.response() != sequence {
            return None;
        }
        let result = self
            .page
            .load_acquire(offset_of!(Page, device.response_result));
        // CAST: The field is signed.
        Some(wire::answer(result as i32))
    }

    fn response(&self) -> u32 {
        self.page
            .load_acquire(offset_of!(Page, device.response_seq))
    }
}

/// Where the registers of a virtqueue are. Those of a queue too many are not in the page.
fn queue_registers(index: u16) -> usize {
    match usize::from(index) {
        index if index < wire::MAX_QUEUES => {
            offset_of!(Page, queues) + index * size_of::<virtio_xenbus_queue>()
        }
        _ => usize::MAX,
    }
}

/// Handles the events of the control channel.
pub(crate) struct ControlInterrupt(pub(crate) Arc<Control>);

impl Handler for ControlInterrupt {
    fn handle(&self, _irq: i32) -> Event {
        let control = &*self.0;
        if control.is_dead() {
            return Event::Dead;
        }

        let mut event = Event::Spurious;

        // What answers nothing is no work: otherwise a backend could keep a CPU busy with it.
        let awaited = control.awaited.load(ordering::Relaxed);
        if awaited != 0 && control.response() == awaited {
            control.awaited.store(0, ordering::Relaxed);
            control.answered.complete();
            event = Event::Handled;
        }

        let interrupts = control
            .page
            .load_acquire(offset_of!(Page, device.config_interrupts));
        if interrupts != control.seen_interrupts.xchg(interrupts, ordering::Relaxed) {
            control.watcher.config_changed();
            event = Event::Handled;
        }
        event
    }
}
