// SPDX-License-Identifier: GPL-2.0-or-later
//! A virtqueue that somebody else serves.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use vhost::{VhostBackend, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::event::Event;
use crate::device::Ring;
use crate::memory::Pool;

/// The eventfds of a virtqueue. Clones are the same ones.
#[derive(Clone)]
pub struct Events {
    /// Buffers have been made available.
    pub kick: Event,
    /// Buffers have been used.
    pub call: Event,
    /// The ring is broken.
    pub error: Event,
}

/// A virtqueue, as one tells others of it. Its areas have been checked.
pub struct Vring {
    /// Which of the device's queues.
    pub index: u16,
    /// Its eventfds.
    pub events: Events,
    config: VringConfigData,
    first: u16,
    memory: Pool,
}

impl Vring {
    /// The virtqueue of `ring`.
    pub fn new(ring: &Ring) -> Result<Self> {
        let event = || Event::new().context("cannot make an eventfd");
        Ok(Self {
            index: ring.index,
            events: Events {
                kick: event()?,
                call: event()?,
                error: event()?,
            },
            config: VringConfigData {
                queue_max_size: ring.queue.max_size(),
                queue_size: ring.queue.size(),
                flags: 0,
                desc_table_addr: ring.queue.desc_table(),
                avail_ring_addr: ring.queue.avail_ring(),
                used_ring_addr: ring.queue.used_ring(),
                log_addr: None,
            },
            first: ring.queue.next_avail(),
            memory: ring.memory.clone(),
        })
    }

    /// Where in the available ring to begin.
    pub fn first(&self) -> u16 {
        self.first
    }

    /// Sets the queue up as number `index` of `backend`, which begins at `first` of the available
    /// ring. [`Vring::start`] is left to do.
    pub fn set_up(
        &self,
        backend: &impl VhostBackend,
        index: usize,
        first: u16,
    ) -> vhost::Result<()> {
        backend.set_vring_num(index, self.config.queue_size)?;
        backend.set_vring_base(index, first)?;
        backend.set_vring_addr(index, &self.config)?;
        backend.set_vring_err(index, self.events.error.get())?;
        backend.set_vring_call(index, self.events.call.get())
    }

    /// Gives `backend` the kick, which starts the queue of a vhost-user program.
    pub fn start(&self, backend: &impl VhostBackend, index: usize) -> vhost::Result<()> {
        backend.set_vring_kick(index, self.events.kick.get())
    }

    /// Uses available and used rings at other addresses, from their beginning.
    pub fn set_rings(&mut self, (available, used): (u64, u64)) {
        self.config.avail_ring_addr = available;
        self.config.used_ring_addr = used;
        self.first = 0;
    }

    /// Descriptors.
    pub fn size(&self) -> u16 {
        self.config.queue_size
    }

    /// How far the driver has made buffers available.
    pub fn available(&self) -> Result<u16> {
        ring_index(self.config.avail_ring_addr, &self.memory)
    }

    /// How far buffers have been used.
    pub fn used(&self) -> Result<u16> {
        ring_index(self.config.used_ring_addr, &self.memory)
    }
}

/// The index in a ring at `address`, available or used: both have it at the same place.
pub fn ring_index(address: u64, pool: &Pool) -> Result<u16> {
    const INDEX: u64 = 2;
    let address = GuestAddress(address.checked_add(INDEX).context("no such address")?);
    Ok(u16::from_le(pool.load(address, Ordering::Acquire)?))
}
