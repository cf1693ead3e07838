// SPDX-License-Identifier: GPL-2.0-or-later
//! Devices whose data path is somebody else's: a vhost-user program's, or the kernel's vhost.
//!
//! Rings, indirect tables and buffers all lie in the pool, which these map as one region. The
//! daemon keeps the control page and joins event channels and eventfds ([`join`]).

pub mod event;
pub mod join;
pub mod kernel;
pub mod user;
pub mod vring;
pub mod vsock;
mod watchdog;

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;

use crate::control::RING_FEATURES;
use crate::device::feature;

/// Features of device types: bits 0 to 23 and 50 to 63.
const DEVICE_FEATURES: u128 = 0xff_ffff | (0x3fff << 50);

/// What of a program's or kernel's `features` the device offers itself.
pub fn device_features(features: u64) -> u128 {
    u128::from(features) & DEVICE_FEATURES
}

/// What of a program's or kernel's `features` the rings can have.
pub fn ring_features(features: u64) -> u128 {
    u128::from(features) & RING_FEATURES
}

/// What of the features that a driver has accepted is told to the program or kernel.
///
/// `ACCESS_PLATFORM` is not: to them it means that addresses are looked up in an IOMMU, and ours
/// are looked up in the memory table.
pub fn accepted(features: u128) -> u64 {
    let told = DEVICE_FEATURES | RING_FEATURES | feature(VIRTIO_F_VERSION_1);
    // CAST: `told` has no bit above 63.
    (features & told) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_of_others_are_not_passed_on() {
        // LOG_ALL, PROTOCOL_FEATURES, ACCESS_PLATFORM, RING_PACKED, RING_RESET.
        for bit in [26, 30, 33, 34, 40] {
            assert_eq!(device_features(1 << bit), 0);
            assert_eq!(ring_features(1 << bit), 0);
            assert_eq!(accepted(1 << bit), 0);
        }
        assert_eq!(device_features(u64::MAX), 0xfffc_0000_00ff_ffff);
        assert_eq!(accepted(u128::MAX), 0xfffc_0001_30ff_ffff);
        assert_eq!(ring_features(u64::MAX), RING_FEATURES);
    }
}
