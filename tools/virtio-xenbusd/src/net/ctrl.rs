// SPDX-License-Identifier: GPL-2.0-or-later
//! Commands of the control queue (virtio 5.1.6.5).

use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::Result;
use nix::poll::PollFlags;
use virtio_queue::QueueT;

use super::card::Card;
use super::features;
use super::mac::Mac;
use super::wait;
use crate::device::Ring;
use crate::memory::{Fault, Memory, Needs, Segment, total};
use crate::stats::Stats;
use crate::vring::Vring;
use crate::worker::Stop;

/// Answers to a command.
const OK: u8 = 0;
const ERR: u8 = 1;

/// The longest command that is read: two address tables of 1024 entries and then some.
const MAX_COMMAND: usize = 16 * 1024;

/// Commands that are carried out before others get a turn.
const BATCH: usize = 64;

const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_MQ: u8 = 4;
const CLASS_GUEST_OFFLOADS: u8 = 5;

const RX_PROMISC: u8 = 0;
const RX_ALLMULTI: u8 = 1;
const MAC_TABLE_SET: u8 = 0;
const MAC_ADDR_SET: u8 = 1;
const MQ_VQ_PAIRS_SET: u8 = 0;
const GUEST_OFFLOADS_SET: u8 = 0;

/// Carries out the commands in `ring`, for a guest that has accepted `accepted`.
pub fn serve(ring: Ring, stop: &Stop, card: &Card, accepted: u64) -> Result<()> {
    let stats = &Arc::clone(&ring.stats);
    let mut memory = Memory::new(&ring.memory, &ring.sharing, Needs::default(), stats)?;
    let Ring {
        queue,
        memory: pool,
        mut doorbell,
        ..
    } = ring;
    let mut vring = Vring::new(&queue, &pool, usize::from(queue.max_size()))?;
    let mut segments = Vec::new();
    while !stop.requested() {
        vring.disable_kicks()?;
        for _ in 0..BATCH {
            segments.clear();
            let Some(chain) = vring.pop(&memory, &mut segments)? else {
                break;
            };
            let (readable, writable) = segments.split_at(chain.readable);
            let done = read(readable, &mut memory)
                .is_ok_and(|command| carry_out(&command, card, accepted));
            let written = answer(done, writable, &mut memory, stats).unwrap_or(0);
            vring.stage(chain.head, written)?;
        }
        vring.tell(&*doorbell, stats)?;
        if !vring.enable_kicks()? {
            wait(
                [stop.as_fd(), doorbell.as_fd()].map(|fd| (fd, PollFlags::POLLIN)),
                memory.until_sweep(),
            )?;
            memory.sweep();
            stats.kicks.add(doorbell.acknowledge()?.into());
        }
    }
    Ok(())
}

/// Answers a command; how many bytes were written.
fn answer(
    done: bool,
    writable: &[Segment],
    memory: &mut Memory,
    stats: &Stats,
) -> Result<usize, Fault> {
    let (ack, count) = match done {
        true => (OK, &stats.requests),
        false => (ERR, &stats.errors),
    };
    count.add(1);
    memory.scatter(writable, 0, [ack].as_mut_slice().into())?;
    Ok(total(writable).min(1))
}

/// What `segments` hold; of what is too long, more than [`MAX_COMMAND`] bytes.
fn read(segments: &[Segment], memory: &mut Memory) -> Result<Vec<u8>, Fault> {
    let mut bytes = vec![0; total(segments).min(MAX_COMMAND + 1)];
    memory.gather(segments, 0, bytes.as_mut_slice().into())?;
    Ok(bytes)
}

/// Whether the command was a good one and was done.
fn carry_out(bytes: &[u8], card: &Card, accepted: u64) -> bool {
    let pairs = u16::try_from(card.taps.len()).unwrap_or(u16::MAX);
    let result = match Command::parse(bytes, accepted, pairs) {
        None => return false,
        Some(Command::Filter) => Ok(()),
        Some(Command::SetAddress(mac)) => {
            card.command_mac(mac);
            Ok(())
        }
        Some(Command::SetPairs(pairs)) => card.command_pairs(pairs),
        Some(Command::SetOffloads(offloads)) => card.command_offloads(offloads),
    };
    if let Err(error) = &result {
        log::error!("{}: {error:#}", card.name);
    }
    result.is_ok()
}

/// A well-formed command that the negotiated features allow.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Which packets to receive. The card passes on all that the bridge sends to its port, which
    /// the specification allows, so there is nothing to do.
    Filter,
    /// The card's address.
    SetAddress(Mac),
    /// How many pairs of queues to use.
    SetPairs(u16),
    /// Which offloads to use towards the guest.
    SetOffloads(u64),
}

