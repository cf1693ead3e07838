// SPDX-License-Identifier: GPL-2.0-or-later
//! What the queues of a card share.

use std::fs;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use tap::{Links, Name};

use super::mac::Mac;
use super::settings::{Mtu, Settings};
use super::vhost::Pairs;
use super::{HEADER, features};
use crate::config::Tuning;
use crate::config_space::ConfigSpace;
use crate::record::Kept;

/// Where in the configuration space the address is.
const CONFIG_MAC: usize = 0;

/// What a bridge port has that must not be the one whose address the bridge takes.
const PORT_ADDRESS: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];

/// The tap and the state of a card.
#[derive(Debug)]
pub struct Card {
    /// Guest, type and number of the device, for the log.
    pub name: String,
    /// One for each pair.
    pub taps: Vec<tap::Queue>,
    /// The kernel's part, which passes packets on if it is there.
    pub vhost: Option<Pairs>,
    /// The card's `virtio_net_config`.
    pub config: ConfigSpace,
    /// The bridge that the tap is plugged into.
    pub bridge: Name,
    /// The MTU that the card was made with.
    pub mtu: Mtu,
    /// The pairs that are in use; their tap queues are attached.
    pairs: Mutex<u16>,
    /// What the driver has asked for by commands.
    kept: Mutex<Option<Kept>>,
}

/// Where what commands have set is kept for the next daemon, each with a bit that says so.
const KEPT_PAIRS: usize = 0;
const KEPT_OFFLOADS: usize = 1;
const KEPT_MAC: usize = 2;
const KEPT: u64 = 1 << 63;

impl Card {
    /// Makes the tap and puts it into its bridge.
    ///
    /// # Errors
    ///
    /// The text names what of the settings or of the system is wrong.
    pub fn new(settings: &Settings, tuning: &Tuning) -> Result<Self> {
        let bridge = &settings.bridge;
        let name = tap_name(tuning)?;
        let links = Links::new()?;
        let bridge_mtu = links.mtu(bridge).with_context(|| {
            format!("bridge {bridge:?} is not there: create it, or name another as `bridge`")
        })?;
        let mtu = settings.mtu.unwrap_or_else(|| Mtu::nearest(bridge_mtu));
        if u32::from(mtu.get()) > bridge_mtu {
            log::warn!(
                "{}: mtu = {}, but bridge {bridge} has {bridge_mtu}: longer packets may be lost",
                tuning.name,
                mtu.get()
            );
        }

        let taps = create(&links, &name, tuning.queues, bridge, mtu)?;
        let vhost = Pairs::open(settings.vhost, tuning)?;
        let mac = settings
            .mac
            .unwrap_or_else(|| Mac::generate(&tuning.name, tuning.device));
        let up = super::link::is_up(&links, &name, bridge);
        let card = Self {
            name: tuning.name.clone(),
            config: ConfigSpace::new(&config(mac, up, tuning.queues, mtu))?,
            bridge: bridge.clone(),
            mtu,
            vhost,
            pairs: Mutex::new(tuning.queues),
            kept: Mutex::default(),
            taps,
        };
        card.stop()?;
        Ok(card)
    }

    fn first(&self) -> Result<&tap::Queue> {
        self.taps.first().context("a card without queues")
    }

    /// Whether the tap can leave the segmentation of UDP to the guest.
    pub fn has_uso(&self) -> bool {
        let uso = features::tap_offloads(
            features::GUEST_CSUM | features::GUEST_USO4 | features::GUEST_USO6,
        );
        let has = self.set_offloads_raw(uso).is_ok();
        // The guest asks for what it wants when it starts.
        has && self.set_offloads_raw(0).is_ok()
    }

    fn set_offloads_raw(&self, offloads: u32) -> Result<()> {
        self.first()?
            .set_offloads(offloads)
            .context("setting the tap's offloads")
    }

    /// Uses `offloads`, a set of `GUEST_*` features.
    pub fn set_offloads(&self, offloads: u64) -> Result<()> {
        self.set_offloads_raw(features::tap_offloads(offloads))
    }

    /// Does what the driver has commanded before a restart of the daemon, but for the pairs.
    pub fn resume(&self, kept: Kept) -> Result<()> {
        let offloads = kept.get(KEPT_OFFLOADS);
        if offloads & KEPT != 0 {
            self.set_offloads(offloads & !KEPT)?;
        }
        let mac = kept.get(KEPT_MAC);
        if mac & KEPT != 0 {
            let [_, _, mac @ ..] = (mac & !KEPT).to_be_bytes();
            self.config.write(CONFIG_MAC, &mac);
        }
        *self.kept() = Some(kept);
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, index: usize, value: u64) {
        if let Some(kept) = self.kept().as_ref() {
            kept.set(index, value | KEPT);
        }
    }

    /// The driver commands the use of `offloads`.
    pub fn command_offloads(&self, offloads: u64) -> Result<()> {
        self.set_offloads(offloads)?;
        self.keep(KEPT_OFFLOADS, offloads);
        Ok(())
    }

