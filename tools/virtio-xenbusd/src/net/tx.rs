// SPDX-License-Identifier: GPL-2.0-or-later
//! Packets from the guest to the tap.
//!
//! The kernel copies a packet from the guest's buffers right into one of its own, header
//! included, and checks the header as it does.

use std::io::ErrorKind;

use anyhow::{Context, Result};
use tap::IoVec;

use super::vring::{Chain, Vring};
use super::{BATCH_BYTES, BATCH_PACKETS, HEADER, MAX_PACKET};
use crate::stats::Stats;

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
    tap: &'m tap::Queue,
    stats: &'m Stats,
    /// The parts of the packet that is being sent.
    parts: Vec<IoVec<'m>>,
    /// A packet for which the tap had no space.
    held: Option<Chain>,
}

impl<'m> Sender<'m> {
    /// Sends the packets in `ring` to `tap`.
    pub fn new(ring: Vring<'m>, tap: &'m tap::Queue, stats: &'m Stats) -> Self {
        Self {
            ring,
            tap,
            stats,
            parts: Vec::new(),
            held: None,
        }
    }

    /// The ring, to publish what was sent.
    pub fn ring(&mut self) -> &mut Vring<'m> {
        &mut self.ring
    }

    /// Sends packets until it wants something, or enough for one turn.
    ///
    /// # Errors
    ///
    /// The ring is broken, or the tap is gone.
    pub fn run(&mut self) -> Result<Wants> {
        let mut bytes = 0;

        for _ in 0..BATCH_PACKETS {
            let chain = match self.held.take() {
                Some(chain) => chain,
                None => {
                    self.parts.clear();
                    match self.ring.pop(&mut self.parts)? {
                        Some(chain) => chain,
                        None => return Ok(Wants::Packets),
                    }
                }
            };
            if !self.send(chain)? {
                self.held = Some(chain);
                return Ok(Wants::Space);
            }
            self.ring.stage(chain.head, 0)?;
            bytes += chain.len;
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        Ok(Wants::Turn)
    }

    /// Sends the packet in `parts`, or drops it; `false` if there is no space for now.
    fn send(&self, chain: Chain) -> Result<bool> {
        // The kernel would try to find memory for a packet of any length.
        if !(HEADER..=HEADER + MAX_PACKET).contains(&chain.len) {
            self.stats.drops.add(1);
            return Ok(true);
        }
        loop {
            let Err(error) = self.tap.send(&self.parts) else {
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
