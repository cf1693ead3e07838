// SPDX-License-Identifier: GPL-2.0-or-later
//! The thread that serves a queue of a block device.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, Result};
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use virtio_queue::QueueT;

use super::aio::{Aio, Io};
use super::disk::{Bounce, CHUNK, Disk};
use super::poll::Poll;
use super::request::{Buffers, Limits, Operation, Refused};
use crate::device::{Doorbell, Ring};
use crate::memory::{Access, Lent, Memory, Needs, Parts, Segment, total};
use crate::record::Taken;
use crate::stats::Stats;
use crate::throttle::Throttle;
use crate::uring::{Event, Uring};
use crate::vring::Vring;
use crate::worker::Stop;

/// The most bytes of requests under way that have to be copied between the guest and the file.
/// What is longer is copied in parts, one request after the other.
pub(super) const COPIES: usize = 2 << 20;

/// Serves requests until told to stop, when all that have been begun are done.
pub fn serve(ring: Ring, stop: &Stop, disk: &Arc<Disk>) -> Result<()> {
    let pool = ring.memory.clone();
    let limit = usize::from(ring.queue.max_size());
    let vring = Vring::new(&ring.queue, &pool, limit)?;
    let mut queue = Queue::new(ring, vring, stop, disk)?;
    let result = queue.run(stop);
    // Requests of a broken ring, too: their memory is about to be unmapped.
    result.and(queue.finish())
}

struct Queue<'m> {
    name: String,
    ring: Vring<'m>,
    /// The requests that were taken from the ring and not finished.
    taken: Taken,
    /// Those of them that an earlier daemon has taken, and that have not been begun yet.
    left: Vec<u16>,
    doorbell: Box<dyn Doorbell>,
    stats: Arc<Stats>,
    memory: Memory,
    disk: Arc<Disk>,
    limits: Limits,
    aio: Aio,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// The request that can begin when another one is done.
    waiting: Option<u16>,
    bounce: Bounce,
    throttle: Throttle,
    poll: Poll,
}

/// A request that is being worked on.
#[derive(Default)]
struct Slot {
    head: u16,
    operation: Option<Operation>,
    buffers: Buffers,
}

impl Slot {
    /// Counts the request, which is answered with `status`.
    fn count(&self, stats: &Stats, status: u8) {
        if u32::from(status) != VIRTIO_BLK_S_OK {
            stats.errors.add(1);
            return;
        }
        stats.requests.add(1);
        match self.operation {
            Some(Operation::Read { .. }) => stats.to_guest.add(total(self.buffers.data()) as u64),
            Some(Operation::Write { .. }) => {
                stats.from_guest.add(total(self.buffers.data()) as u64)
            }
            _ => (),
        }
    }
}

impl<'m> Queue<'m> {
    fn new(ring: Ring, vring: Vring<'m>, stop: &Stop, disk: &Arc<Disk>) -> Result<Self> {
        let size = vring.size();
        let uring = Uring::new(size, stop, ring.doorbell.as_fd()).context("io_uring")?;
        let aio = Aio::new(uring, disk, &ring.memory, size);
        let needs = Needs {
            copies: COPIES,
            pages: disk.is_direct(),
        };
        let memory = Memory::new(&ring.memory, &ring.sharing, needs, &ring.stats)?;
        Ok(Self {
            limits: Limits {
                sectors: disk.sectors(),
                block_size: disk.block_size(),
                readonly: disk.readonly(),
                discard: disk.can_discard(),
            },
            disk: Arc::clone(disk),
            memory,
            aio,
            slots: (0..size).map(|_| Slot::default()).collect(),
            free: (0..size).collect(),
            waiting: None,
            bounce: Bounce::new(),
            throttle: Throttle::new(),
            poll: Poll::new(disk.poll()),
            name: ring.name,
            ring: vring,
            taken: ring.taken,
            left: ring.left,
            doorbell: ring.doorbell,
            stats: ring.stats,
        })
    }

    fn run(&mut self, stop: &Stop) -> Result<()> {
        loop {
            self.begin(stop)?;
            self.memory.sweep();
            let timeout = self.memory.until_sweep();
            if self.aio.busy() > 0 {
                self.aio.wait(timeout).context("io_uring")?;
            } else {
                let sleep = || self.aio.wait(timeout);
                self.poll.learn(sleep).context("io_uring")?;
            }
            if stop.requested() {
                return Ok(());
            }
            self.complete()?;
        }
    }

    /// Waits for what has been begun.
    fn finish(&mut self) -> Result<()> {
        self.resume()?;
        while self.aio.busy() > 0 {
            self.aio.wait(None).context("io_uring")?;
            while let Some(event) = self.aio.next_event().context("io_uring")? {
                if let Event::Io(slot, result) = event {
                    self.finish_io(slot, result)?;
                }
            }
            self.resume()?;
        }
        self.tell()
    }

