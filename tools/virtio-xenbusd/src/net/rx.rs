// SPDX-License-Identifier: GPL-2.0-or-later
//! Packets from the tap to the guest.
//!
//! The kernel copies a packet from the tap right into the guest's buffers. Only when the buffers
//! at hand are too short does its end go through a buffer of ours, and waits there, without being
//! lost, until the guest makes more of them available. So it does when it goes to granted buffers:
//! they are written to from there.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tap::{IoVec, MAX_PARTS, copy_in};
use vm_memory::VolatileSlice;

use super::vring::{Chain, Vring};
use super::{BATCH_BYTES, BATCH_PACKETS, HEADER, MAX_PACKET};
use crate::memory::{Access, Fault, Lent, Memory, Parts, Segment, parts};
use crate::stats::Stats;

/// Where in the header the number of buffers stands.
const NUM_BUFFERS: usize = 10;

/// Bytes that a packet may be longer than the buffers at hand: any packet, and one to tell that
/// it was cut.
const SPILL: usize = HEADER + MAX_PACKET + 1;

/// Packets of one frame after which the next one is taken for such, and gets buffers for no more:
/// each buffer costs the kernel some work, used or not. A longer one just goes through the spill
/// buffer.
const QUIET: u32 = 64;

/// In a row of turns of one packet each, one out of so many looks for a second packet before it
/// says that it wants one: what asks and waits for the answer has but one packet under way, and a
/// stream is found out soon.
const SINGLE: u32 = 8;

/// What a receiver cannot go on without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Nothing: it has done its share and lets others run.
    Turn,
    /// A packet in the tap.
    Packet,
    /// Buffers from the guest.
    Buffers,
}

/// What the guest has negotiated, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// A packet may take several buffers.
    pub mergeable: bool,
    /// The guest reads the flags in a packet's header.
    pub flags: bool,
    /// Bytes of the longest frame.
    pub frame: usize,
    /// Bytes of the longest packet: of `frame` or, for segments, [`MAX_PACKET`].
    pub longest: usize,
}

/// A packet that was taken from the tap.
#[derive(Clone, Copy, Debug)]
struct Packet {
    /// Bytes of header and packet.
    len: usize,
    /// How many of them are in the guest's buffers; the others are in the spill buffer.
    direct: usize,
}

/// A chain that was taken from the ring and not yet used.
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

/// Receives packets for one queue.
pub struct Receiver<'m> {
    ring: Vring<'m>,
    memory: Memory,
    tap: &'m tap::Queue,
    stats: &'m Stats,
    mode: Mode,
    spill: VolatileSlice<'m>,
    /// Buffers at hand.
    buffers: VecDeque<Buffer>,
    /// How many of them are far.
    far: usize,
    /// The local memory of the others.
    parts: Parts,
    /// Bytes of all.
    room: usize,
    /// The chain that was taken last.
    segments: Vec<Segment>,
    /// A packet for which there are too few buffers.
    held: Option<Packet>,
    /// Packets since the last one that was longer than a frame, up to [`QUIET`].
    quiet: u32,
    /// Turns of one packet since one that looked for a second and found none, if there was.
    single: Option<u32>,
}

/// Memory for the `spill` of [`Receiver::new`].
pub fn spill_buffer() -> Vec<u8> {
    vec![0; SPILL]
}

impl<'m> Receiver<'m> {
    /// Receives from `tap` into the buffers of `ring`.
    pub fn new(
        ring: Vring<'m>,
        memory: Memory,
        tap: &'m tap::Queue,
        stats: &'m Stats,
        mode: Mode,
        spill: &'m mut [u8],
    ) -> Self {
        Self {
            parts: memory.parts(),
            ring,
            memory,
            tap,
            stats,
            mode,
            spill: spill.into(),
            buffers: VecDeque::new(),
            far: 0,
            room: 0,
            segments: Vec::new(),
            held: None,
            quiet: 0,
            single: None,
        }
    }