    /// The driver commands the use of `pairs` pairs.
    pub fn command_pairs(&self, pairs: u16) -> Result<()> {
        self.set_pairs(pairs)?;
        self.keep(KEPT_PAIRS, pairs.into());
        Ok(())
    }

    /// The driver commands the use of address `mac`.
    pub fn command_mac(&self, mac: Mac) {
        self.config.write(CONFIG_MAC, &mac.bytes());
        let [b0, b1, b2, b3, b4, b5] = mac.bytes();
        self.keep(KEPT_MAC, u64::from_be_bytes([0, 0, b0, b1, b2, b3, b4, b5]));
    }

    /// Lets packets in, for the first pair or those that the driver uses already.
    pub fn start(&self) -> Result<()> {
        let kept = self
            .kept()
            .as_ref()
            .map_or(0, |kept| kept.get(KEPT_PAIRS) & !KEPT);
        let pairs = u16::try_from(kept).unwrap_or(0);
        self.set_pairs(pairs.clamp(1, u16::try_from(self.taps.len())?))?;
        self.first()?
            .set_carrier(true)
            .context("setting the tap's carrier")
    }

    /// Lets no packet in any more, and drops those that wait.
    pub fn stop(&self) -> Result<()> {
        self.first()?
            .set_carrier(false)
            .context("setting the tap's carrier")?;
        self.set_pairs(0)
    }

    /// Does what [`Card::stop`] does, with a new tap if somebody has removed the former one.
    pub fn restart(&mut self) -> Result<()> {
        let removed = |error: &anyhow::Error| {
            error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::raw_os_error)
                == Some(libc::EBADFD)
        };
        match self.stop() {
            Err(error) if removed(&error) => (),
            result => return result,
        }
        let name = self.tap_name()?.clone();
        let pairs = self.taps.len() as u16;
        self.taps = create(&Links::new()?, &name, pairs, &self.bridge, self.mtu)?;
        *self.pairs.lock().unwrap_or_else(PoisonError::into_inner) = pairs;
        log::info!("{}: tap {name} has been made anew", self.name);
        self.stop()
    }

    /// Uses the first `pairs` pairs.
    pub fn set_pairs(&self, pairs: u16) -> Result<()> {
        let mut now = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);

        while *now < pairs {
            let tap = self.tap(*now)?;
            tap.attach().context("attaching a queue of the tap")?;
            if let Some(pairs) = &self.vhost {
                pairs.set_tap(*now, Some(tap)).context("vhost-net")?;
            }
            *now += 1;
        }
        // From the last one on, so that the others keep their numbers.
        while *now > pairs {
            // Vhost-net cannot wait for a queue that is not attached.
            if let Some(pairs) = &self.vhost {
                pairs.set_tap(*now - 1, None).context("vhost-net")?;
            }
            self.tap(*now - 1)?
                .detach()
                .context("detaching a queue of the tap")?;
            *now -= 1;
        }
        Ok(())
    }

    /// The tap's queue for pair `pair`.
    pub fn tap(&self, pair: u16) -> Result<&tap::Queue> {
        self.taps
            .get(usize::from(pair))
            .ok_or_else(|| anyhow!("there is no pair {pair}"))
    }

    /// The tap's name.
    pub fn tap_name(&self) -> Result<&Name> {
        self.first().map(tap::Queue::name)
    }
}

/// The name of the tap: unique on this machine.
fn tap_name(tuning: &Tuning) -> Result<Name> {
    Ok(Name::new(&format!(
        "vx{}.{}",
        tuning.domain, tuning.device
    ))?)
}

/// Makes the tap and puts it into its bridge.
fn create(
    links: &Links,
    name: &Name,
    pairs: u16,
    bridge: &Name,
    mtu: Mtu,
) -> Result<Vec<tap::Queue>> {
    let taps = tap::create(name, pairs, HEADER as u16)
        .with_context(|| format!("cannot create tap {name}"))?;
    let result = plug(links, name, bridge, mtu);
    result.with_context(|| format!("cannot plug tap {name} into bridge {bridge:?}"))?;
    Ok(taps)
}

fn plug(links: &Links, tap: &Name, bridge: &Name, mtu: Mtu) -> Result<()> {
    links
        .set_mtu(tap, mtu.get())
        .with_context(|| format!("mtu = {}", mtu.get()))?;
    links
        .set_address(tap, PORT_ADDRESS)
        .context("setting its address")?;
    // The port is no host. Where there is no IPv6, there is no such file.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{tap}/addr_gen_mode"), "1");
    match links.add_port(bridge, links.index(tap)?) {
        Ok(()) => (),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            bail!("{bridge:?} is not a bridge: name one as `bridge`")
        }
        Err(error) => return Err(error.into()),
    }
    links.set_up(tap).context("setting it up")
}

/// The content of `struct virtio_net_config` up to its `mtu`.
fn config(mac: Mac, up: bool, pairs: u16, mtu: Mtu) -> Vec<u8> {
    let status = super::link::LINK_UP * u16::from(up);
    let rest = [status, pairs, mtu.get()].map(u16::to_le_bytes);
    [mac.bytes().as_slice(), rest.as_flattened()].concat()
}
