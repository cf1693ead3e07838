// SPDX-License-Identifier: GPL-2.0-or-later
//! A driver's side of a split virtqueue, for tests.

pub mod sharing;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use xen::{EVENT_SIZE, Mapping};

use crate::device::{Doorbell, Ring};
use crate::memory::{POOL_START, Pool, Sharing};
use crate::record::Record;
use crate::stats::Stats;
use crate::worker::Alarm;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

const AVAIL: u64 = 0x4000;
const USED: u64 = 0x5000;

/// What the doorbell tells, and is to be given back.
const EVENT: [u8; EVENT_SIZE] = *b"port";

/// Where buffers may begin.
pub const DATA: u64 = 0x10000;

/// A socket and an eventfd in place of an event channel.
pub struct FakeDoorbell {
    kick: UnixStream,
    call: Alarm,
}

impl FakeDoorbell {
    /// One that nobody rings.
    pub fn new() -> Self {
        Self {
            kick: UnixStream::pair().unwrap().0,
            call: Alarm::new().unwrap(),
        }
    }
}

impl Doorbell for FakeDoorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    fn acknowledge(&mut self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.kick.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::ZERO)? == 0 {
            return Ok(false);
        }
        let mut event = [0; EVENT_SIZE];
        self.kick.read_exact(&mut event)?;
        self.kick.write_all(&event)?;
        Ok(true)
    }

    fn notify(&self) -> io::Result<()> {
        self.call.ring();
        Ok(())
    }
}

/// The size that queues are offered with, at least.
pub const LARGEST: u16 = 64;

/// The driver's side of a queue in a pool of 1 MiB.
pub struct Driver {
    pub pool: Pool,
    pub sharing: Sharing,
    pub size: u16,
    kick: UnixStream,
    device: UnixStream,
    call: Alarm,
    pub alarm: Alarm,
    pub stats: Arc<Stats>,
    avail: u16,
}

impl Driver {
    pub fn new(size: u16) -> Self {
        let (kick, device) = UnixStream::pair().unwrap();
        kick.set_nonblocking(true).unwrap();
        device.set_nonblocking(true).unwrap();
        Self {
            pool: Pool::new(Mapping::anonymous(1 << 20).unwrap()),
            sharing: Sharing::Pool,
            size,
            kick,
            device,
            call: Alarm::new().unwrap(),
            alarm: Alarm::new().unwrap(),
            stats: Arc::default(),
            avail: 0,
        }
    }

    /// What the device is given.
    pub fn ring(&self) -> Ring {
        let mut queue = Queue::new(LARGEST.max(self.size)).unwrap();
        queue.try_set_size(self.size).unwrap();
        queue.try_set_desc_table_address(POOL_START).unwrap();
        queue.try_set_avail_ring_address(Self::at(AVAIL)).unwrap();
        queue.try_set_used_ring_address(Self::at(USED)).unwrap();
        queue.set_ready(true);
        assert!(queue.is_valid(&self.pool));
        let doorbell = FakeDoorbell {
            kick: self.device.try_clone().unwrap(),
            call: self.call.clone(),
        };
        Ring {
            index: 0,
            name: "test queue 0".into(),
            queue,
            memory: self.pool.clone(),
            sharing: self.sharing.clone(),
            doorbell: Box::new(doorbell),
            stats: Arc::clone(&self.stats),
            alarm: self.alarm.clone(),
            told: 0,
            taken: Record::volatile(1).taken(0),
            left: Vec::new(),
        }
    }

    /// The address of a byte of the pool.
    pub fn at(offset: u64) -> GuestAddress {
        GuestAddress(POOL_START.0 + offset)
    }

    /// Writes a descriptor of the table at `table` in the pool.
    pub fn descriptor(
        &self,
        table: u64,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.pool
            .write_slice(&bytes, Self::at(table + 16 * u64::from(index)))
            .unwrap();
    }

    /// Writes a chain of `(offset in the pool, bytes, flags)` from descriptor `head` on.
    pub fn chain(&self, head: u16, buffers: &[(u64, u32, u16)]) {
        for (index, &(offset, len, flags)) in (head..).zip(buffers) {
            let last = usize::from(index - head) + 1 == buffers.len();
            let flags = if last { flags } else { flags | NEXT };
            self.descriptor(0, index, Self::at(offset).0, len, flags, index + 1);
        }
    }

    /// Makes a chain available and kicks.
    pub fn submit(&mut self, head: u16) {
        let slot = u64::from(self.avail % self.size);
        self.pool
            .write_obj(head.to_le(), Self::at(AVAIL + 4 + 2 * slot))
            .unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.set_avail(self.avail);
    }

    /// Sets the available ring's index to any value and kicks.
    pub fn set_avail(&self, index: u16) {
        self.pool
            .store(index.to_le(), Self::at(AVAIL + 2), Ordering::Release)
            .unwrap();
        self.ring_doorbell();
    }

    fn ring_doorbell(&self) {
        let mut acknowledged = EVENT;
        while (&self.kick).read_exact(&mut acknowledged).is_ok() {
            assert_eq!(acknowledged, EVENT);
        }
        (&self.kick).write_all(&EVENT).unwrap();
    }

    /// Waits until the device has told of buffers.
    pub fn wait_call(&self) {
        let mut fds = [PollFd::new(self.call.as_fd(), PollFlags::POLLIN)];
        assert_eq!(
            poll(&mut fds, PollTimeout::from(10_000u16)).unwrap(),
            1,
            "no answer"
        );
        self.call.clear();
    }

    /// Waits until `count` buffers have been used; the last one's head and length.
    pub fn wait_used(&self, count: u16) -> (u32, u32) {
        loop {
            let used: u16 = self
                .pool
                .load(Self::at(USED + 2), Ordering::Acquire)
                .unwrap();
            if u16::from_le(used) == count {
                break;
            }
            self.wait_call();
        }
        let slot = u64::from(count.wrapping_sub(1) % self.size);
        let id: u32 = self.pool.read_obj(Self::at(USED + 4 + 8 * slot)).unwrap();
        let len: u32 = self.pool.read_obj(Self::at(USED + 8 + 8 * slot)).unwrap();
        (u32::from_le(id), u32::from_le(len))
    }
}