    /// The ring, to publish what was received.
    pub fn ring(&mut self) -> &mut Vring<'m> {
        &mut self.ring
    }

    /// Lets go of memory that is not used; when to do so again, if there is some.
    pub fn sweep(&mut self) -> Option<Duration> {
        self.memory.sweep();
        self.memory.until_sweep()
    }

    /// Drops the packet that waits for buffers, if there is one.
    ///
    /// A guest may make buffers available only when it has got a packet.
    pub fn drop_held(&mut self) {
        if self.held.take().is_some() {
            self.stats.drops.add(1);
        }
    }

    /// Whether a packet waits for buffers.
    pub fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// Receives packets until it wants something, or there are enough for one turn.
    ///
    /// # Errors
    ///
    /// The ring is broken, or the tap is gone.
    pub fn run(&mut self) -> Result<Wants> {
        let mut bytes = 0;

        for count in 0..BATCH_PACKETS {
            if count == 1 && self.ends_after_one() {
                return Ok(Wants::Packet);
            }
            let packet = match self.held.take() {
                Some(packet) => packet,
                None => {
                    self.collect(self.window())?;
                    if self.buffers.is_empty() {
                        return Ok(Wants::Buffers);
                    }
                    match self.read()? {
                        Some(packet) => packet,
                        None => {
                            self.single = match count {
                                0 => self.single,
                                1 => Some(0),
                                _ => None,
                            };
                            return Ok(Wants::Packet);
                        }
                    }
                }
            };
            if !self.deliver(packet)? {
                self.held = Some(packet);
                return Ok(Wants::Buffers);
            }
            bytes += packet.len;
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        Ok(Wants::Turn)
    }

    /// Whether to take for granted that the tap has no second packet.
    fn ends_after_one(&mut self) -> bool {
        match &mut self.single {
            Some(turns) if *turns + 1 < SINGLE => {
                *turns += 1;
                true
            }
            _ => false,
        }
    }

    /// How many bytes of buffers to have at hand for the next packet.
    fn window(&self) -> usize {
        match self.mode.mergeable {
            false => 1,
            true if self.quiet < QUIET => HEADER + self.mode.longest,
            true => HEADER + self.mode.frame,
        }
    }

    /// Takes buffers from the ring until there are `room` bytes or no more buffers.
    fn collect(&mut self, room: usize) -> Result<()> {
        // Those that cannot be used count, too: the guest does not decide how long this takes.
        for _ in self.buffers.len()..usize::from(self.ring.size()) {
            if self.room >= room {
                break;
            }
            self.segments.clear();
            let Some(chain) = self.ring.pop(&self.memory, &mut self.segments)? else {
                break;
            };
            ensure!(
                chain.len >= HEADER,
                "a receive buffer of {} bytes",
                chain.len
            );
            self.take(chain)?;
        }
        Ok(())
    }

    /// Adds the chain in `segments` to the buffers at hand.
    fn take(&mut self, chain: Chain) -> Result<()> {
        const LONGEST: usize = HEADER + MAX_PACKET;

        if chain.len > LONGEST {
            self.segments = parts(&self.segments, 0, LONGEST).collect();
        }
        let before = self.parts.len();
        let place = match self.lend() {
            Ok(Lent::Yes) => Place::Near(self.parts.len() - before),
            Ok(_) => {
                self.far += 1;
                Place::Far(self.segments.as_slice().into())
            }
            // No packet can be put there. An empty one is what the driver throws away.
            Err(Fault::Refused(_)) => {
                self.stats.drops.add(1);
                return self.ring.stage(chain.head, 0);
            }
            Err(fault) => return Err(fault.into()),
        };
        let len = chain.len.min(LONGEST);
        self.room += len;
        let head = chain.head;
        self.buffers.push_back(Buffer { head, len, place });
        Ok(())
    }

    /// Adds local memory for `segments`, if they can be written there.
    fn lend(&mut self) -> Result<Lent, Fault> {
        let mut segments = self.segments.iter();
        if segments.any(|segment| self.memory.is_copied(segment)) {
            return Ok(Lent::Never);
        }
        self.memory
            .lend(&self.segments, Access::Write, &mut self.parts)
    }

    /// Takes a packet from the tap; `None` if there is none.
    fn read(&mut self) -> Result<Option<Packet>> {
        let near = match self.far {
            0 => self.parts.len(),
            _ => {
                let near = self.buffers.iter().take_while(|buffer| !buffer.is_far());
                near.map(Buffer::parts).sum()
            }
        };
        // The spill buffer comes after the guest's, in the place of one if there are too many.
        let near = near.min(MAX_PARTS - 1);
        let direct: usize = match near == self.parts.len() && self.far == 0 {
            true => self.room,
            false => self.parts.vectors().iter().take(near).map(IoVec::len).sum(),
        };
        let tap = self.tap;
        let result = self.parts.with_last(near, self.spill, |vectors| {
            loop {
                match tap.receive(vectors) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => (),
                    result => break result,
                }
            }
        });
        match result {
            Ok(len) => Ok(Some(Packet {
                len,
                direct: direct.min(len),
            })),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("receiving from tap {}", self.tap.name()))
            }
        }
    }

    /// Gives a packet to the guest, or drops it; `false` if there are too few buffers for now.
    fn deliver(&mut self, packet: Packet) -> Result<bool> {
        let spilt = packet.len - packet.direct;

        if self.mode.mergeable {
            self.collect(packet.len)?;
        }
        if spilt >= SPILL || packet.len > self.room {
            let wait = spilt < SPILL
                && self.mode.mergeable
                && self.buffers.len() < usize::from(self.ring.size());
            if !wait {
                self.stats.drops.add(1);
            }
            return Ok(!wait);
        }
        let count = self.count(packet.len);
        match self.fill(packet, count) {
            Ok(()) => self.give(count, packet.len)?,
            Err(Fault::Refused(_)) => {
                self.stats.drops.add(1);
                self.give(count, 0)?;
                return Ok(true);
            }
            Err(fault) => return Err(fault.into()),
        }
        self.quiet = match packet.len > HEADER + self.mode.frame {
            true => 0,
            false => QUIET.min(self.quiet + 1),
        };
        self.stats.requests.add(1);
        self.stats
            .to_guest
            .add(packet.len.saturating_sub(HEADER) as u64);
        Ok(true)
    }

    /// How many buffers a packet of `len` bytes takes.
    fn count(&self, len: usize) -> u16 {
        let mut left = len;
        let mut count = 0;
        for buffer in &self.buffers {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(buffer.len);
            count += 1;
        }
        count
    }

    /// Brings what is spilt of a packet, which takes `count` buffers, to them, and completes its
    /// header.
    fn fill(&mut self, packet: Packet, count: u16) -> Result<(), Fault> {
        let spilt = packet.len - packet.direct;
        if spilt != 0 {
            let spilt = self.spill.subslice(0, spilt).map_err(Fault::internal)?;
            self.put(packet.direct, spilt)?;
            self.stats.copied.add(1);
        }
        self.put(NUM_BUFFERS, count.to_le_bytes().as_mut_slice().into())?;
        if !self.mode.flags {
            self.put(0, [0].as_mut_slice().into())?;
        }
        Ok(())
    }

    /// Writes `from` at byte `offset` of the buffers at hand, which have room for it.
    fn put(&mut self, mut offset: usize, from: VolatileSlice<'_>) -> Result<(), Fault> {
        if self.far == 0 {
            copy_in(self.parts.vectors(), offset, from);
            return Ok(());
        }
        let mut vectors = self.parts.vectors();
        let mut done = 0;
        for buffer in &self.buffers {
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
                Place::Far(segments) => self.memory.scatter(segments, offset, part)?,
            }
            done += len;
            if done == from.len() {
                break;
            }
            offset = 0;
        }
        Ok(())
    }

    /// Puts the first `count` buffers into the used ring, as filled with `len` bytes.
    fn give(&mut self, count: u16, len: usize) -> Result<()> {
        let mut left = len;
        let mut parts = 0;

        for buffer in self.buffers.drain(..usize::from(count)) {
            let written = left.min(buffer.len);
            self.ring.stage(buffer.head, written)?;
            left -= written;
            parts += buffer.parts();
            self.room -= buffer.len;
            self.far -= usize::from(buffer.is_far());
        }
        self.parts.drop_front(parts);
        Ok(())
    }
}
