// SPDX-License-Identifier: GPL-2.0-or-later
//! Packets from the guest to the tap.
//!
//! The kernel copies a packet from the guest's buffers, or our copy of what is granted, right into
//! one of its own, header included, and checks the header as it does.

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{BATCH_BYTES, BATCH_PACKETS, HEADER, MAX_PACKET};
use crate::memory::{Access, Fault, Lent, Memory, Parts, Segment};
use crate::stats::Stats;
use crate::vring::{Chain, Vring};

/// Bytes of the longest packet with its header.
pub const LONGEST: usize = HEADER + MAX_PACKET;

/// What a sender cannot go on without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Nothing: it has done its share and lets others run.
    Turn,
    /// Packets from the guest.
    Packets,
    /// Space in the tap's send buffer.
    Space,
}

/// Sends the packets of one queue.
pub struct Sender<'m> {
    ring: Vring<'m>,
    memory: Memory,
    tap: &'m tap::Queue,
    stats: &'m Stats,
    /// The packet that is being sent.
    segments: Vec<Segment>,
    parts: Parts,
    /// A packet for which the tap had no space.
    held: Option<Chain>,
}

impl<'m> Sender<'m> {
    /// Sends the packets in `ring` to `tap`. Of `memory`, [`LONGEST`] bytes can be lent as copies.
    pub fn new(ring: Vring<'m>, memory: Memory, tap: &'m tap::Queue, stats: &'m Stats) -> Self {
        Self {
            parts: memory.parts(),
            ring,
            memory,
            tap,
            stats,
            segments: Vec::new(),
            held: None,
        }
    }

    /// The ring, to publish what was sent.
    pub fn ring(&mut self) -> &mut Vring<'m> {
        &mut self.ring
    }

    /// Lets go of memory that is not used; when to do so again, if there is some.
    pub fn sweep(&mut self) -> Option<Duration> {
        self.memory.sweep();
        self.memory.until_sweep()
    }

    /// Sends packets until it wants something, or enough for one turn.
    ///
    /// # Errors
    ///
    /// The ring is broken, or the tap is gone.
    pub fn run(&mut self) -> Result<Wants> {
        let mut bytes = 0;

        for _ in 0..BATCH_PACKETS {
            let (chain, lent) = match self.held.take() {
                Some(chain) => (chain, true),
                None => {
                    self.segments.clear();
                    match self.ring.pop(&self.memory, &mut self.segments)? {
                        Some(chain) => (chain, self.lend(chain)?),
                        None => return Ok(Wants::Packets),
                    }
                }
            };
            if !lent {
                self.stats.drops.add(1);
            } else if !self.send(chain)? {
                self.held = Some(chain);
                return Ok(Wants::Space);
            }
            self.parts.clear();
            self.ring.stage(chain.head, 0)?;
            bytes += chain.len;
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        Ok(Wants::Turn)
    }

    /// Puts the packet in `segments` into `parts`; `false` if it is none that can be sent.
    fn lend(&mut self, chain: Chain) -> Result<bool> {
        ensure!(
            chain.readable == self.segments.len(),
            "a packet to send that is to be written"
        );
        // The kernel would try to find memory for a packet of any length.
        if !(HEADER..=LONGEST).contains(&chain.len) {
            return Ok(false);
        }
        let lent = self
            .memory
            .lend(&self.segments, Access::Read, &mut self.parts);
        match lent {
            Ok(lent) => Ok(lent == Lent::Yes),
            Err(Fault::Refused(_)) => Ok(false),
            Err(fault) => Err(fault.into()),
        }
    }

    /// Sends the packet in `parts`, or drops it; `false` if there is no space for now.
    fn send(&self, chain: Chain) -> Result<bool> {
        loop {
            let Err(error) = self.tap.send(self.parts.vectors()) else {
                self.stats.requests.add(1);
                self.stats.from_guest.add((chain.len - HEADER) as u64);
                return Ok(true);
            };
            match (error.kind(), error.raw_os_error()) {
                (ErrorKind::Interrupted, _) => (),
                (ErrorKind::WouldBlock, _) => return Ok(false),
                (_, Some(libc::EBADFD)) => {
                    return Err(error)
                        .with_context(|| format!("sending to tap {}", self.tap.name()));
                }
                // A bad header (EINVAL), the tap is down (EIO), no memory: packets may get lost.
                _ => {
                    self.stats.drops.add(1);
                    return Ok(true);
                }
            }
        }
    }
}
