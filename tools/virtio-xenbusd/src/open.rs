// SPDX-License-Identifier: GPL-2.0-or-later
//! From a device in xenstore and the configuration to an open device.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use xen::Store;

use crate::config::{Config, Kind, Limits, PoolPages, QueueSize, Queues, Tuning};
use crate::device::Device;
use crate::hotplug::SETTINGS;
use crate::keys::{Node, Type, device_id, printable};
use crate::modes::Modes;
use crate::vhost::{user, vsock};
use crate::{blk, net};

/// Queues by default: as many as the guest has CPUs, but not more than these.
const MAX_DEFAULT_QUEUES: u16 = 4;

/// Of a block device: rings of 128 entries and 8 MiB of buffers.
const BLK_DEFAULTS: Limits = Limits {
    queues: None,
    queue_size: Some(QueueSize(128)),
    max_pool_pages: Some(PoolPages(2048)),
    address_modes: None,
};

/// Of a network device: rings of 256 entries and 16 MiB of buffers.
const NET_DEFAULTS: Limits = Limits {
    queues: None,
    queue_size: Some(QueueSize(256)),
    max_pool_pages: Some(PoolPages(4096)),
    address_modes: None,
};

/// Of a device that a vhost-user program or the kernel serves: as of a network device, whose pool
/// also holds large requests of a block device or file system.
const VHOST_DEFAULTS: Limits = Limits {
    queues: None,
    queue_size: Some(QueueSize(128)),
    max_pool_pages: Some(PoolPages(4096)),
    address_modes: None,
};

/// An open device, and what the transport needs to know of its configuration.
pub struct Opened {
    /// The device.
    pub device: Box<dyn Device>,
    /// The largest pool that its frontend may have.
    pub max_pool_pages: u32,
    /// The address modes that its frontend may choose from.
    pub modes: Modes,
}

/// The guest's name, as its administrator knows it.
pub fn guest_name(store: &Store, node: Node) -> String {
    let name = store.read(&format!("/local/domain/{}/name", node.domain));
    let name = name
        .ok()
        .flatten()
        .unwrap_or_else(|| format!("domain {}", node.domain));
    printable(configured_name(&name))
}

/// The name that a guest has in the configuration. One that arrives by migration has the other
/// until it is all there.
fn configured_name(name: &str) -> &str {
    name.strip_suffix("--incoming").unwrap_or(name)
}

/// Opens what the configuration says that `node` is.
pub fn open(store: &Store, node: Node, guest: &str, config: &Config) -> Result<Opened> {
    match node.kind {
        Type::Virtio => open_virtio(store, node, guest, config),
        Type::Disk => open_disk(store, node, guest, config),
    }
}

fn open_virtio(store: &Store, node: Node, guest: &str, config: &Config) -> Result<Opened> {
    let kind = read(store, node, "type")?;
    let Some(id) = device_id(&kind) else {
        bail!("type {kind:?} is not of the form \"virtio,device<hexadecimal id>\"");
    };
    let kind = match attached(store, node)? {
        Some(kind) => kind,
        None => {
            let entry = config.device(guest, node.number);
            let entry = entry.with_context(|| {
                format!(
                    "nothing is configured for it: add a [[device]] with domain = {guest:?} and \
                     device = {} to the daemon's configuration and reload it",
                    node.number
                )
            })?;
            entry.kind()?
        }
    };
    ensure!(
        id == kind.id(),
        "the guest's configuration says device id {id:#x}, the daemon's `{}`, which is {:#x}",
        kind.key(),
        kind.id()
    );
    let defaults = &config.defaults;
    match &kind {
        Kind::Blk(settings) => {
            let limits = Limits::from(settings).or(defaults.blk).or(BLK_DEFAULTS);
            finish(store, node, guest, limits, |tuning| {
                blk::open(settings, tuning)
            })
        }
        Kind::Net(settings) => {
            let limits = Limits::from(settings).or(defaults.net).or(NET_DEFAULTS);
            finish(store, node, guest, limits, |tuning| {
                net::open(settings, tuning)
            })
        }
        Kind::VhostUser(settings) => {
            let limits = Limits::from(settings).or(VHOST_DEFAULTS);
            finish(store, node, guest, limits, |tuning| {
                user::open(settings, &tuning)
            })
        }
        Kind::Vsock(settings) => {
            let limits = Limits::from(settings).or(VHOST_DEFAULTS);
            finish(store, node, guest, limits, |tuning| {
                vsock::open(settings, &tuning)
            })
        }
    }
}

