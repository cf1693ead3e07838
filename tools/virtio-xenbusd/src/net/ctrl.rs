// SPDX-License-Identifier: GPL-2.0-or-later
//! Commands of the control queue (virtio 5.1.6.5).

use std::os::fd::AsFd;

use anyhow::Result;
use nix::poll::PollFlags;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};

use super::card::Card;
use super::features;
use super::mac::Mac;
use super::wait;
use crate::device::Ring;
use crate::memory::{Fault, Memory, Needs, Pool, Segment, total};
use crate::stats::Stats;
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
pub fn serve(mut ring: Ring, stop: &Stop, card: &Card, accepted: u64) -> Result<()> {
    let mut memory = Memory::new(&ring.memory, &ring.sharing, Needs::default(), &ring.stats)?;
    while !stop.requested() {
        ring.queue.disable_notification(&ring.memory)?;
        for _ in 0..BATCH {
            let Some(chain) = ring.queue.iter(&ring.memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            let written = answer(chain, &mut memory, card, accepted, &ring.stats);
            ring.queue.add_used(&ring.memory, head, written)?;
        }
        ring.notify()?;
        if !ring.queue.enable_notification(&ring.memory)? {
            wait(
                [stop.as_fd(), ring.doorbell.as_fd()].map(|fd| (fd, PollFlags::POLLIN)),
                memory.until_sweep(),
            )?;
            memory.sweep();
            ring.stats.kicks.add(ring.doorbell.acknowledge()?.into());
        }
    }
    Ok(())
}

/// Carries out the command in `chain`; how many bytes of answer were written.
fn answer(
    chain: DescriptorChain<&Pool>,
    memory: &mut Memory,
    card: &Card,
    accepted: u64,
    stats: &Stats,
) -> u32 {
    let readable = segments(chain.clone().readable(), memory);
    let command = readable.and_then(|segments| read(&segments, memory));
    let done = command.is_ok_and(|bytes| carry_out(&bytes, card, accepted));
    let (ack, count) = match done {
        true => (OK, &stats.requests),
        false => (ERR, &stats.errors),
    };
    count.add(1);
    let writable = segments(chain.writable(), memory);
    let written = writable.and_then(|segments| {
        let mut ack = [ack];
        memory.scatter(&segments, 0, ack.as_mut_slice().into())?;
        Ok(!segments.is_empty())
    });
    u32::from(written.unwrap_or(false))
}

/// What the descriptors name, if all of it is in `memory`.
fn segments(
    descriptors: impl Iterator<Item = Descriptor>,
    memory: &Memory,
) -> Result<Vec<Segment>, Fault> {
    let segments = descriptors.map(|descriptor| Segment {
        address: descriptor.addr(),
        len: descriptor.len() as usize,
    });
    segments
        .filter(|segment| segment.len > 0)
        .map(|segment| memory.check(segment).map(|()| segment))
        .collect()
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
