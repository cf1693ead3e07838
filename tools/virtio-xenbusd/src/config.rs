// SPDX-License-Identifier: GPL-2.0-or-later
//! The configuration file.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Error, Result, anyhow, bail};
use serde::Deserialize;
use toml::Spanned;

use crate::device::{ID_BLOCK, ID_NET};
use crate::modes::Modes;
use crate::server::SocketPath;
use crate::vhost::{user, vsock};
use crate::{blk, net};

/// The configuration file's content. An empty file is a valid one.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where the control socket is.
    pub control_socket: Option<SocketPath>,
    /// What holds for devices that do not say otherwise.
    #[serde(default)]
    pub defaults: Defaults,
    /// Devices of xenstore's type `virtio`.
    #[serde(default, rename = "device")]
    pub devices: Vec<DeviceEntry>,
    /// More about devices of xenstore's type `virtio_disk`.
    #[serde(default, rename = "disk")]
    pub disks: Vec<DiskEntry>,
}

/// Limits by kind of device.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Of block devices.
    #[serde(default)]
    pub blk: Limits,
    /// Of network devices.
    #[serde(default)]
    pub net: Limits,
}

/// Defines settings: fields of their own, and those of [`Limits`].
///
/// One struct, because serde knows neither the keys nor the lines of a flattened one, and the
/// message for a misspelt key has both.
macro_rules! with_limits {
    ($(#[$attribute:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, serde::Deserialize, PartialEq, Eq)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct $name {
            $($own)*
            /// Queues (block) or queue pairs (network); the number of the guest's CPUs, at most
            /// 4, by default.
            pub queues: Option<$crate::config::Queues>,
            /// Descriptors of each queue.
            pub queue_size: Option<$crate::config::QueueSize>,
            /// The largest pool.
            pub max_pool_pages: Option<$crate::config::PoolPages>,
            /// Address modes to offer, best first.
            pub address_modes: Option<$crate::modes::Modes>,
        }

        impl From<&$name> for $crate::config::Limits {
            fn from(settings: &$name) -> Self {
                Self {
                    queues: settings.queues,
                    queue_size: settings.queue_size,
                    max_pool_pages: settings.max_pool_pages,
                    address_modes: settings.address_modes,
                }
            }
        }
    };
}
pub(crate) use with_limits;

with_limits! {
    /// What bounds a device's use of memory and threads, and what its guest may share.
    #[derive(Copy, Default)]
    pub struct Limits {}
}

/// A device of type `virtio`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct DeviceEntry {
    /// Name of the guest.
    pub domain: Spanned<String>,
    /// Number of the device in the guest's `virtio` list, from 0.
    pub device: u32,
    /// It is a block device.
    pub blk: Option<blk::Settings>,
    /// It is a network device.
    pub net: Option<net::Settings>,
    /// A vhost-user program serves it.
    #[serde(rename = "vhost-user")]
    pub vhost_user: Option<user::Settings>,
    /// The kernel's vhost-vsock serves it.
    pub vsock: Option<vsock::Settings>,
}

/// What a device of type `virtio` is.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A block device.
    Blk(blk::Settings),
    /// A network device.
    Net(net::Settings),
    /// What a vhost-user program serves.
    VhostUser(user::Settings),
    /// Sockets.
    Vsock(vsock::Settings),
}

/// More about a device of type `virtio_disk`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskEntry {
    /// Name of the guest.
    pub domain: Spanned<String>,
    /// The disk's `vdev` in the guest's configuration.
    pub vdev: String,
    /// What the guest's configuration has no words for.
    #[serde(default)]
    pub blk: blk::Settings,
}

/// What [`Config`] says of one device's size, with the defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Guest, type and number of the device, for the log.
    pub name: String,
    /// The guest's domain number.
    pub domain: u16,
    /// Number of the device.
    pub device: u32,
    /// A number of this device and no other, for as long as the guest lives: below 2^48.
    pub id: u64,
    /// Queues (block) or queue pairs (network).
    pub queues: u16,
    /// Descriptors of each queue.
    pub queue_size: u16,
    /// Address modes to offer, if the configuration says which.
    pub address_modes: Option<Modes>,
}

