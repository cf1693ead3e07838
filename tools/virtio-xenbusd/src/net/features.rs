// SPDX-License-Identifier: GPL-2.0-or-later
//! Feature bits of the network device, and what they ask of the tap.

use super::settings::Settings;

/// Bits of the virtio specification, 5.1.3.
pub const CSUM: u64 = 1 << 0;
pub const GUEST_CSUM: u64 = 1 << 1;
pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
pub const MTU: u64 = 1 << 3;
pub const MAC: u64 = 1 << 5;
pub const GUEST_TSO4: u64 = 1 << 7;
pub const GUEST_TSO6: u64 = 1 << 8;
pub const GUEST_ECN: u64 = 1 << 9;
pub const HOST_TSO4: u64 = 1 << 11;
pub const HOST_TSO6: u64 = 1 << 12;
pub const HOST_ECN: u64 = 1 << 13;
pub const MRG_RXBUF: u64 = 1 << 15;
pub const STATUS: u64 = 1 << 16;
pub const CTRL_VQ: u64 = 1 << 17;
pub const CTRL_RX: u64 = 1 << 18;
pub const MQ: u64 = 1 << 22;
pub const CTRL_MAC_ADDR: u64 = 1 << 23;
pub const GUEST_USO4: u64 = 1 << 54;
pub const GUEST_USO6: u64 = 1 << 55;
pub const HOST_USO: u64 = 1 << 56;

/// Segments that the guest can be given whole.
const GUEST_SEGMENTS: u64 = GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6;

/// The bits that the guest may switch with `CTRL_GUEST_OFFLOADS`.
const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_SEGMENTS | GUEST_ECN;

/// `(feature, the features of which it needs one)`: 5.1.3.1.
const REQUIREMENTS: [(u64, u64, &str); 13] = [
    (GUEST_TSO4, GUEST_CSUM, "GUEST_TSO4 without GUEST_CSUM"),
    (GUEST_TSO6, GUEST_CSUM, "GUEST_TSO6 without GUEST_CSUM"),
    (GUEST_USO4, GUEST_CSUM, "GUEST_USO4 without GUEST_CSUM"),
    (GUEST_USO6, GUEST_CSUM, "GUEST_USO6 without GUEST_CSUM"),
    (
        GUEST_ECN,
        GUEST_TSO4 | GUEST_TSO6,
        "GUEST_ECN without GUEST_TSO4 or GUEST_TSO6",
    ),
    (HOST_TSO4, CSUM, "HOST_TSO4 without CSUM"),
    (HOST_TSO6, CSUM, "HOST_TSO6 without CSUM"),
    (HOST_USO, CSUM, "HOST_USO without CSUM"),
    (
        HOST_ECN,
        HOST_TSO4 | HOST_TSO6,
        "HOST_ECN without HOST_TSO4 or HOST_TSO6",
    ),
    (CTRL_RX, CTRL_VQ, "CTRL_RX without CTRL_VQ"),
    (CTRL_MAC_ADDR, CTRL_VQ, "CTRL_MAC_ADDR without CTRL_VQ"),
    (
        CTRL_GUEST_OFFLOADS,
        CTRL_VQ,
        "CTRL_GUEST_OFFLOADS without CTRL_VQ",
    ),
    (MQ, CTRL_VQ, "MQ without CTRL_VQ"),
];

/// The features to offer for `settings` and `pairs`; `tap_has_uso` tells whether the kernel's
/// taps can do UDP segmentation.
pub fn offer(settings: &Settings, pairs: u16, tap_has_uso: bool) -> u64 {
    let mut offer = MAC | MTU | STATUS | CTRL_VQ | CTRL_RX | CTRL_MAC_ADDR;
    if settings.mergeable_buffers {
        offer |= MRG_RXBUF;
    }
    if settings.checksum_offload {
        offer |= CSUM | GUEST_CSUM | CTRL_GUEST_OFFLOADS;
        if settings.segmentation_offload {
            offer |= HOST_TSO4 | HOST_TSO6 | HOST_ECN | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
            if tap_has_uso {
                offer |= HOST_USO | GUEST_USO4 | GUEST_USO6;
            }
        }
    }
    if pairs > 1 {
        offer |= MQ;
    }
    offer
}

/// Says which rule of the specification the set breaks, if any.
pub fn check(accepted: u64) -> Result<(), &'static str> {
    REQUIREMENTS
        .iter()
        .find(|(feature, needs, _)| accepted & feature != 0 && accepted & needs == 0)
        .map_or(Ok(()), |(_, _, what)| Err(what))
}

