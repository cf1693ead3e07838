// SPDX-License-Identifier: GPL-2.0-or-later
//! Receive buffers that were taken from the ring and not yet used.

use std::collections::VecDeque;

use anyhow::Result;
use tap::{IoVec, MAX_PARTS, copy_in};
use vm_memory::VolatileSlice;

use super::{HEADER, MAX_PACKET};
use crate::memory::{Fault, Kind, Memory, Parts, Segment, parts};
use crate::vring::Chain;

/// Buffers at hand, in the order of the ring.
pub struct Buffers {
    list: VecDeque<Buffer>,
    /// What they are made of, one after the other.
    segments: VecDeque<Segment>,
    /// How many of them are far.
    far: usize,
    /// The local memory of the others, a part for each segment.
    parts: Parts,
    /// Bytes of all.
    room: usize,
}

/// A chain.
struct Buffer {
    head: u16,
    /// Bytes that a packet may fill.
    len: usize,
    /// How many it is made of.
    segments: usize,
    /// Not all of it is in the pool: it is copied to.
    far: bool,
}

impl Buffers {
    /// None yet.
    pub fn new(memory: &Memory) -> Self {
        Self {
            list: VecDeque::new(),
            segments: VecDeque::new(),
            far: 0,
            parts: memory.parts(),
            room: 0,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Bytes of all.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Adds a chain, which consists of `segments`.
    pub fn add(&mut self, chain: Chain, segments: &[Segment]) -> Result<(), Fault> {
        let len = chain.len.min(HEADER + MAX_PACKET);
        let far = segments.iter().any(|segment| segment.kind() != Kind::Pool);
        let before = self.segments.len();
        for segment in parts(segments, 0, len) {
            if !far {
                self.parts.add_pool(segment)?;
            }
            self.segments.push_back(segment);
        }
        self.list.push_back(Buffer {
            head: chain.head,
            len,
            segments: self.segments.len() - before,
            far,
        });
        self.room += len;
        self.far += usize::from(far);
        Ok(())
    }

    /// Calls `with` with local memory, first of the buffers, as far as there is some, and then
    /// `spill`. How many bytes are the buffers', and what `with` has returned.
    pub fn with_spill<T>(
        &mut self,
        spill: VolatileSlice<'_>,
        with: impl FnOnce(&[IoVec<'_>]) -> T,
    ) -> (usize, T) {
        let near = match self.far {
            0 => self.parts.len(),
            _ => {
                let near = self.list.iter().take_while(|buffer| !buffer.far);
                near.map(|buffer| buffer.segments).sum()
            }
        };
        // The spill buffer is in the place of a part if there are too many.
        let near = near.min(MAX_PARTS - 1);
        let direct = match self.far == 0 && near == self.parts.len() {
            true => self.room,
            false => self.parts.vectors().iter().take(near).map(IoVec::len).sum(),
        };
        (direct, self.parts.with_last(near, spill, with))
    }

    /// Writes `from` at byte `offset` of the buffers, which have room for it.
    pub fn put(
        &mut self,
        offset: usize,
        from: VolatileSlice<'_>,
        memory: &mut Memory,
    ) -> Result<(), Fault> {
        if self.far == 0 {
            copy_in(self.parts.vectors(), offset, from);
            return Ok(());
        }
        memory.scatter(self.segments.make_contiguous(), offset, from)
    }

    /// How many of them a packet of `len` bytes takes.
    pub fn count(&self, len: usize) -> u16 {
        let mut left = len;
        let mut count = 0;
        for buffer in &self.list {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(buffer.len);
            count += 1;
        }
        count
    }

    /// Takes the first `count` away, as filled with `len` bytes: calls `used` with each head and
    /// the bytes written there.
    pub fn take(
        &mut self,
        count: u16,
        len: usize,
        mut used: impl FnMut(u16, usize) -> Result<()>,
    ) -> Result<()> {
        let mut left = len;
        let mut parts = 0;

        for _ in 0..count {
            let Some(buffer) = self.list.pop_front() else {
                break;
            };
            let written = left.min(buffer.len);
            left -= written;
            self.segments.drain(..buffer.segments);
            parts += if buffer.far { 0 } else { buffer.segments };
            self.room -= buffer.len;
            self.far -= usize::from(buffer.far);
            used(buffer.head, written)?;
        }
        self.parts.drop_front(parts);
        Ok(())
    }
}