    /// Tells the driver of what is done, if it wants to know.
    fn tell(&mut self) -> Result<()> {
        self.ring.tell(&*self.doorbell, &self.stats)
    }

    /// Begins the requests that are in the ring.
    ///
    /// A driver that goes on and on with requests that need no I/O does not keep the queue from
    /// being stopped.
    fn begin(&mut self, stop: &Stop) -> Result<()> {
        self.resume()?;
        loop {
            self.ring.disable_kicks()?;
            while let Some(slot) = self.free_slot() {
                if stop.requested() || !self.begin_next(slot)? {
                    self.free.push(slot);
                    break;
                }
            }
            // A driver that takes note at once, and has more, need not ring.
            self.tell()?;
            // Without a free slot, the next completion brings us back here.
            if stop.requested()
                || self.waiting.is_some()
                || self.free.is_empty()
                || !(self.look(stop)? || self.ring.enable_kicks()?)
            {
                return Ok(());
            }
        }
    }

    /// Looks for a request for a while, if nothing else is to be done. The driver does not ring
    /// meanwhile.
    fn look(&mut self, stop: &Stop) -> Result<bool> {
        if self.aio.busy() > 0 {
            return Ok(false);
        }
        let ring = &mut self.ring;
        self.poll.find(|| Ok(stop.requested() || ring.look()?))
    }

    /// A slot for another request, if one may begin.
    fn free_slot(&mut self) -> Option<u16> {
        match self.waiting {
            None => self.free.pop(),
            Some(_) => None,
        }
    }

    /// Begins the request that waits, if there is one and it can.
    fn resume(&mut self) -> Result<()> {
        let Some(index) = self.waiting.take() else {
            return Ok(());
        };
        let slot = self.slots.get(usize::from(index)).context("no such slot")?;
        let operation = slot.operation.context("an empty slot")?;
        self.start(index, operation)
    }

    /// Begins the next request, if there is one, in a free slot.
    fn begin_next(&mut self, index: u16) -> Result<bool> {
        let slot = self
            .slots
            .get_mut(usize::from(index))
            .context("no such slot")?;
        let segments = &mut slot.buffers.segments;
        segments.clear();
        let chain = match self.left.pop() {
            Some(head) => self.ring.chain(head, &self.memory, segments)?,
            None => {
                let Some(chain) = self.ring.pop(&self.memory, segments)? else {
                    return Ok(false);
                };
                self.taken.take(chain.head, self.ring.size())?;
                chain
            }
        };
        slot.head = chain.head;
        slot.buffers.collect(chain)?;
        match slot.buffers.parse(&mut self.memory, &self.limits) {
            Ok(operation) => {
                slot.operation = Some(operation);
                self.start(index, operation)?;
            }
            Err(Refused(status)) => self.answer(index, status, 0)?,
        }
        Ok(true)
    }

    fn start(&mut self, index: u16, operation: Operation) -> Result<()> {
        let (io, access) = match operation {
            Operation::Read { offset } => (Io::Read(offset), Some(Access::Write)),
            Operation::Write { offset } => {
                let durable = !self.disk.writeback();
                (Io::Write { offset, durable }, Some(Access::Read))
            }
            Operation::Flush => (Io::Sync, None),
            Operation::Discard { offset, len } => {
                let mode = PUNCH;
                (Io::Allocate { mode, offset, len }, None)
            }
            Operation::WriteZeroes { offset, len, unmap } => {
                let mode = if unmap { PUNCH } else { ZERO };
                (Io::Allocate { mode, offset, len }, None)
            }
            Operation::GetId => return self.do_at_once(index),
        };
        if let Some(access) = access {
            let slot = self.slots.get(usize::from(index)).context("no such slot")?;
            let parts = self.aio.parts(index)?;
            match self.memory.lend(slot.buffers.data(), access, parts) {
                Ok(Lent::Yes) if suits(&self.disk, parts) => (),
                // Something is lent, and comes back.
                Ok(Lent::Later) if self.aio.busy() > 0 => {
                    self.waiting = Some(index);
                    return Ok(());
                }
                Ok(_) => return self.do_at_once(index),
                Err(fault) => return self.fail(index, &fault.into()),
            }
        }
        match self.aio.start(index, io).context("io_uring")? {
            Some(result) => self.finish_io(index, result),
            None => Ok(()),
        }
    }

    fn complete(&mut self) -> Result<()> {
        while let Some(event) = self.aio.next_event().context("event channel")? {
            match event {
                Event::Io(slot, result) => self.finish_io(slot, result)?,
                Event::Doorbell => {
                    self.stats.kicks.add(1);
                    self.aio.acknowledge()?;
                }
                Event::Stop => (),
            }
        }
        self.tell()
    }

