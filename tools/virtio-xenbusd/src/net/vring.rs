// SPDX-License-Identifier: GPL-2.0-or-later
//! The device's side of a split virtqueue, for packets.
//!
//! It differs from `virtio_queue::Queue` where packets ask for it: buffers of one packet are
//! published together, as the specification wants of mergeable buffers; chains come as segments
//! in an array that is used again; a chain that is not whole is an error; and
//! `VIRTQ_AVAIL_F_NO_INTERRUPT` counts.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, Result, ensure};
use tap::MAX_PARTS;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, VolatileMemory, VolatileSlice};

use crate::memory::{Access, Memory, Pool, Segment, Table};

const AVAIL_ELEMENT: usize = 2;
const USED_ELEMENT: usize = 8;

/// Offsets in the available and the used ring.
const FLAGS: usize = 0;
const INDEX: usize = 2;
const ELEMENTS: usize = 4;

const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// A descriptor chain that was taken from a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// What [`Vring::stage`] wants.
    pub head: u16,
    /// Bytes in all.
    pub len: usize,
}

/// A running split virtqueue.
pub struct Vring<'m> {
    access: Access,
    size: u16,
    event_idx: bool,
    table: Table<'m>,
    avail: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    /// Next element of the available ring to take.
    next_avail: Wrapping<u16>,
    /// How far the driver was seen to have made buffers available.
    avail_index: Wrapping<u16>,
    /// Next element of the used ring to fill.
    next_used: Wrapping<u16>,
    /// The index that the driver sees.
    used_index: Wrapping<u16>,
}

impl<'m> Vring<'m> {
    /// Takes over `queue`, whose chains are all for `access`.
    ///
    /// # Errors
    ///
    /// The ring is not inside `pool`.
    pub fn new(queue: &Queue, pool: &'m Pool, access: Access) -> Result<Self> {
        let size = usize::from(queue.size());
        ensure!(
            queue.size().is_power_of_two(),
            "queue size {size} is not a power of two"
        );
        let area = |start, len| {
            let segment = Segment {
                address: GuestAddress(start),
                len,
            };
            pool.slice(segment).context("the ring is outside the pool")
        };
        Ok(Self {
            access,
            size: queue.size(),
            event_idx: queue.event_idx_enabled(),
            table: Table::new(queue, pool)?,
            // Two bytes after the elements are for the other side's event index.
            avail: area(queue.avail_ring(), ELEMENTS + AVAIL_ELEMENT * size + 2)?,
            used: area(queue.used_ring(), ELEMENTS + USED_ELEMENT * size + 2)?,
            next_avail: Wrapping(queue.next_avail()),
            avail_index: Wrapping(queue.next_avail()),
            next_used: Wrapping(queue.next_used()),
            used_index: Wrapping(queue.next_used()),
        })
    }

    /// The number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Takes the next chain, if there is one, and appends what it is made of to `segments`: at
    /// most [`MAX_PARTS`], none of them empty, all in `memory`.
    ///
    /// # Errors
    ///
    /// The driver has broken the ring. Nothing more can be done with it.
    pub fn pop(&mut self, memory: &Memory, segments: &mut Vec<Segment>) -> Result<Option<Chain>> {
        if self.next_avail == self.avail_index && !self.look()? {
            return Ok(None);
        }
        let slot = usize::from(self.next_avail.0 & (self.size - 1));
        let head: u16 = self
            .avail
            .load(ELEMENTS + AVAIL_ELEMENT * slot, Ordering::Relaxed)?;
        let head = u16::from_le(head);

        self.next_avail += 1;
        self.walk(head, memory, segments)
            .with_context(|| format!("descriptor chain {head}"))
            .map(Some)
    }

    /// Whether the driver has made buffers available that were not taken.
    fn look(&mut self) -> Result<bool> {
        let index: u16 = self.avail.load(INDEX, Ordering::Acquire)?;
        let index = Wrapping(u16::from_le(index));
        let count = index - self.next_avail;
        ensure!(
            count.0 <= self.size,
            "the available index {index} is {count} ahead in a ring of {}",
            self.size
        );
        self.avail_index = index;
        Ok(count.0 != 0)
    }

    fn walk(&self, head: u16, memory: &Memory, segments: &mut Vec<Segment>) -> Result<Chain> {
        let mut chain = Chain { head, len: 0 };
        for buffer in self.table.chain(head, MAX_PARTS) {
            let (segment, access) = buffer?;
            ensure!(
                access == self.access,
                "a descriptor has the wrong direction"
            );
            if segment.len != 0 {
                memory.check(segment)?;
                segments.push(segment);
                chain.len += segment.len;
            }
        }
        Ok(chain)
    }

    /// Fills the next element of the used ring: the chain with `head` is used, and `len` bytes
    /// of it are written. The driver sees it after [`Vring::publish`].
    pub fn stage(&mut self, head: u16, len: usize) -> Result<()> {
        let slot = usize::from(self.next_used.0 & (self.size - 1));
        // CAST: No device writes more than a packet.
        let element = u64::from(head) | ((len as u64) << 32);

        self.used
            .get_ref(ELEMENTS + USED_ELEMENT * slot)?
            .store(element.to_le());
        self.next_used += 1;
        Ok(())
    }

    /// Shows the driver what was staged; whether it wants an interrupt for that.
    pub fn publish(&mut self) -> Result<bool> {
        let (old, new) = (self.used_index, self.next_used);

        if old == new {
            return Ok(false);
        }
        self.used.store(new.0.to_le(), INDEX, Ordering::Release)?;
        self.used_index = new;
        // The index is seen before the driver's wish is read; the driver does the reverse.
        fence(Ordering::SeqCst);

        if !self.event_idx {
            let flags: u16 = self.avail.load(FLAGS, Ordering::Relaxed)?;
            return Ok(u16::from_le(flags) & AVAIL_NO_INTERRUPT == 0);
        }
        let event = ELEMENTS + AVAIL_ELEMENT * usize::from(self.size);
        let event: u16 = self.avail.load(event, Ordering::Relaxed)?;
        Ok(new - Wrapping(u16::from_le(event)) - Wrapping(1) < new - old)
    }

    /// Asks the driver to ring for buffers after those taken. `true` if there are some now, of
    /// which it may not ring.
    pub fn enable_kicks(&mut self) -> Result<bool> {
        if self.event_idx {
            let event = ELEMENTS + USED_ELEMENT * usize::from(self.size);
            self.used
                .store(self.next_avail.0.to_le(), event, Ordering::Relaxed)?;
        } else {
            self.used.store(0u16, FLAGS, Ordering::Relaxed)?;
        }
        // The wish is seen before the index is read; the driver does the reverse.
        fence(Ordering::SeqCst);
        self.look()
    }

    /// Asks the driver not to ring.
    pub fn disable_kicks(&mut self) -> Result<()> {
        // With event indices it rings once for each wish.
        if !self.event_idx {
            self.used
                .store(USED_NO_NOTIFY.to_le(), FLAGS, Ordering::Relaxed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
