// SPDX-License-Identifier: GPL-2.0

//! The features of a device, by name.

use kernel::{
    debugfs::Writer,
    fmt,
    prelude::*,
    sync::atomic::{
        ordering,
        Atomic, //
    },
};

use super::sys::{
    bindings as raw,
    virtio::Features, //
};

/// Feature bits that a device can have.
const FEATURE_BITS: u32 = 128;

/// Feature bits and the names that the headers give them.
type Names = &'static [(u32, &'static str)];

macro_rules! names {
    ($($name:ident),* $(,)?) => {
        &[$((raw::$name, stringify!($name))),*]
    };
}

/// Features of any device.
const COMMON: Names = names![
    VIRTIO_F_NOTIFY_ON_EMPTY,
    VIRTIO_F_ANY_LAYOUT,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
    VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_ORDER_PLATFORM,
    VIRTIO_F_SR_IOV,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_NOTIF_CONFIG_DATA,
    VIRTIO_F_RING_RESET,
    VIRTIO_F_ADMIN_VQ,
];

const BLOCK: Names = names![
    VIRTIO_BLK_F_BARRIER,
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_GEOMETRY,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_SCSI,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_CONFIG_WCE,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_F_SECURE_ERASE,
    VIRTIO_BLK_F_ZONED,
];

const NET: Names = names![
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GSO,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_VLAN,
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_DEVICE_STATS,
    VIRTIO_NET_F_VQ_NOTF_COAL,
    VIRTIO_NET_F_NOTF_COAL,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_HASH_REPORT,
    VIRTIO_NET_F_GUEST_HDRLEN,
    VIRTIO_NET_F_RSS,
    VIRTIO_NET_F_RSC_EXT,
    VIRTIO_NET_F_STANDBY,
    VIRTIO_NET_F_SPEED_DUPLEX,
    VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO,
    VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO_CSUM,
    VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO,
    VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO_CSUM,
];

/// The name of feature `bit` of a device with this device id.
fn name(device_id: u32, bit: u32) -> &'static str {
    let own = match device_id {
        raw::VIRTIO_ID_BLOCK => BLOCK,
        raw::VIRTIO_ID_NET => NET,
        _ => &[],
    };
    [own, COMMON]
        .into_iter()
        .flatten()
        .find(|(other, _)| *other == bit)
        .map_or("unknown", |(_, name)| name)
}

fn has(features: Features, bit: u32) -> bool {
    features
        .get((bit / u64::BITS) as usize)
        .is_some_and(|word| word >> (bit % u64::BITS) & 1 != 0)
}

/// What a device offers, and what of that its driver has accepted.
pub(crate) struct FeatureList {
    device_id: u32,
    offered: Features,
    accepted: [Atomic<u64>; 2],
}

impl FeatureList {
    /// The features of a device that has no driver yet.
    pub(crate) fn new(device_id: u32, offered: Features) -> Self {
        Self {
            device_id,
            offered,
            accepted: [Atomic::new(0), Atomic::new(0)],
        }
    }

    /// Records what the driver has accepted.
    pub(crate) fn accept(&self, features: Features) {
        for (accepted, word) in self.accepted.iter().zip(features) {
            accepted.store(word, ordering::Relaxed);
        }
    }
}

impl Writer for FeatureList {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, high] = &self.accepted;
        let accepted = [
            low.load(ordering::Relaxed),
            high.load(ordering::Relaxed), //
        ];

        writeln!(f, "bit  accepted  name")?;
        for bit in (0..FEATURE_BITS).filter(|&bit| has(self.offered, bit)) {
            let yes = if has(accepted, bit) { "yes" } else { "no" };
            writeln!(f, "{bit:>3}  {yes:<8}  {}", name(self.device_id, bit))?;
        }
        Ok(())
    }
}

#[kunit_tests(virtio_xenbus_features)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_has_the_name_of_its_device() {
        for (device_id, bit, expected) in [
            (raw::VIRTIO_ID_NET, 5, "VIRTIO_NET_F_MAC"),
            (raw::VIRTIO_ID_BLOCK, 5, "VIRTIO_BLK_F_RO"),
            (4, 5, "unknown"),
            (
                raw::VIRTIO_ID_NET,
                68,
                "VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO_CSUM",
            ),
            (raw::VIRTIO_ID_NET, 29, "VIRTIO_RING_F_EVENT_IDX"),
            (raw::VIRTIO_ID_BLOCK, 32, "VIRTIO_F_VERSION_1"),
            (4, 32, "VIRTIO_F_VERSION_1"),
            (raw::VIRTIO_ID_NET, 127, "unknown"),
        ] {
            assert_eq!(name(device_id, bit), expected);
        }
    }

    #[test]
    fn no_bit_has_two_names() {
        for own in [BLOCK, NET] {
            for bit in 0..FEATURE_BITS {
                let names = [own, COMMON].into_iter().flatten();
                assert!(names.filter(|(other, _)| *other == bit).count() <= 1);
            }
        }
    }

    #[test]
    fn bits_are_found_in_both_words() {
        for (features, bit) in [
            ([1, 0], 0),
            ([1 << 63, 0], 63),
            ([0, 1], 64),
            ([0, 1 << 63], 127),
        ] {
            for other in 0..FEATURE_BITS {
                assert_eq!(has(features, other), other == bit);
            }
        }
    }
}
