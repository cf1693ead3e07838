// SPDX-License-Identifier: GPL-2.0-or-later
//! What a kind of device implements, and what it is given to work with.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use anyhow::Result;
use nix::errno::Errno;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::VolatileMemoryError;

use crate::config_space::ConfigSpace;
use crate::control::RING_FEATURES;
use crate::memory::{Pool, Sharing};
use crate::modes::Mode;
use crate::record::{Kept, Taken};
use crate::stats::Stats;
use crate::worker::{Alarm, Worker};

/// The mask of feature `number`.
pub const fn feature(number: u32) -> u128 {
    1 << number
}

/// Device id of a network device.
pub const ID_NET: u32 = 1;

/// Device id of a block device.
pub const ID_BLOCK: u32 = 2;

/// A virtio device.
///
/// It is made when a guest's device is offered and dropped when the guest has closed it. All
/// calls come from one thread.
pub trait Device: Send {
    /// Device id of the virtio specification.
    fn id(&self) -> u32;

    /// What it is, for the log: one line without the guest's name.
    fn describe(&self) -> String;

    /// Offered features of the device itself: bit n is feature n. The transport adds its own.
    fn features(&self) -> u128;

    /// Offered features of the rings, of [`RING_FEATURES`].
    fn ring_features(&self) -> u128 {
        RING_FEATURES
    }

    /// The largest size of each queue, a power of two, at most 32768; 0 for a queue that is not
    /// there. At most 48.
    fn queue_sizes(&self) -> Vec<u16>;

    /// The address modes whose buffers it can use.
    fn address_modes(&self) -> &[Mode] {
        &[Mode::Pool]
    }

    /// What queue `index` is for, with the features that the driver has accepted.
    fn queue_name(&self, index: u16) -> String;

    /// The configuration space, at most 2048 bytes. It may change at any time.
    fn config(&self) -> &ConfigSpace;

    /// The driver writes to the configuration space. The range is inside it.
    ///
    /// A device that takes the value changes [`Device::config`] itself.
    fn write_config(&mut self, offset: usize, data: &[u8]) -> Result<(), Errno> {
        let _ = (offset, data);
        Err(Errno::EINVAL)
    }

    /// The frontend's pool has been mapped; nothing is written to it before.
    fn connect(&mut self, pool: &SharedPool) -> Result<()> {
        let _ = pool;
        Ok(())
    }

    /// The driver has accepted `features`, which are among the offered ones; transport features
    /// included. `EINVAL` if the device cannot work with this set.
    fn set_features(&mut self, features: u128) -> Result<(), Errno>;

    /// How queue `index` goes on after a restart of the daemon.
    fn resumption(&self, index: u16) -> Resumption;

    /// What an earlier daemon kept for the device with [`Kept::set`], and where to keep it from
    /// now on. All is 0 if there was none, or nothing was kept since the driver has reset the
    /// device. Features are set, and no queue runs.
    fn resume(&mut self, kept: Kept) -> Result<()> {
        drop(kept);
        Ok(())
    }

    /// Whether what queue `index` does is counted here: more than events.
    fn counts(&self, index: u16) -> bool {
        let _ = index;
        true
    }

    /// Starts queue `ring.index`, which is one of [`Device::queue_sizes`]. Features are set.
    ///
    /// The queue is served on a thread of its own, see [`Worker::spawn`], until the worker is
    /// told to stop.
    fn start_queue(&mut self, ring: Ring) -> Result<Worker>;

    /// Forgets what the driver has set. All queues have been stopped.
    fn reset(&mut self);

    /// Whether nothing touches the frontend's memory when no queue runs.
    fn is_quiet(&self) -> bool {
        true
    }
}

/// How a queue goes on after a restart of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumption {
    /// Its buffers are used in the order in which they were made available: the ring tells where.
    InOrder,
    /// Its worker keeps [`Ring::taken`].
    Recorded,
    /// Not at all if buffers were under way: nobody knows which.
    Idle,
}

