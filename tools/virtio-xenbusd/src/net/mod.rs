// SPDX-License-Identifier: GPL-2.0-or-later
//! Network device on a tap interface in a bridge.

mod buffers;
mod card;
mod ctrl;
pub mod features;
mod link;
mod mac;
mod rx;
mod settings;
mod tx;
mod vhost;

#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::card::Card;
pub use self::settings::Settings;
use crate::config::Tuning;
use crate::config_space::ConfigSpace;
use crate::control::RING_FEATURES;
use crate::device::{Device, Resumption, Ring, SharedPool};
use crate::memory::{Memory, Needs};
use crate::modes::Mode;
use crate::record::Kept;
use crate::uring::{Event, Uring};
use crate::vhost::ring_features;
use crate::vring::Vring;
use crate::worker::{Stop, Worker};

/// Bytes of a packet's virtio header, `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;

/// Bytes of the longest packet: an IP packet in an Ethernet frame with a VLAN tag.
const MAX_PACKET: usize = FRAME + 65535;

/// Bytes of an Ethernet header with a VLAN tag.
const FRAME: usize = 18;

/// Packets, and bytes, after which a queue shows the guest what it has done and looks whether it
/// shall stop.
const BATCH_PACKETS: usize = 64;
const BATCH_BYTES: usize = 256 << 10;

/// How long a packet waits for buffers when the guest makes too few available.
const HOLD: Duration = Duration::from_millis(100);

/// Descriptors of the control queue.
const CTRL_SIZE: u16 = 64;

/// Device id of the virtio specification.
const ID: u32 = 1;

/// Opens the device for the guest.
///
/// # Errors
///
/// The text names the setting that cannot be followed, and says why.
pub fn open(settings: &Settings, tuning: Tuning) -> Result<Box<dyn Device>> {
    Ok(Box::new(Net::new(settings, &tuning)?))
}

/// A network card.
struct Net {
    /// Ends before the tap goes, which would be news to it.
    _link: link::Watch,
    card: Arc<Card>,
    offered: u64,
    accepted: u64,
    queue_size: u16,
}

/// What a virtqueue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Receive(u16),
    Transmit(u16),
    Control,
}

/// The role of queue `index` for a guest that has accepted `accepted` on a card of `pairs`.
fn role(index: u16, accepted: u64, pairs: u16) -> Option<Role> {
    // Without MQ the control queue is where the second pair would begin.
    let pairs = if accepted & features::MQ != 0 {
        pairs
    } else {
        1
    };
    match (index / 2, index % 2) {
        (pair, 0) if pair < pairs => Some(Role::Receive(pair)),
        (pair, _) if pair < pairs => Some(Role::Transmit(pair)),
        (pair, 0) if pair == pairs && accepted & features::CTRL_VQ != 0 => Some(Role::Control),
        _ => None,
    }
}

impl Net {
    fn new(settings: &Settings, tuning: &Tuning) -> Result<Self> {
        let card = Arc::new(Card::new(settings, tuning)?);
        let tap = card.tap_name()?.clone();
        let link = link::Watch::start(
            card.name.clone(),
            tap,
            settings.bridge.clone(),
            card.config.clone(),
        )?;
        let mut offered = features::offer(settings, tuning.queues, card.has_uso());
        if let Some(pairs) = &card.vhost {
            offered &= pairs.features() | !features::MRG_RXBUF;
        }
        Ok(Self {
            card,
            offered,
            accepted: 0,
            queue_size: tuning.queue_size,
            _link: link,
        })
    }

    fn pairs(&self) -> u16 {
        self.card.taps.len() as u16
    }

    fn receive_mode(&self) -> rx::Mode {
        let frame = FRAME + usize::from(self.card.mtu.get());
        rx::Mode {
            mergeable: self.accepted & features::MRG_RXBUF != 0,
            flags: self.accepted & features::GUEST_CSUM != 0,
            frame,
            longest: if features::has_segments(self.accepted) {
                MAX_PACKET
            } else {
                frame
            },
        }
    }
}

impl Device for Net {
    fn id(&self) -> u32 {
        ID
    }