/// The offloads in force before the guest switches any.
pub fn initial_offloads(accepted: u64) -> u64 {
    accepted & GUEST_OFFLOADS
}

/// Checks a set of offloads that the guest asks for: a subset of what it has negotiated, and
/// one that the tap can do.
pub fn offloads_valid(accepted: u64, asked: u64) -> bool {
    asked & !initial_offloads(accepted) == 0 && check(asked).is_ok()
}

/// The tap's offloads (`TUN_F_*`) for the guest's.
pub fn tap_offloads(offloads: u64) -> u32 {
    let usual = [
        (GUEST_CSUM, libc::TUN_F_CSUM),
        (GUEST_TSO4, libc::TUN_F_TSO4),
        (GUEST_TSO6, libc::TUN_F_TSO6),
        (GUEST_ECN, libc::TUN_F_TSO_ECN),
        (GUEST_USO4 | GUEST_USO6, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ];
    usual
        .iter()
        // The tap takes both kinds of USO or none.
        .filter(|(guest, _)| offloads & guest == *guest)
        .fold(0, |tap, (_, flag)| tap | flag)
}

/// Whether packets for the guest can be longer than its MTU.
pub fn has_segments(accepted: u64) -> bool {
    accepted & GUEST_SEGMENTS != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(more: &str) -> Settings {
        toml::from_str(&format!("bridge = \"b\"\n{more}")).unwrap()
    }

    #[test]
    fn offer_follows_the_settings() {
        let all = offer(&settings(""), 4, true);
        assert_eq!(all & (MQ | HOST_USO | MRG_RXBUF), MQ | HOST_USO | MRG_RXBUF);
        assert_eq!(offer(&settings(""), 1, true), all & !MQ);
        assert_eq!(
            offer(&settings(""), 4, false),
            all & !(HOST_USO | GUEST_USO4 | GUEST_USO6)
        );
        let plain = settings("checksum-offload = false\nmergeable-buffers = false");
        let plain = offer(&plain, 1, true);
        assert_eq!(
            plain,
            MAC | MTU | STATUS | CTRL_VQ | CTRL_RX | CTRL_MAC_ADDR
        );
        let no_segments = offer(&settings("segmentation-offload = false"), 1, true);
        assert_eq!(no_segments & (CSUM | GUEST_CSUM), CSUM | GUEST_CSUM);
        assert!(!has_segments(no_segments));
    }

    #[test]
    fn every_offer_can_be_accepted() {
        for text in [
            "",
            "checksum-offload = false",
            "segmentation-offload = false",
        ] {
            for pairs in [1, 4] {
                for uso in [false, true] {
                    assert_eq!(check(offer(&settings(text), pairs, uso)), Ok(()));
                }
            }
        }
    }

    #[test]
    fn every_requirement_is_checked() {
        for (feature, needs, what) in REQUIREMENTS {
            assert_eq!(check(feature), Err(what));
            assert!(check(feature | needs) != Err(what));
        }
        assert_eq!(check(0), Ok(()));
    }

    #[test]
    fn offloads_are_what_was_negotiated() {
        let accepted = GUEST_CSUM | GUEST_TSO4 | GUEST_ECN | HOST_TSO4 | CSUM;
        assert_eq!(
            initial_offloads(accepted),
            GUEST_CSUM | GUEST_TSO4 | GUEST_ECN
        );
        assert!(offloads_valid(accepted, 0));
        assert!(offloads_valid(accepted, GUEST_CSUM));
        assert!(!offloads_valid(accepted, GUEST_TSO4));
        assert!(!offloads_valid(accepted, GUEST_CSUM | GUEST_TSO6));
        assert!(!offloads_valid(accepted, CSUM));
        assert!(!offloads_valid(accepted, u64::MAX));
    }

    #[test]
    fn tap_gets_both_kinds_of_uso_or_none() {
        assert_eq!(tap_offloads(0), 0);
        assert_eq!(tap_offloads(GUEST_CSUM | GUEST_USO4), libc::TUN_F_CSUM);
        assert_eq!(
            tap_offloads(GUEST_CSUM | GUEST_USO4 | GUEST_USO6),
            libc::TUN_F_CSUM | libc::TUN_F_USO4 | libc::TUN_F_USO6
        );
    }
}
