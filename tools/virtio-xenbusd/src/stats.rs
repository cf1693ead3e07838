// SPDX-License-Identifier: GPL-2.0-or-later
//! Counters of one queue.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// One number that grows; written by the queue's worker, read by anyone.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. There is one writer, so it needs no atomic read-modify-write.
    pub fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Relaxed);
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What a queue has done since the frontend connected.
///
/// Requests are those of a disk, packets of a card's receive and transmit queues, and commands of
/// its control queue. The meaning is the guest's: it has got or given these bytes.
#[derive(Debug)]
pub struct Stats {
    /// Whether there is somebody who counts more than events.
    pub all: bool,
    /// Requests done, packets passed on; a segment of many wire packets counts once.
    pub requests: Counter,
    /// Bytes read from the disk, or received, without the virtio header.
    pub to_guest: Counter,
    /// Bytes written to the disk, or sent, without the virtio header.
    pub from_guest: Counter,
    /// Requests answered with an error.
    pub errors: Counter,
    /// Packets not passed on: malformed, too long for the guest's buffers, or refused by the tap.
    pub drops: Counter,
    /// Requests and packets with data that was copied once more: not aligned as the disk needs
    /// it, or received and not into the pool, or for want of buffers.
    pub copied: Counter,
    /// Events from the guest.
    pub kicks: Counter,
    /// Events sent to the guest.
    pub interrupts: Counter,
    /// Buffers that descriptors have named, by kind of address.
    pub pool_buffers: Counter,
    pub grant_buffers: Counter,
    pub machine_buffers: Counter,
    /// Bytes copied from and to granted memory.
    pub grant_copied: Counter,
    /// Frames mapped, and unmapped again.
    pub frames_mapped: Counter,
    pub frames_unmapped: Counter,
    /// Frames of buffers that were mapped already.
    pub frame_hits: Counter,
}

impl Stats {
    /// Nothing yet. With `all`, there is somebody who counts more than events.
    pub fn new(all: bool) -> Self {
        Self {
            all,
            requests: Counter::default(),
            to_guest: Counter::default(),
            from_guest: Counter::default(),
            errors: Counter::default(),
            drops: Counter::default(),
            copied: Counter::default(),
            kicks: Counter::default(),
            interrupts: Counter::default(),
            pool_buffers: Counter::default(),
            grant_buffers: Counter::default(),
            machine_buffers: Counter::default(),
            grant_copied: Counter::default(),
            frames_mapped: Counter::default(),
            frames_unmapped: Counter::default(),
            frame_hits: Counter::default(),
        }
    }
}

impl Default for Stats {
    fn default() -> Self {
        Self::new(true)
    }
}