/// A frontend's pool, for those who give it to others.
#[derive(Clone)]
pub struct SharedPool {
    /// It is mapped here.
    pub pool: Pool,
    /// Makes a file of it that another process can map, once.
    pub share: Arc<dyn Fn() -> io::Result<OwnedFd> + Send + Sync>,
}

/// How queue and driver tell each other of new buffers.
pub trait Doorbell: Send {
    /// Readable when the driver has made buffers available: [`xen::EVENT_SIZE`] bytes, which
    /// must be written back for the next time. Neither waits: the file is non-blocking.
    fn as_fd(&self) -> BorrowedFd<'_>;

    /// Reads from the descriptor, if that is possible without waiting, and writes back: makes it
    /// unreadable until the driver rings again. Whether it had rung.
    ///
    /// The driver rings for what it makes available from then on: look for buffers afterwards.
    fn acknowledge(&mut self) -> io::Result<bool>;

    /// Tells the driver that buffers have been used.
    fn notify(&self) -> io::Result<()>;
}

impl Doorbell for xen::EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(self)
    }

    fn acknowledge(&mut self) -> io::Result<bool> {
        xen::EventChannel::acknowledge(self)
    }

    fn notify(&self) -> io::Result<()> {
        xen::EventChannel::notify(self)
    }
}

/// A virtqueue that the driver has enabled.
pub struct Ring {
    /// Which of the device's queues.
    pub index: u16,
    /// Whose queue it is, for the log: guest, device and index.
    pub name: String,
    /// The ring itself. Its areas are inside `memory`. May hold buffers already.
    pub queue: Queue,
    /// Where the rings are and, in every mode, buffers may be.
    pub memory: Pool,
    /// Where buffers may be beside that.
    pub sharing: Sharing,
    /// The event channel of this queue.
    pub doorbell: Box<dyn Doorbell>,
    /// Counters, which the worker writes.
    pub stats: Arc<Stats>,
    /// Rung when the worker ends.
    pub(crate) alarm: Alarm,
    /// Where the used ring ended when the driver was last told.
    pub(crate) told: u16,
    /// The buffers that were taken and not finished.
    pub(crate) taken: Taken,
    /// Those of them that an earlier daemon has taken, and nobody works on yet.
    pub(crate) left: Vec<u16>,
}

impl Ring {
    /// Takes the next buffer that the driver has made available, if there is one: its head.
    ///
    /// # Errors
    ///
    /// The ring is broken.
    pub fn take(&mut self) -> Result<Option<u16>> {
        if let Some(head) = self.left.pop() {
            return Ok(Some(head));
        }
        let Some(chain) = self.queue.iter(&self.memory)?.next() else {
            return Ok(None);
        };
        let head = chain.head_index();
        self.taken.take(head, self.queue.size())?;
        Ok(Some(head))
    }

    /// Gives the buffer with `head` back, `len` bytes of which were written.
    pub fn finish(&mut self, head: u16, len: u32) -> Result<()> {
        // In this order, and the index is published with release: see `record::queue`.
        self.queue.add_used(&self.memory, head, len)?;
        self.taken.finish(head, self.queue.next_used())
    }

    /// Tells the driver of the buffers used since the last call, if it wants to know.
    ///
    /// # Errors
    ///
    /// The ring is broken, or the event channel is.
    pub fn notify(&mut self) -> Result<()> {
        // Without EVENT_IDX, the queue asks for an event whether or not there is news.
        let used = self.queue.next_used();
        if used == self.told {
            return Ok(());
        }
        self.told = used;
        if self.queue.needs_notification(&self.memory)? {
            self.doorbell.notify()?;
            self.stats.interrupts.add(1);
        }
        Ok(())
    }
}

/// The error of an access to the control page that cannot happen: see `ControlPage`.
pub fn page_error(error: VolatileMemoryError) -> Errno {
    log::error!("control page: {error}");
    Errno::EIO
}
