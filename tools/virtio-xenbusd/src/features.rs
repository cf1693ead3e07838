// SPDX-License-Identifier: GPL-2.0-or-later
//! Names of feature bits, those of the virtio specification without `VIRTIO_F_` and the like.

use crate::device::{ID_BLOCK, ID_NET, feature};

/// Of the transport and the rings: 6.
const TRANSPORT: &[(u32, &str)] = &[
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"),
    (34, "RING_PACKED"),
    (35, "IN_ORDER"),
    (36, "ORDER_PLATFORM"),
    (40, "RING_RESET"),
];

/// Of network devices: 5.1.3.
const NET: &[(u32, &str)] = &[
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (2, "CTRL_GUEST_OFFLOADS"),
    (3, "MTU"),
    (5, "MAC"),
    (7, "GUEST_TSO4"),
    (8, "GUEST_TSO6"),
    (9, "GUEST_ECN"),
    (11, "HOST_TSO4"),
    (12, "HOST_TSO6"),
    (13, "HOST_ECN"),
    (15, "MRG_RXBUF"),
    (16, "STATUS"),
    (17, "CTRL_VQ"),
    (18, "CTRL_RX"),
    (22, "MQ"),
    (23, "CTRL_MAC_ADDR"),
    (54, "GUEST_USO4"),
    (55, "GUEST_USO6"),
    (56, "HOST_USO"),
];

/// Of block devices: 5.2.3.
const BLOCK: &[(u32, &str)] = &[
    (1, "SIZE_MAX"),
    (2, "SEG_MAX"),
    (4, "GEOMETRY"),
    (5, "RO"),
    (6, "BLK_SIZE"),
    (9, "FLUSH"),
    (10, "TOPOLOGY"),
    (11, "CONFIG_WCE"),
    (12, "MQ"),
    (13, "DISCARD"),
    (14, "WRITE_ZEROES"),
    (16, "SECURE_ERASE"),
    (17, "ZONED"),
];

/// The names of `features` of a device with id `id`; `bit <n>` where there is no name.
pub fn names(id: u32, features: u128) -> Vec<String> {
    let own = match id {
        ID_NET => NET,
        ID_BLOCK => BLOCK,
        _ => &[],
    };
    let name = |bit| {
        let mut known = own.iter().chain(TRANSPORT);
        let name = known.find(|&&(number, _)| number == bit);
        name.map_or_else(|| format!("bit {bit}"), |&(_, name)| name.into())
    };
    (0..u128::BITS)
        .filter(|&bit| features & feature(bit) != 0)
        .map(name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{RING_FEATURES, TRANSPORT_FEATURES};
    use crate::net::features as net;

    #[test]
    fn names_come_in_the_order_of_bits() {
        let features = feature(32) | feature(12) | feature(2) | feature(127);
        assert_eq!(
            names(ID_BLOCK, features),
            ["SEG_MAX", "MQ", "VERSION_1", "bit 127"]
        );
        assert_eq!(names(ID_NET, 1), ["CSUM"]);
        assert_eq!(names(42, 1 | feature(28)), ["bit 0", "INDIRECT_DESC"]);
        assert!(names(ID_NET, 0).is_empty());
    }

    #[test]
    fn what_is_offered_has_a_name() {
        let settings = toml::from_str("bridge = \"b\"").unwrap();
        let offered =
            u128::from(net::offer(&settings, 2, true)) | RING_FEATURES | TRANSPORT_FEATURES;
        let names = names(ID_NET, offered);
        assert!(
            names.iter().all(|name| !name.starts_with("bit")),
            "{names:?}"
        );
        assert!(names.contains(&"HOST_USO".to_owned()), "{names:?}");
    }
}
