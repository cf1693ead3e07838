// SPDX-License-Identifier: GPL-2.0-or-later
//! Receive buffers that were taken from the ring and not yet used.

use std::collections::VecDeque;

use anyhow::Result;
use tap::{IoVec, MAX_PARTS, copy_in};
use vm_memory::VolatileSlice;

use super::{HEADER, MAX_PACKET};
use crate::memory::{Access, Fault, Lent, Memory, Parts, Segment, parts};
use crate::vring::Chain;

/// Buffers at hand, in the order of the ring.
pub struct Buffers {
    list: VecDeque<Buffer>,
    /// How many of them are far.
    far: usize,
    /// The local memory of the others.
    parts: Parts,
    /// Bytes of all.
    room: usize,
}

/// A chain.
struct Buffer {
    head: u16,
    /// Bytes that a packet may fill.
    len: usize,
    place: Place,
}

/// Where a buffer is.
enum Place {
    /// In local memory of so many parts.
    Near(usize),
    /// Where it must be copied to.
    Far(Box<[Segment]>),
}

impl Buffer {
    /// How many parts of local memory it has.
    fn parts(&self) -> usize {
        match self.place {
            Place::Near(parts) => parts,
            Place::Far(_) => 0,
        }
    }

    fn is_far(&self) -> bool {
        matches!(self.place, Place::Far(_))
    }
}

impl Buffers {
    /// None yet.
    pub fn new(memory: &Memory) -> Self {
        Self {
            list: VecDeque::new(),
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
    ///
    /// # Errors
    ///
    /// It cannot be used, and has not been added.
    pub fn add(
        &mut self,
        chain: Chain,
        segments: &[Segment],
        memory: &mut Memory,
    ) -> Result<(), Fault> {
        const LONGEST: usize = HEADER + MAX_PACKET;

        if chain.len > LONGEST {
            let segments: Vec<_> = parts(segments, 0, LONGEST).collect();
            let len = LONGEST;
            return self.add(Chain { len, ..chain }, &segments, memory);
        }
        let place = match self.lend(segments, memory)? {
            Some(parts) => Place::Near(parts),
            None => Place::Far(segments.into()),
        };
        let Chain { head, len, .. } = chain;
        let buffer = Buffer { head, len, place };
        self.room += len;
        self.far += usize::from(buffer.is_far());
        self.list.push_back(buffer);
        Ok(())
    }

    /// Adds local memory that can be written in the place of `segments`; in how many parts, if
    /// there is some.
    fn lend(&mut self, segments: &[Segment], memory: &mut Memory) -> Result<Option<usize>, Fault> {
        if segments.iter().any(|segment| memory.is_copied(segment)) {
            return Ok(None);
        }
        let before = self.parts.len();
        let lent = memory.lend(segments, Access::Write, &mut self.parts)?;
        Ok((lent == Lent::Yes).then(|| self.parts.len() - before))
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
                let near = self.list.iter().take_while(|buffer| !buffer.is_far());
                near.map(Buffer::parts).sum()
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
        mut offset: usize,
        from: VolatileSlice<'_>,
        memory: &mut Memory,
    ) -> Result<(), Fault> {
        let mut vectors = self.parts.vectors();
        if self.far == 0 {
            copy_in(vectors, offset, from);
            return Ok(());
        }
        let mut done = 0;
        for buffer in &self.list {
            let (own, rest) = vectors.split_at(buffer.parts().min(vectors.len()));
            vectors = rest;
            if offset >= buffer.len {
                offset -= buffer.len;
                continue;
            }
            let len = (buffer.len - offset).min(from.len() - done);
            let part = from.subslice(done, len).map_err(Fault::internal)?;
            match &buffer.place {
                Place::Near(_) => {
                    copy_in(own, offset, part);
                }
                Place::Far(segments) => memory.scatter(segments, offset, part)?,
            }
            done += len;
            if done == from.len() {
                break;
            }
            offset = 0;
        }
        Ok(())
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
            parts += buffer.parts();
            self.room -= buffer.len;
            self.far -= usize::from(buffer.is_far());
            used(buffer.head, written)?;
        }
        // Nothing of them is mapped any more when the used ring is published.
        self.parts.drop_front(parts);
        Ok(())
    }
}