impl Command {
    /// Reads a command (class, command, data) of a guest that has accepted `accepted` on a device
    /// of `max_pairs`; `None` means [`ERR`].
    pub fn parse(bytes: &[u8], accepted: u64, max_pairs: u16) -> Option<Self> {
        let (&[class, command], data) = bytes.split_first_chunk()?;
        let has = |feature| accepted & feature != 0;
        match (class, command) {
            (CLASS_RX, RX_PROMISC | RX_ALLMULTI) if has(features::CTRL_RX) => {
                matches!(data, [0 | 1]).then_some(Command::Filter)
            }
            (CLASS_MAC, MAC_TABLE_SET) if has(features::CTRL_RX) => {
                tables_valid(data).then_some(Command::Filter)
            }
            (CLASS_MAC, MAC_ADDR_SET) if has(features::CTRL_MAC_ADDR) => {
                Mac::new(data.try_into().ok()?).map(Command::SetAddress)
            }
            (CLASS_MQ, MQ_VQ_PAIRS_SET) if has(features::MQ) => {
                let pairs = u16::from_le_bytes(data.try_into().ok()?);
                (1..=max_pairs)
                    .contains(&pairs)
                    .then_some(Command::SetPairs(pairs))
            }
            (CLASS_GUEST_OFFLOADS, GUEST_OFFLOADS_SET) if has(features::CTRL_GUEST_OFFLOADS) => {
                let offloads = u64::from_le_bytes(data.try_into().ok()?);
                features::offloads_valid(accepted, offloads)
                    .then_some(Command::SetOffloads(offloads))
            }
            _ => None,
        }
    }
}

/// Whether `data` is a table of unicast and one of multicast addresses, each after its length.
fn tables_valid(data: &[u8]) -> bool {
    skip_table(data).and_then(skip_table) == Some(&[])
}

/// What comes after the table of addresses at the start of `data`.
fn skip_table(data: &[u8]) -> Option<&[u8]> {
    let (&entries, rest) = data.split_first_chunk()?;
    let entries = usize::try_from(u32::from_le_bytes(entries)).ok()?;
    rest.get(entries.checked_mul(6)?..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::features::*;

    const ALL: u64 =
        CTRL_VQ | CTRL_RX | CTRL_MAC_ADDR | MQ | CTRL_GUEST_OFFLOADS | GUEST_CSUM | GUEST_TSO4;

    fn parse(bytes: &[u8]) -> Option<Command> {
        Command::parse(bytes, ALL, 4)
    }

    #[test]
    fn reads_what_stock_drivers_send() {
        assert_eq!(parse(&[0, 0, 1]), Some(Command::Filter));
        assert_eq!(parse(&[0, 1, 0]), Some(Command::Filter));
        assert_eq!(parse(&[4, 0, 4, 0]), Some(Command::SetPairs(4)));
        let mac = [0x00, 0x16, 0x3e, 1, 2, 3];
        let set = [[1, 1].as_slice(), &mac].concat();
        assert_eq!(parse(&set), Mac::new(mac).map(Command::SetAddress));
        let tables = [[1, 0, 1, 0, 0, 0].as_slice(), &mac, &[0, 0, 0, 0]].concat();
        assert_eq!(parse(&tables), Some(Command::Filter));
        let offloads = [[5, 0].as_slice(), &(GUEST_CSUM | GUEST_TSO4).to_le_bytes()].concat();
        assert_eq!(
            parse(&offloads),
            Some(Command::SetOffloads(GUEST_CSUM | GUEST_TSO4))
        );
    }

    #[test]
    fn refuses_what_is_malformed() {
        for bad in [
            [].as_slice(),
            &[0],
            &[0, 0],
            &[0, 0, 2],
            &[0, 0, 1, 1],
            &[0, 9, 1],
            &[1, 0],
            &[1, 0, 1, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0],
            &[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
            &[1, 1, 0, 0, 0, 0, 0],
            &[1, 1, 0, 0, 0, 0, 0, 0],
            &[1, 1, 1, 0, 0, 0, 0, 1],
            &[2, 0, 1, 0],
            &[3, 0],
            &[4, 0, 0, 0],
            &[4, 0, 5, 0],
            &[4, 0, 1],
            &[4, 0, 0xff, 0xff],
            &[5, 0, 1],
            &[5, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[5, 0, 0x80, 0, 0, 0, 0, 0, 0, 0],
            &[0xff, 0xff],
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn refuses_what_was_not_negotiated() {
        let none = |bytes: &[u8], without: u64| Command::parse(bytes, ALL & !without, 4).is_none();
        assert!(none(&[0, 0, 1], CTRL_RX));
        assert!(none(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0], CTRL_RX));
        assert!(none(&[1, 1, 0, 0x16, 0x3e, 1, 2, 3], CTRL_MAC_ADDR));
        assert!(none(&[4, 0, 2, 0], MQ));
        assert!(none(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0], CTRL_GUEST_OFFLOADS));
    }
}
