// SPDX-License-Identifier: GPL-2.0-or-later
//! The device's side of a split virtqueue.
//!
//! It does what `virtio_queue::Queue`, which has the setup, does; but it looks up where the ring is
//! once and not with each access. Buffers of one packet are published together, as the
//! specification wants of mergeable buffers; chains come as segments in an array that is used
//! again; a chain that is not whole is an error; and `VIRTQ_AVAIL_F_NO_INTERRUPT` counts.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, Result, bail, ensure};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, VolatileMemory, VolatileSlice};

use crate::device::Doorbell;
use crate::memory::{Memory, Pool, Segment};
use crate::stats::Stats;

const DESCRIPTOR: usize = 16;
const AVAIL_ELEMENT: usize = 2;
const USED_ELEMENT: usize = 8;

/// Offsets in the available and the used ring.
const FLAGS: usize = 0;
const INDEX: usize = 2;
const ELEMENTS: usize = 4;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// A descriptor chain that was taken from a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// What [`Vring::stage`] wants.
    pub head: u16,
    /// Bytes in all.
    pub len: usize,
    /// Of its segments, how many the device reads; it writes those after them.
    pub readable: usize,
}

/// A running split virtqueue.
pub struct Vring<'m> {
    pool: &'m Pool,
    size: u16,
    /// The most descriptors of a chain.
    limit: usize,
    event_idx: bool,
    descriptors: VolatileSlice<'m>,
    avail: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    /// Next element of the available ring to take.
    next_avail: Wrapping<u16>,
    /// How far the driver was seen to have made buffers available.
    avail_index: Wrapping<u16>,
    /// Next element of the used ring to fill.
    next_used: Wrapping<u16>,
    /// The index of which the driver was told last.
    told: Wrapping<u16>,
}

impl<'m> Vring<'m> {
    /// Takes over `queue`, whose chains have at most `limit` descriptors.
    ///
    /// # Errors
    ///
    /// The ring is not inside `pool`.
    pub fn new(queue: &Queue, pool: &'m Pool, limit: usize) -> Result<Self> {
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
            pool,
            size: queue.size(),
            limit,
            event_idx: queue.event_idx_enabled(),
            descriptors: area(queue.desc_table(), DESCRIPTOR * size)?,
            // Two bytes after the elements are for the other side's event index.
            avail: area(queue.avail_ring(), ELEMENTS + AVAIL_ELEMENT * size + 2)?,
            used: area(queue.used_ring(), ELEMENTS + USED_ELEMENT * size + 2)?,
            next_avail: Wrapping(queue.next_avail()),
            avail_index: Wrapping(queue.next_avail()),
            next_used: Wrapping(queue.next_used()),
            told: Wrapping(queue.next_used()),
        })
    }

    /// The number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Takes the next chain, if there is one, and appends what it is made of to `segments`: at
    /// most `limit`, none of them empty, all in `memory`.
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
        self.chain(head, memory, segments).map(Some)
    }

    /// Does what [`Vring::pop`] does, for the chain that begins with descriptor `head`.
    pub fn chain(&self, head: u16, memory: &Memory, segments: &mut Vec<Segment>) -> Result<Chain> {
        self.walk(head, memory, segments)
            .with_context(|| format!("descriptor chain {head}"))
    }

    /// Whether the driver has made buffers available that were not taken.
    ///
    /// # Errors
    ///
    /// As of [`Vring::pop`].
    pub fn look(&mut self) -> Result<bool> {
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
        let mut table = self.descriptors;
        let mut index = head;
        let mut writable = false;
        let mut chain = Chain {
            head,
            len: 0,
            readable: 0,
        };

        // One more than a chain's parts, for the descriptor that refers to an indirect table.
        for seen in 0..=self.limit {
            let [address, rest]: [u64; 2] = table
                .get_ref(DESCRIPTOR * usize::from(index))
                .with_context(|| format!("descriptor {index} is outside its table"))?
                .load();
            let rest = u64::from_le(rest);
            let (len, flags, next) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
            let segment = Segment {
                address: GuestAddress(u64::from_le(address)),
                len: len as usize,
            };

            if flags & DESC_INDIRECT != 0 {
                ensure!(
                    seen == 0 && flags & DESC_NEXT == 0,
                    "an indirect table inside a chain"
                );
                ensure!(
                    len as usize % DESCRIPTOR == 0,
                    "an indirect table of {len} bytes"
                );
                let slice = self.pool.slice(segment);
                table = slice.context("an indirect table outside the pool")?;
                index = 0;
                continue;
            }
            if len != 0 {
                memory.check(segment)?;
                segments.push(segment);
                chain.len += segment.len;
            }
            if flags & DESC_WRITE == 0 {
                ensure!(!writable, "a buffer to read after one to write");
                chain.readable += usize::from(len != 0);
            } else {
                writable = true;
            }
            if flags & DESC_NEXT == 0 {
                return Ok(chain);
            }
            index = next;
        }
        bail!("it has more than {} descriptors, or is a loop", self.limit)
    }

    /// Fills the next element of the used ring: the chain with `head` is used, and `len` bytes
    /// of it are written. The driver sees it after [`Vring::publish`].
    pub fn stage(&mut self, head: u16, len: usize) -> Result<()> {
        let slot = usize::from(self.next_used.0 & (self.size - 1));
        // CAST: No device writes so much.
        let element = u64::from(head) | ((len as u64) << 32);

        self.used
            .get_ref(ELEMENTS + USED_ELEMENT * slot)?
            .store(element.to_le());
        self.next_used += 1;
        Ok(())
    }

    /// How many elements of the used ring have been filled, modulo 2^16.
    pub fn used(&self) -> u16 {
        self.next_used.0
    }

    /// Shows the driver what was staged.
    pub fn show(&mut self) -> Result<()> {
        self.used
            .store(self.next_used.0.to_le(), INDEX, Ordering::Release)?;
        Ok(())
    }

    /// Shows the driver what was staged, and tells it if it wants that.
    pub fn tell(&mut self, doorbell: &dyn Doorbell, stats: &Stats) -> Result<()> {
        if self.publish()? {
            doorbell.notify()?;
            stats.interrupts.add(1);
        }
        Ok(())
    }

    /// Shows the driver what was staged; whether it wants an interrupt for what is new since the
    /// last call.
    fn publish(&mut self) -> Result<bool> {
        let (old, new) = (self.told, self.next_used);

        if old == new {
            return Ok(false);
        }
        self.show()?;
        self.told = new;
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
            self.set_event(self.next_avail)?;
        } else {
            self.used.store(0u16, FLAGS, Ordering::Relaxed)?;
        }
        // The wish is seen before the index is read; the driver does the reverse.
        fence(Ordering::SeqCst);
        self.look()
    }

    /// Asks the driver not to ring.
    pub fn disable_kicks(&mut self) -> Result<()> {
        if self.event_idx {
            // It rings when it adds the buffer of that index, which it has done already.
            self.set_event(self.next_avail - Wrapping(1))
        } else {
            self.used
                .store(USED_NO_NOTIFY.to_le(), FLAGS, Ordering::Relaxed)?;
            Ok(())
        }
    }

    /// Sets the index of the buffer for which the driver shall ring.
    fn set_event(&self, index: Wrapping<u16>) -> Result<()> {
        let event = ELEMENTS + USED_ELEMENT * usize::from(self.size);
        self.used.store(index.0.to_le(), event, Ordering::Relaxed)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