    fn describe(&self) -> String {
        let tap = self.card.tap_name().map_or("?", tap::Name::as_str);
        let mac = self.card.config.bytes();
        let mac = mac.first_chunk().copied().and_then(mac::Mac::new);
        let mac = mac.map_or_else(String::new, |mac| mac.to_string());
        let mtu = self.card.mtu.get();
        format!(
            "network card {mac}, MTU {mtu}, on tap {tap} in bridge {}{}",
            self.card.bridge,
            match self.card.vhost {
                Some(_) => ", by vhost-net",
                None => "",
            }
        )
    }

    fn features(&self) -> u128 {
        self.offered.into()
    }

    fn address_modes(&self) -> &[Mode] {
        match self.card.vhost {
            Some(_) => &[Mode::Pool],
            None => &Mode::ALL,
        }
    }

    fn ring_features(&self) -> u128 {
        match &self.card.vhost {
            Some(pairs) => ring_features(pairs.features()),
            None => RING_FEATURES,
        }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![self.queue_size; 2 * usize::from(self.pairs())];
        sizes.push(CTRL_SIZE);
        sizes
    }

    fn queue_name(&self, index: u16) -> String {
        // Before there is a driver, what its queues would be if it took all that is offered.
        let features = match self.accepted {
            0 => self.offered,
            accepted => accepted,
        };
        match role(index, features, self.pairs()) {
            Some(Role::Receive(pair)) => format!("receive {pair}"),
            Some(Role::Transmit(pair)) => format!("transmit {pair}"),
            Some(Role::Control) => "control".into(),
            None => "unused".into(),
        }
    }

    fn config(&self) -> &ConfigSpace {
        &self.card.config
    }

    fn counts(&self, index: u16) -> bool {
        // The control queue, which is the last one, stays here.
        self.card.vhost.is_none() || index >= 2 * self.pairs()
    }

    fn connect(&mut self, pool: &SharedPool) -> Result<()> {
        match &self.card.vhost {
            Some(pairs) => pairs.bind(&pool.pool).context("vhost-net"),
            None => Ok(()),
        }
    }

    fn set_features(&mut self, features: u128) -> Result<(), Errno> {
        // Bits above 63 are none of a network device.
        let accepted = features as u64;
        if let Err(what) = features::check(accepted) {
            log::error!("{}: the guest wants {what}", self.card.name);
            return Err(Errno::EINVAL);
        }
        if let Err(error) = self.card.set_offloads(features::initial_offloads(accepted)) {
            log::error!("{}: {error:#}", self.card.name);
            return Err(Errno::EIO);
        }
        if let Some(pairs) = &self.card.vhost {
            if let Err(error) = pairs.accept(features) {
                log::error!("{}: vhost-net: {error:#}", self.card.name);
                return Err(Errno::EINVAL);
            }
        }
        self.accepted = accepted;
        Ok(())
    }

    fn resume(&mut self, kept: Kept) -> Result<()> {
        self.card.resume(kept)
    }

    fn resumption(&self, _index: u16) -> Resumption {
        Resumption::InOrder
    }

    fn start_queue(&mut self, ring: Ring) -> Result<Worker> {
        let card = Arc::clone(&self.card);
        let accepted = self.accepted;

        match role(ring.index, accepted, self.pairs()) {
            Some(role @ (Role::Receive(pair) | Role::Transmit(pair))) if card.vhost.is_some() => {
                if role == Role::Receive(0) {
                    card.start()?;
                }
                vhost::serve(ring, card, pair)
            }
            Some(Role::Receive(pair)) => {
                if pair == 0 {
                    card.start()?;
                }
                let mode = self.receive_mode();
                Worker::spawn(ring, move |ring, stop| {
                    receive(ring, stop, &card, pair, mode)
                })
            }
            Some(Role::Transmit(pair)) => {
                Worker::spawn(ring, move |ring, stop| transmit(ring, stop, &card, pair))
            }
            Some(Role::Control) => Worker::spawn(ring, move |ring, stop| {
                ctrl::serve(ring, stop, &card, accepted)
            }),
            None => bail!(
                "queue {} does not go with the accepted features",
                ring.index
            ),
        }
    }

    fn reset(&mut self) {
        self.accepted = 0;
        // Nobody else has it when no queue runs.
        let result = match Arc::get_mut(&mut self.card) {
            Some(card) => card.restart(),
            None => self.card.stop(),
        };
        if let Err(error) = result {
            log::error!("{}: {error:#}", self.card.name);
        }
    }
}