macro_rules! checked {
    ($(#[$doc:meta])* $name:ident($inner:ty), $expected:literal, $accept:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
        #[serde(try_from = "i64")]
        pub struct $name(pub $inner);

        impl TryFrom<i64> for $name {
            type Error = String;

            fn try_from(value: i64) -> Result<Self, String> {
                let accept: fn(&$inner) -> bool = $accept;
                <$inner>::try_from(value)
                    .ok()
                    .filter(accept)
                    .map(Self)
                    .ok_or_else(|| format!(concat!("{} is not ", $expected), value))
            }
        }
    };
}

checked!(
    /// A number of queues.
    Queues(u16), "a number of queues: it must be from 1 to 16", |n| (1..=16).contains(n)
);
checked!(
    /// A number of descriptors.
    QueueSize(u16),
    "a queue size: it must be a power of two from 4 to 1024",
    |n| n.is_power_of_two() && (4..=1024).contains(n)
);
checked!(
    /// A number of pages.
    PoolPages(u32),
    "a number of pool pages: it must be from 64 to 32768",
    |n| (64..=32768).contains(n)
);

impl Limits {
    /// These, and what they leave open from `defaults`.
    pub fn or(self, defaults: Limits) -> Limits {
        Limits {
            queues: self.queues.or(defaults.queues),
            queue_size: self.queue_size.or(defaults.queue_size),
            max_pool_pages: self.max_pool_pages.or(defaults.max_pool_pages),
            address_modes: self.address_modes.or(defaults.address_modes),
        }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// The message names the file, and line and key where it is the content that is wrong.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .map_err(|error| anyhow!("{}: {}", path.display(), describe(&error)))?;
        Self::parse(&text).map_err(|error| anyhow!("{}: {error:#}", path.display()))
    }

    /// Reads a file's content.
    fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| line(text, span.start));
            anyhow!("line {line}: {}\n{error}", error.message())
        })?;
        config.check(text)?;
        Ok(config)
    }

    /// Checks what the types do not express.
    fn check(&self, text: &str) -> Result<()> {
        for (index, entry) in self.devices.iter().enumerate() {
            let line = line(text, entry.domain.span().start);
            let name = format!(
                "device {} of domain {:?}",
                entry.device,
                entry.domain.get_ref()
            );
            entry
                .kind()
                .and_then(|kind| kind.check())
                .with_context(|| format!("line {line}: {name}"))?;
            let earlier = self.devices.iter().take(index);
            if earlier.map(DeviceEntry::key).any(|key| key == entry.key()) {
                bail!("line {line}: {name} is configured twice");
            }
        }
        for (index, entry) in self.disks.iter().enumerate() {
            let line = line(text, entry.domain.span().start);
            let name = format!(
                "disk {:?} of domain {:?}",
                entry.vdev,
                entry.domain.get_ref()
            );
            if entry.blk.path.is_some() || entry.blk.readonly.is_some() {
                bail!(
                    "line {line}: {name}: `path` and `readonly` are taken from the guest's \
                     configuration"
                );
            }
            let earlier = self.disks.iter().take(index);
            if earlier.map(DiskEntry::key).any(|key| key == entry.key()) {
                bail!("line {line}: {name} is configured twice");
            }
        }
        Ok(())
    }

    /// The entry of a device of type `virtio`.
    pub fn device(&self, domain: &str, device: u32) -> Option<&DeviceEntry> {
        self.devices
            .iter()
            .find(|entry| entry.key() == (domain, device))
    }

    /// The entry of a device of type `virtio_disk`.
    pub fn disk(&self, domain: &str, vdev: &str) -> Option<&DiskEntry> {
        self.disks
            .iter()
            .find(|entry| entry.key() == (domain, vdev))
    }
}

impl DeviceEntry {
    fn key(&self) -> (&str, u32) {
        (self.domain.get_ref(), self.device)
    }

    /// What the device is: an entry of a [`Config`] has exactly one kind.
    pub fn kind(&self) -> Result<Kind> {
        let kinds = [
            self.blk.clone().map(Kind::Blk),
            self.net.clone().map(Kind::Net),
            self.vhost_user.clone().map(Kind::VhostUser),
            self.vsock.clone().map(Kind::Vsock),
        ];
        let mut kinds = kinds.into_iter().flatten();
        match (kinds.next(), kinds.next()) {
            (Some(kind), None) => Ok(kind),
            (Some(one), Some(other)) => {
                bail!("it has both `{}` and `{}`", one.key(), other.key())
            }
            (None, _) => bail!("it has neither `blk`, `net`, `vhost-user` nor `vsock`"),
        }
    }
}

impl Kind {
    /// Device id of the virtio specification.
    pub fn id(&self) -> u32 {
        match self {
            Self::Blk(_) => ID_BLOCK,
            Self::Net(_) => ID_NET,
            Self::VhostUser(user) => user.r#type.0.id,
            Self::Vsock(_) => vsock::ID,
        }
    }

    /// Its key in the configuration.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Blk(_) => "blk",
            Self::Net(_) => "net",
            Self::VhostUser(_) => "vhost-user",
            Self::Vsock(_) => "vsock",
        }
    }

    /// Checks what the types do not express.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Blk(blk) if blk.path.is_none() => bail!("it has no `path`"),
            Self::VhostUser(user) => user.check().map_err(Error::msg),
            Self::Blk(_) | Self::Net(_) | Self::Vsock(_) => Ok(()),
        }
    }
}

impl DiskEntry {
    fn key(&self) -> (&str, &str) {
        (self.domain.get_ref(), &self.vdev)
    }
}

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The line, from 1, that the byte at `offset` is in.
fn line(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|&byte| byte == b'\n')
        .count()
        + 1
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file; name another one with --config".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
