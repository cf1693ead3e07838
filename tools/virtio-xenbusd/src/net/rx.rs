// SPDX-License-Identifier: GPL-2.0-or-later
//! Packets from the tap to the guest.
//!
//! The kernel copies a packet from the tap right into the guest's buffers. Only when the buffers
//! at hand are too short does its end go through a buffer of ours, and waits there, without being
//! lost, until the guest makes more of them available.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::mem;

use anyhow::{Context, Result, ensure};
use tap::{IoVec, MAX_PARTS, copy_in};
use vm_memory::VolatileSlice;

use super::vring::{Chain, Vring};
use super::{BATCH_BYTES, BATCH_PACKETS, HEADER, MAX_PACKET};
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

/// Receives packets for one queue.
pub struct Receiver<'m> {
    ring: Vring<'m>,
    tap: &'m tap::Queue,
    stats: &'m Stats,
    mode: Mode,
    spill: VolatileSlice<'m>,
    /// Chains that were taken from the ring and not yet used.
    chains: VecDeque<Chain>,
    /// Their parts, beginning at `start`.
    parts: Vec<IoVec<'m>>,
    start: usize,
    /// Their bytes.
    room: usize,
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
        tap: &'m tap::Queue,
        stats: &'m Stats,
        mode: Mode,
        spill: &'m mut [u8],
    ) -> Self {
        Self {
            ring,
            tap,
            stats,
            mode,
            spill: spill.into(),
            chains: VecDeque::new(),
            parts: Vec::new(),
            start: 0,
            room: 0,
            held: None,
            quiet: 0,
            single: None,
        }
    }

    /// The ring, to publish what was received.
    pub fn ring(&mut self) -> &mut Vring<'m> {
        &mut self.ring
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
                    if self.chains.is_empty() {
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
        while self.room < room && self.chains.len() < usize::from(self.ring.size()) {
            let Some(chain) = self.ring.pop(&mut self.parts)? else {
                break;
            };
            ensure!(
                chain.len >= HEADER,
                "a receive buffer of {} bytes",
                chain.len
            );
            self.chains.push_back(chain);
            self.room += chain.len;
        }
        Ok(())
    }

    /// Takes a packet from the tap; `None` if there is none.
    fn read(&mut self) -> Result<Option<Packet>> {
        // The spill buffer comes after the guest's, in the place of one if there are too many.
        let at = self.parts.len().min(self.start + MAX_PARTS - 1);
        let mut replaced = None;
        let mut direct = self.room;
        match self.parts.get_mut(at) {
            None => self.parts.push(self.spill.into()),
            Some(part) => {
                replaced = Some(mem::replace(part, self.spill.into()));
                direct = self.live().iter().take(MAX_PARTS - 1).map(IoVec::len).sum();
            }
        }
        let result = loop {
            match self
                .tap
                .receive(self.parts.get(self.start..=at).unwrap_or_default())
            {
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                result => break result,
            }
        };
        match replaced {
            None => self.parts.truncate(at),
            Some(part) => {
                if let Some(place) = self.parts.get_mut(at) {
                    *place = part;
                }
            }
        }
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

    /// The parts of the chains at hand.
    fn live(&self) -> &[IoVec<'m>] {
        self.parts.get(self.start..).unwrap_or_default()
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
                && self.chains.len() < usize::from(self.ring.size());
            if !wait {
                self.stats.drops.add(1);
            }
            return Ok(!wait);
        }
        if spilt != 0 {
            self.unspill(packet.direct, spilt)?;
        }
        self.give(packet.len)?;
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

    /// Copies `len` bytes of the spill buffer to byte `offset` of the buffers at hand.
    fn unspill(&self, offset: usize, len: usize) -> Result<()> {
        copy_in(self.live(), offset, self.spill.subslice(0, len)?);
        self.stats.copied.add(1);
        Ok(())
    }

    /// Puts the buffers that hold `len` bytes into the used ring.
    fn give(&mut self, len: usize) -> Result<()> {
        let first = self.start;
        let mut left = len;
        let mut buffers = 0u16;

        while left != 0 {
            let Some(chain) = self.chains.pop_front() else {
                break;
            };
            let written = left.min(chain.len);
            self.ring.stage(chain.head, written)?;
            left -= written;
            buffers += 1;
            self.start += chain.parts;
            self.room -= chain.len;
        }
        let header = self.parts.get(first..).unwrap_or_default();
        copy_in(
            header,
            NUM_BUFFERS,
            buffers.to_le_bytes().as_mut_slice().into(),
        );
        if !self.mode.flags {
            copy_in(header, 0, [0].as_mut_slice().into());
        }
        if self.start == self.parts.len() {
            self.parts.clear();
            self.start = 0;
        } else if self.start > MAX_PARTS {
            self.parts.drain(..self.start);
            self.start = 0;
        }
        Ok(())
    }
}
