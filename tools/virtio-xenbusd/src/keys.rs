// SPDX-License-Identifier: GPL-2.0-or-later
//! Xenstore paths and keys.

use std::ffi::CStr;
use std::fmt;

use xen::DomainId;

/// A key of `virtioif.h` as a string. All of them are ASCII.
pub fn key(key: &'static CStr) -> &'static str {
    key.to_str().unwrap_or_default()
}

/// The types of devices that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// From `virtio = [...]`: a device of any kind.
    Virtio,
    /// From `disk = [...]` with `specification=virtio`.
    Disk,
}

impl Type {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Virtio, Self::Disk];

    /// The directory's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Disk => "virtio_disk",
        }
    }

    /// The directory of the backends of this type.
    pub fn backends(self) -> String {
        format!("backend/{}", self.name())
    }
}

/// Which device: `backend/<type>/<domain>/<number>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// The guest.
    pub domain: DomainId,
    /// Type of the device.
    pub kind: Type,
    /// Number of the device in the guest.
    pub number: u32,
}

impl Node {
    /// The device that a changed path belongs to.
    pub fn parse(path: &str) -> Option<Self> {
        let mut parts = path.split('/');
        if parts.next() != Some("backend") {
            return None;
        }
        let name = parts.next()?;
        let kind = Type::ALL.into_iter().find(|kind| kind.name() == name)?;
        let domain = decimal(parts.next()?)?;
        let number = decimal(parts.next()?)?;
        Some(Self {
            domain,
            kind,
            number,
        })
    }

    /// The device of `domain` that `text`, type and number, names: what [`fmt::Display`] writes.
    pub fn of(domain: DomainId, text: &str) -> Option<Self> {
        let (name, number) = text.split_once('/')?;
        let kind = Type::ALL.into_iter().find(|kind| kind.name() == name)?;
        let number = decimal(number)?;
        Some(Self {
            domain,
            kind,
            number,
        })
    }

    /// The backend's directory, in its domain's own.
    pub fn path(&self) -> String {
        format!("{}/{}/{}", self.kind.backends(), self.domain, self.number)
    }

    /// The frontend's directory.
    pub fn frontend_path(&self) -> String {
        let Self { domain, number, .. } = self;
        format!(
            "/local/domain/{domain}/device/{}/{number}",
            self.kind.name()
        )
    }

    /// Where the guest's driver writes errors.
    pub fn frontend_error_path(&self) -> String {
        let Self { domain, number, .. } = self;
        let kind = self.kind.name();
        format!("/local/domain/{domain}/error/device/{kind}/{number}/error")
    }

    /// A name for threads, of which the kernel shows 15 characters. It also names directories
    /// in `/proc/irq` after them: no slash.
    pub fn short_name(&self) -> String {
        let kind = match self.kind {
            Type::Virtio => "virtio",
            Type::Disk => "disk",
        };
        format!("{}-{kind}-{}", self.domain, self.number)
    }

    /// A number of this device and no other: below 2^48.
    pub fn id(&self) -> u64 {
        let kind = match self.kind {
            Type::Virtio => 0,
            Type::Disk => 1,
        };
        (u64::from(self.domain) << 33) | (kind << 32) | u64::from(self.number)
    }

    /// The device that [`Node::short_name`] names.
    pub fn of_short_name(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        let domain = decimal(parts.next()?)?;
        let kind = match parts.next()? {
            "virtio" => Type::Virtio,
            "disk" => Type::Disk,
            _ => return None,
        };
        let number = decimal(parts.next()?)?;
        parts.next().is_none().then_some(Self {
            domain,
            kind,
            number,
        })
    }

    /// Where errors are written, as Linux's backends do.
    pub fn error_path(&self) -> String {
        format!("error/{}/error", self.path())
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.name(), self.number)
    }
}

/// The most characters of what others have written that are shown to a person.
const MAX_TEXT: usize = 500;

/// What others have written, fit to be shown to a person.
pub fn printable(text: &str) -> String {
    let shown = text.chars().filter(|c| !c.is_control());
    shown.take(MAX_TEXT).collect()
}

/// Parses a number as xenstore has it: no sign, no leading zero.
pub fn decimal<T: std::str::FromStr + fmt::Display>(text: &str) -> Option<T> {
    text.parse()
        .ok()
        .filter(|value: &T| value.to_string() == text)
}

/// The device id in the node `type` of a device of type `virtio`: `virtio,device<hex id>`.
pub fn device_id(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("virtio,device")?;
    let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    valid
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
        .filter(|&id| id > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_paths() {
        let node = Node {
            domain: 5,
            kind: Type::Disk,
            number: 51712,
        };
        assert_eq!(Node::parse("backend/virtio_disk/5/51712"), Some(node));
        assert_eq!(Node::parse("backend/virtio_disk/5/51712/state"), Some(node));
        assert_eq!(Node::parse(&node.path()), Some(node));
        for path in [
            "",
            "backend",
            "backend/virtio",
            "backend/virtio/5",
            "backend/vbd/5/0",
            "backend/virtio/-1/0",
            "backend/virtio/05/0",
            "backend/virtio/+5/0",
            "backend/virtio/65536/0",
            "backend/virtio/5/4294967296",
            "/backend/virtio/5/0",
        ] {
            assert_eq!(Node::parse(path), None, "{path}");
        }
    }

    #[test]
    fn parses_names() {
        let node = Node::of(5, "virtio_disk/51712").unwrap();
        assert_eq!(Node::of(5, &node.to_string()), Some(node));
        assert_eq!(node.path(), "backend/virtio_disk/5/51712");
        let frontend = "/local/domain/5/device/virtio_disk/51712";
        assert_eq!(node.frontend_path(), frontend);
        for text in [
            "",
            "0",
            "virtio",
            "virtio/",
            "virtio/00",
            "virtio/0/1",
            "vbd/0",
        ] {
            assert_eq!(Node::of(5, text), None, "{text}");
        }
    }

    #[test]
    fn parses_device_ids() {
        assert_eq!(device_id("virtio,device1"), Some(1));
        assert_eq!(device_id("virtio,device1a"), Some(26));
        for text in [
            "",
            "virtio",
            "virtio,device",
            "virtio,device0",
            "virtio,devicex",
            "virtio,device+1",
            "virtio,device123456789",
        ] {
            assert_eq!(device_id(text), None, "{text}");
        }
    }
}
