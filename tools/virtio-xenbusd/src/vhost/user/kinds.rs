// SPDX-License-Identifier: GPL-2.0-or-later
//! The kinds of device that a program can serve.

use serde::Deserialize;

use crate::device::feature;

/// A kind of device, as the virtio specification has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its name in the configuration.
    name: &'static str,
    /// Device id.
    pub id: u32,
    /// What it is called.
    pub what: &'static str,
    /// Bytes of its configuration space, as much of it as Linux's driver needs.
    pub config: usize,
    /// Offset and bytes of its fields that the driver may write.
    pub writable: &'static [(usize, usize)],
    /// The same of those that it may write only with what is there, which the program is not told:
    /// some end at any write.
    pub fixed: &'static [(usize, usize)],
    /// What its queues are for that there is one of each.
    pub queues: &'static [&'static str],
    /// Request queues come after these, as many as the configuration space says: where in it, and
    /// in how many bytes.
    pub requests: Option<(usize, usize)>,
    /// Buffers are used in the order in which they were made available.
    pub in_order: bool,
    /// Features that are not offered though a program has them: they need more queues.
    pub withheld: u128,
}

const VIRTIO_CONSOLE_F_MULTIPORT: u32 = 1;

/// What most kinds have.
const PLAIN: Kind = Kind {
    name: "",
    id: 0,
    what: "",
    config: 0,
    writable: &[],
    fixed: &[],
    queues: &[],
    requests: None,
    in_order: false,
    withheld: 0,
};

const KINDS: &[Kind] = &[
    Kind {
        name: "blk",
        id: 2,
        what: "block device",
        config: 60,
        writable: &[(32, 1)],
        requests: Some((34, 2)),
        ..PLAIN
    },
    Kind {
        name: "console",
        id: 3,
        what: "console",
        config: 12,
        writable: &[(8, 4)],
        queues: &["receive", "transmit"],
        in_order: true,
        withheld: feature(VIRTIO_CONSOLE_F_MULTIPORT),
        ..PLAIN
    },
    Kind {
        name: "rng",
        id: 4,
        what: "entropy source",
        queues: &["request"],
        in_order: true,
        ..PLAIN
    },
    Kind {
        name: "scsi",
        id: 8,
        what: "SCSI host",
        config: 36,
        fixed: &[(20, 4), (24, 4)],
        queues: &["control", "event"],
        requests: Some((0, 4)),
        ..PLAIN
    },
    Kind {
        name: "input",
        id: 18,
        what: "input device",
        config: 136,
        writable: &[(0, 1), (1, 1)],
        queues: &["event", "status"],
        in_order: true,
        ..PLAIN
    },
    Kind {
        name: "vsock",
        id: 19,
        what: "sockets",
        config: 8,
        queues: &["receive", "transmit", "event"],
        in_order: true,
        ..PLAIN
    },
    Kind {
        name: "sound",
        id: 25,
        what: "sound card",
        config: 12,
        queues: &["control", "event", "transmit", "receive"],
        ..PLAIN
    },
    Kind {
        name: "fs",
        id: 26,
        what: "file system",
        config: 40,
        queues: &["high priority"],
        requests: Some((36, 4)),
        ..PLAIN
    },
    Kind {
        name: "i2c",
        id: 34,
        what: "I2C adapter",
        queues: &["request"],
        in_order: true,
        ..PLAIN
    },
    Kind {
        name: "gpio",
        id: 41,
        what: "GPIO",
        config: 8,
        queues: &["request", "event"],
        ..PLAIN
    },
];

/// The kind with a name that the configuration has.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct KindName(pub &'static Kind);

impl TryFrom<String> for KindName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let found = KINDS.iter().find(|kind| kind.name == name);
        found.map(Self).ok_or_else(|| {
            let names: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
            format!(
                "{name:?} is no type of device that a program serves: it must be one of {}",
                names.join(", ")
            )
        })
    }
}

/// The kind with a device id.
pub fn of_id(id: u32) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_are_of_one_kind_each() {
        for (index, kind) in KINDS.iter().enumerate() {
            for other in KINDS.iter().skip(index + 1) {
                assert!(kind.name != other.name && kind.id != other.id);
            }
            assert_eq!(KindName::try_from(kind.name.to_owned()).unwrap().0, kind);
        }
        assert_eq!(of_id(26).unwrap().name, "fs");
        let error = KindName::try_from("net".to_owned()).unwrap_err();
        assert!(
            error.contains("\"net\"") && error.contains("blk, "),
            "{error}"
        );
    }
}