    /// An I/O has completed with `result` bytes or a negative errno value.
    fn finish_io(&mut self, index: u16, result: i32) -> Result<()> {
        let slot = self.slots.get(usize::from(index)).context("no such slot")?;
        let expected = match slot.operation {
            Some(Operation::Read { .. } | Operation::Write { .. }) => total(slot.buffers.data()),
            _ => 0,
        };
        if usize::try_from(result) == Ok(expected) {
            let read = matches!(slot.operation, Some(Operation::Read { .. }));
            let written = if read { expected } else { 0 };
            let parts = self.aio.parts(index)?;
            return match self.memory.settle(slot.buffers.data(), parts, written) {
                Ok(()) => self.answer(index, VIRTIO_BLK_S_OK as u8, written),
                Err(fault) => self.fail(index, &fault.into()),
            };
        }
        let retry = match slot.operation {
            // In part only, or not with this memory: once more, step by step.
            Some(Operation::Read { .. } | Operation::Write { .. }) => true,
            Some(Operation::WriteZeroes { .. }) => result == -libc::EOPNOTSUPP,
            // A hint only.
            Some(Operation::Discard { .. }) if result == -libc::EOPNOTSUPP => {
                return self.answer(index, VIRTIO_BLK_S_OK as u8, 0);
            }
            _ => false,
        };
        if retry {
            return self.do_at_once(index);
        }
        let error = io::Error::from_raw_os_error(result.saturating_neg());
        self.fail(index, &error)
    }

    /// Does what needs a copy of the data, and waits for it.
    fn do_at_once(&mut self, index: u16) -> Result<()> {
        match self.try_at_once(index) {
            Ok(written) => self.answer(index, VIRTIO_BLK_S_OK as u8, written),
            Err(error) => self.fail(index, &error),
        }
    }

    /// Bytes written to the guest's memory.
    fn try_at_once(&mut self, index: u16) -> io::Result<usize> {
        self.aio.parts(index)?.clear();
        let slot = self
            .slots
            .get(usize::from(index))
            .ok_or(io::ErrorKind::InvalidInput)?;
        let segments = slot.buffers.data();
        let memory = &mut self.memory;
        match slot.operation {
            Some(Operation::Read { offset }) => {
                self.stats.copied.add(1);
                let len = total(segments);
                for done in (0..len).step_by(CHUNK) {
                    let chunk = self.bounce.part(len - done);
                    let at = offset + done as u64;
                    self.disk.read(chunk, at)?;
                    memory.scatter(segments, done, chunk.into())?;
                }
                Ok(len)
            }
            Some(Operation::Write { offset }) => {
                self.stats.copied.add(1);
                let len = total(segments);
                for done in (0..len).step_by(CHUNK) {
                    let chunk = self.bounce.part(len - done);
                    memory.gather(segments, done, (&mut *chunk).into())?;
                    let at = offset + done as u64;
                    self.disk.file().write_all_at(chunk, at)?;
                }
                self.disk.settle()?;
                Ok(0)
            }
            Some(Operation::WriteZeroes { offset, len, .. }) => {
                self.disk.write_zeroes(&mut self.bounce, offset, len)?;
                Ok(0)
            }
            Some(Operation::GetId) => {
                let mut serial = *self.disk.serial();
                let len = total(segments).min(serial.len());
                let serial = serial.get_mut(..len).unwrap_or_default();
                memory.scatter(segments, 0, serial.into())?;
                Ok(len)
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Gives a request back to the driver. `written` bytes of its data have been written.
    fn answer(&mut self, index: u16, status: u8, written: usize) -> Result<()> {
        let slot = self
            .slots
            .get_mut(usize::from(index))
            .context("no such slot")?;
        slot.count(&self.stats, status);
        // Nothing of the request is mapped any more when the driver gets it back.
        self.aio.parts(index)?.clear();
        let place = Segment {
            address: slot.buffers.status,
            len: 1,
        };
        let mut status = [status];
        let status = status.as_mut_slice().into();
        self.memory.scatter(&[place], 0, status)?;
        // The status is written, too.
        self.ring.stage(slot.head, written + 1)?;
        // The driver sees it before the record says that it is done: see `record::queue`.
        self.ring.show()?;
        self.taken.finish(slot.head, self.ring.used())?;
        slot.operation = None;
        self.free.push(index);
        Ok(())
    }

    /// Gives a request back to the driver as one that has failed.
    fn fail(&mut self, index: u16, error: &io::Error) -> Result<()> {
        self.report(index, error);
        self.answer(index, VIRTIO_BLK_S_IOERR as u8, 0)
    }

    fn report(&mut self, index: u16, error: &io::Error) {
        let operation = self
            .slots
            .get(usize::from(index))
            .and_then(|slot| slot.operation);
        self.throttle.error(format_args!(
            "{}: {}: {operation:?}: {error}",
            self.name,
            self.disk.path().display()
        ));
    }
}

/// Zeroes that take no space.
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// Zeroes that keep their space.
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// Whether the file can use this memory as it is.
fn suits(disk: &Disk, parts: &Parts) -> bool {
    parts.vectors().iter().all(|part| {
        let start = part.slice().ptr_guard().as_ptr().addr();
        disk.suits(start, part.len())
    })
}
