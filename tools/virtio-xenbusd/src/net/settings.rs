// SPDX-License-Identifier: GPL-2.0-or-later
//! What an administrator can set for a card.

use serde::{Deserialize, Deserializer, de};
use tap::Name;

use super::mac::Mac;
use crate::config::with_limits;

with_limits! {
    /// What the configuration says of a network device.
    pub struct Settings {
        /// The bridge that the card is plugged into.
        #[serde(deserialize_with = "name")]
        pub bridge: Name,
        /// The card's address; made from the guest's name and the device number by default.
        pub mac: Option<Mac>,
        /// The card's MTU; the bridge's by default.
        pub mtu: Option<Mtu>,
        /// Leave checksums out between guest and backend, both ways.
        #[serde(default = "on")]
        pub checksum_offload: bool,
        /// Pass TCP and UDP segments of up to 64 KiB, both ways. Not without checksum offload.
        #[serde(default = "on")]
        pub segmentation_offload: bool,
        /// Let a received packet take several buffers.
        #[serde(default = "on")]
        pub mergeable_buffers: bool,
        /// Have the kernel's vhost-net pass packets on; if it is there, by default.
        pub vhost: Option<bool>,
    }
}

/// The length in bytes of the longest packet, without the Ethernet header.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "i64")]
pub struct Mtu(u16);

impl Mtu {
    /// What IPv4 needs.
    pub const MIN: u16 = 68;
    /// What a tap can have: an Ethernet frame of 65535 bytes.
    pub const MAX: u16 = 65521;

    /// The MTU nearest to `bytes`.
    pub fn nearest(bytes: u32) -> Self {
        Self(
            u16::try_from(bytes)
                .unwrap_or(u16::MAX)
                .clamp(Self::MIN, Self::MAX),
        )
    }

    /// Bytes.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<i64> for Mtu {
    type Error = String;

    fn try_from(value: i64) -> Result<Self, String> {
        u16::try_from(value)
            .ok()
            .filter(|mtu| (Self::MIN..=Self::MAX).contains(mtu))
            .map(Self)
            .ok_or_else(|| {
                format!(
                    "{value} is not an MTU: it must be from {} to {} bytes",
                    Self::MIN,
                    Self::MAX
                )
            })
    }
}

fn on() -> bool {
    true
}

fn name<'de, D: Deserializer<'de>>(from: D) -> Result<Name, D::Error> {
    Name::new(&String::deserialize(from)?).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn bridge_is_enough() {
        let settings = parse("bridge = \"xenbr0\"").unwrap();
        assert_eq!(settings.bridge.as_str(), "xenbr0");
        assert_eq!((settings.mac, settings.mtu), (None, None));
        assert!(settings.checksum_offload && settings.segmentation_offload);
        assert!(settings.mergeable_buffers);
    }

    #[test]
    fn bad_values_are_named() {
        for (key, value) in [
            ("bridge", "\"\""),
            ("bridge", "\"a bridge too far away\""),
            ("mac", "\"00:16:3e:zz:00:01\""),
            ("mac", "\"01:16:3e:00:00:01\""),
            ("mtu", "67"),
            ("mtu", "65522"),
            ("mtu", "-1"),
            ("mtu", "\"1500\""),
            ("checksum-offload", "\"no\""),
            ("brigde", "\"xenbr0\""),
        ] {
            let bridge = if key == "bridge" {
                ""
            } else {
                "bridge = \"xenbr0\"\n"
            };
            let error = parse(&format!("{bridge}{key} = {value}\n")).unwrap_err();
            assert!(error.contains(key), "{error}");
            assert!(error.contains(value.trim_matches('"')), "{error}");
        }
        assert!(parse("").unwrap_err().contains("bridge"));
    }

    #[test]
    fn mtu_follows_the_bridge_within_limits() {
        assert_eq!(Mtu::nearest(9000).get(), 9000);
        assert_eq!(Mtu::nearest(65535).get(), Mtu::MAX);
        assert_eq!(Mtu::nearest(u32::MAX).get(), Mtu::MAX);
        assert_eq!(Mtu::nearest(0).get(), Mtu::MIN);
    }
}