/// Serves receive queue `pair`.
fn receive(ring: Ring, stop: &Stop, card: &Card, pair: u16, mode: rx::Mode) -> Result<()> {
    let stats = &Arc::clone(&ring.stats);
    let memory = Memory::new(&ring.memory, &ring.sharing, Needs::default(), stats)?;
    let Ring {
        queue,
        memory: pool,
        mut doorbell,
        ..
    } = ring;
    let tap = card.tap(pair)?;
    let mut spill = rx::spill_buffer();
    let vring = Vring::new(&queue, &pool, tap::MAX_PARTS)?;
    let mut receiver = rx::Receiver::new(vring, memory, tap, stats, mode, &mut spill);

    receiver.ring().disable_kicks()?;
    while !stop.requested() {
        let wants = receiver.run()?;
        receiver.ring().tell(&*doorbell, stats)?;
        let sweep = receiver.sweep();
        match wants {
            rx::Wants::Turn => (),
            rx::Wants::Packet => {
                let fds = [stop.as_fd(), tap.as_fd()].map(|fd| (fd, PollFlags::POLLIN));
                wait(fds, sweep)?;
            }
            rx::Wants::Buffers => {
                if !receiver.ring().enable_kicks()? {
                    let hold = receiver.holds().then_some(HOLD);
                    let fds = [stop.as_fd(), doorbell.as_fd()].map(|fd| (fd, PollFlags::POLLIN));
                    if wait(fds, hold.or(sweep))? == [false, false] && hold.is_some() {
                        receiver.drop_held();
                    }
                    stats.kicks.add(doorbell.acknowledge()?.into());
                }
                receiver.ring().disable_kicks()?;
            }
        }
    }
    Ok(())
}

/// Serves transmit queue `pair`.
fn transmit(ring: Ring, stop: &Stop, card: &Card, pair: u16) -> Result<()> {
    let stats = &Arc::clone(&ring.stats);
    let needs = Needs {
        copies: tx::LONGEST,
        ..Needs::default()
    };
    let memory = Memory::new(&ring.memory, &ring.sharing, needs, stats)?;
    let Ring {
        queue,
        memory: pool,
        doorbell,
        ..
    } = ring;
    let tap = card.tap(pair)?;
    let vring = Vring::new(&queue, &pool, tap::MAX_PARTS)?;
    let mut sender = tx::Sender::new(vring, memory, tap, stats);
    let mut uring = Uring::new(0, stop, doorbell.as_fd()).context("io_uring")?;

    sender.ring().disable_kicks()?;
    while !stop.requested() {
        let wants = sender.run()?;
        sender.ring().tell(&*doorbell, stats)?;
        let sweep = sender.sweep();
        match wants {
            tx::Wants::Turn => (),
            tx::Wants::Space => {
                wait(
                    [
                        (stop.as_fd(), PollFlags::POLLIN),
                        (tap.as_fd(), PollFlags::POLLOUT),
                    ],
                    sweep,
                )?;
            }
            tx::Wants::Packets => {
                if !sender.ring().enable_kicks()? {
                    uring.wait(sweep).context("io_uring")?;
                    while let Some(event) = uring.next_event().context("event channel")? {
                        if event == Event::Doorbell {
                            stats.kicks.add(1);
                            uring.acknowledge()?;
                        }
                    }
                }
                sender.ring().disable_kicks()?;
            }
        }
    }
    Ok(())
}

/// Waits until one of the descriptors is ready, or `timeout`, rounded up to milliseconds; which
/// are ready.
///
/// A descriptor in error counts as ready: whoever uses it gets the error.
fn wait<const N: usize>(
    fds: [(BorrowedFd<'_>, PollFlags); N],
    timeout: Option<Duration>,
) -> Result<[bool; N]> {
    let mut fds = fds.map(|(fd, events)| PollFd::new(fd, events));
    let timeout = match timeout {
        None => PollTimeout::NONE,
        Some(time) => PollTimeout::try_from(time + Duration::from_millis(1))?,
    };

    loop {
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => (),
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(fds.map(|fd| fd.any() != Some(false))),
        }
    }
}