/// The settings that the device was attached with, if it was.
fn attached(store: &Store, node: Node) -> Result<Option<Kind>> {
    let path = format!("{}/{SETTINGS}", node.path());
    let text = store.read(&path).with_context(|| path.clone())?;
    text.map(|text| serde_json::from_str(&text).context(path))
        .transpose()
}

fn open_disk(store: &Store, node: Node, guest: &str, config: &Config) -> Result<Opened> {
    let vdev = read(store, node, "dev")?;
    let mode = read(store, node, "mode")?;
    let mut settings = config
        .disk(guest, &vdev)
        .map(|entry| entry.blk.clone())
        .unwrap_or_default();

    settings.path = Some(PathBuf::from(read(store, node, "params")?));
    settings.readonly = Some(match mode.as_str() {
        "w" => false,
        "r" => true,
        _ => bail!("mode {mode:?} is neither \"r\" nor \"w\""),
    });
    if settings.discard.is_none() {
        settings.discard = match read(store, node, "discard-enable") {
            Ok(text) if text == "0" => Some(false),
            _ => None,
        };
    }
    let limits = Limits::from(&settings)
        .or(config.defaults.blk)
        .or(BLK_DEFAULTS);
    finish(store, node, guest, limits, |tuning| {
        blk::open(&settings, tuning)
    })
}

fn finish(
    store: &Store,
    node: Node,
    guest: &str,
    limits: Limits,
    open: impl FnOnce(Tuning) -> Result<Box<dyn Device>>,
) -> Result<Opened> {
    let (Some(QueueSize(queue_size)), Some(PoolPages(max_pool_pages))) =
        (limits.queue_size, limits.max_pool_pages)
    else {
        bail!("no queue size or pool size");
    };
    let queues = match limits.queues {
        Some(Queues(queues)) => queues,
        None => {
            let cpus = store.list(&format!("/local/domain/{}/cpu", node.domain));
            let cpus = u16::try_from(cpus.unwrap_or_default().len()).unwrap_or(u16::MAX);
            cpus.clamp(1, MAX_DEFAULT_QUEUES)
        }
    };
    let device = open(Tuning {
        name: format!("{guest} {node}"),
        domain: node.domain,
        device: node.number,
        id: node.id(),
        queues,
        queue_size,
        address_modes: limits.address_modes,
    })?;
    let queues = device.queue_sizes().len();
    let most = virtioif::bindings::VIRTIO_XENBUS_MAX_QUEUES as usize;
    ensure!(
        queues <= most,
        "the device has {queues} queues, the transport at most {most}"
    );
    let modes = Modes::to_offer(limits.address_modes, device.address_modes(), node.domain)?;
    Ok(Opened {
        device,
        max_pool_pages,
        modes,
    })
}

fn read(store: &Store, node: Node, key: &str) -> Result<String> {
    let path = format!("{}/{key}", node.path());
    store
        .read(&path)
        .with_context(|| path.clone())?
        .with_context(|| format!("{path} is missing"))
}

#[cfg(test)]
mod tests {
    use super::configured_name;

    #[test]
    fn a_guest_that_arrives_is_known_by_its_own_name() {
        assert_eq!(configured_name("web--incoming"), "web");
        assert_eq!(configured_name("web"), "web");
        assert_eq!(configured_name("web--incoming-2"), "web--incoming-2");
    }
}
