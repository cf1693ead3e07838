// SPDX-License-Identifier: GPL-2.0-or-later
//! Packets from the tap to the guest.
//!
//! The kernel copies a packet from the tap right into the guest's buffers. Only when the buffers
//! at hand are too short does its end go through a buffer of ours, and waits there, without being
//! lost, until the guest makes more of them available. So does all of it when it goes to buffers
//! outside the pool, which are granted or in frames of the guest: they are written to from there,
//! all of a packet's at once, as that costs hypercalls.

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tap::{IoVec, copy_in};
use vm_memory::VolatileSlice;

use super::buffers::Buffers;
use super::{BATCH_BYTES, BATCH_PACKETS, HEADER, MAX_PACKET};
use crate::memory::{Fault, Memory, Segment};
use crate::stats::Stats;
use crate::vring::Vring;

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

/// Receives packets for one queue.
pub struct Receiver<'m> {
    ring: Vring<'m>,
    memory: Memory,
    tap: &'m tap::Queue,
    stats: &'m Stats,
    mode: Mode,
    spill: VolatileSlice<'m>,
    /// Buffers at hand.
    buffers: Buffers,
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
            buffers: Buffers::new(&memory),
            ring,
            memory,
            tap,
            stats,
            mode,
            spill: spill.into(),
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
        for _ in self.buffers.len()..usize::from(self.ring.size()) {
            if self.buffers.room() >= room {
                break;
            }
            self.segments.clear();
            let Some(chain) = self.ring.pop(&self.memory, &mut self.segments)? else {
                break;
            };
            ensure!(chain.readable == 0, "a receive buffer that is to be read");
            ensure!(
                chain.len >= HEADER,
                "a receive buffer of {} bytes",
                chain.len
            );
            self.buffers.add(chain, &self.segments)?;
        }
        Ok(())
    }

    /// Takes a packet from the tap; `None` if there is none.
    fn read(&mut self) -> Result<Option<Packet>> {
        let tap = self.tap;
        let receive = |parts: &[IoVec<'_>]| loop {
            match tap.receive(parts) {
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                result => break result,
            }
        };
        let (direct, result) = self.buffers.with_spill(self.spill, receive);
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
        if spilt >= SPILL || packet.len > self.buffers.room() {
            let wait = spilt < SPILL
                && self.mode.mergeable
                && self.buffers.len() < usize::from(self.ring.size());
            if !wait {
                self.stats.drops.add(1);
            }
            return Ok(!wait);
        }
        let count = self.buffers.count(packet.len);
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

    /// Brings what is spilt of a packet, which takes `count` buffers, to them, and completes its
    /// header.
    fn fill(&mut self, packet: Packet, count: u16) -> Result<(), Fault> {
        let spilt = packet.len - packet.direct;
        let mut count = count.to_le_bytes();
        if packet.direct == 0 {
            // The header is spilt, too, and completed before it is copied.
            let header = self.spill.subslice(0, HEADER).map_err(Fault::internal)?;
            copy_in(&[header.into()], NUM_BUFFERS, count.as_mut_slice().into());
            if !self.mode.flags {
                copy_in(&[header.into()], 0, [0].as_mut_slice().into());
            }
        }
        if spilt != 0 {
            let spilt = self.spill.subslice(0, spilt).map_err(Fault::internal)?;
            self.put(packet.direct, spilt)?;
            self.stats.copied.add(1);
        }
        if packet.direct != 0 {
            self.put(NUM_BUFFERS, count.as_mut_slice().into())?;
            if !self.mode.flags {
                self.put(0, [0].as_mut_slice().into())?;
            }
        }
        Ok(())
    }

    /// Writes `from` at byte `offset` of the buffers at hand.
    fn put(&mut self, offset: usize, from: VolatileSlice<'_>) -> Result<(), Fault> {
        self.buffers.put(offset, from, &mut self.memory)
    }

    /// Puts the first `count` buffers into the used ring, as filled with `len` bytes.
    fn give(&mut self, count: u16, len: usize) -> Result<()> {
        let ring = &mut self.ring;
        self.buffers
            .take(count, len, |head, written| ring.stage(head, written))
    }
}
