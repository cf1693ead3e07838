// SPDX-License-Identifier: GPL-2.0-or-later
//! Ethernet addresses of guests' cards.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// The prefix that is assigned to Xen guests.
const XEN_PREFIX: [u8; 3] = [0x00, 0x16, 0x3e];

/// An address that one card can have: neither a group address nor zero.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// Takes the six bytes of an address; `None` for a group address or zero.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        let group = bytes[0] & 1 != 0;
        (!group && bytes != [0; 6]).then_some(Mac(bytes))
    }

    /// The address of card `device` of the guest called `guest`: the same at each start, and most
    /// likely another one for another card.
    pub fn generate(guest: &str, device: u32) -> Self {
        // FNV-1a. It need not resist anyone: whoever may name guests may set addresses too.
        let hash = guest
            .bytes()
            .chain(device.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        let [a, b, c, ..] = (hash ^ (hash >> 32)).to_le_bytes();
        let [x, y, z] = XEN_PREFIX;
        Mac([x, y, z, a & 0x7f, b, c])
    }

    /// The six bytes in the order in which they are sent.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = |why| BadMac {
            text: text.to_owned(),
            why,
        };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = parts.next().and_then(octet).ok_or_else(|| bad(FORM))?;
        }
        if parts.next().is_some() {
            return Err(bad(FORM));
        }
        Mac::new(bytes).ok_or_else(|| {
            bad("a card needs a unicast address: its first byte is even, and it is not zero")
        })
    }
}

const FORM: &str = "it is written as six hexadecimal bytes, for example 00:16:3e:12:34:56";

/// Reads exactly two hexadecimal digits.
fn octet(text: &str) -> Option<u8> {
    let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
    digits.then(|| u8::from_str_radix(text, 16).ok()).flatten()
}

impl TryFrom<String> for Mac {
    type Error = BadMac;

    fn try_from(text: String) -> Result<Self, BadMac> {
        text.parse()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no address of a card.
#[derive(Debug)]
pub struct BadMac {
    text: String,
    why: &'static str,
}

impl fmt::Display for BadMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a MAC address for a card: {}",
            self.text, self.why
        )
    }
}

impl std::error::Error for BadMac {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints() {
        let mac: Mac = "00:16:3E:0a:bc:01".parse().expect("well-formed");
        assert_eq!(mac.bytes(), [0x00, 0x16, 0x3e, 0x0a, 0xbc, 0x01]);
        assert_eq!(mac.to_string(), "00:16:3e:0a:bc:01");
    }

    #[test]
    fn refuses_malformed_text_and_names_it() {
        for bad in [
            "",
            "00:16:3e:0a:bc",
            "00:16:3e:0a:bc:01:02",
            "00:16:3e:0a:bc:1",
            "00:16:3e:0a:bc:001",
            "00:16:3e:0a:bc:0g",
            "00:16:3e:0a:bc:+1",
            "00-16-3e-0a-bc-01",
            " 00:16:3e:0a:bc:01",
            "00:16:3e:0a:bc:0é",
        ] {
            let error = bad.parse::<Mac>().expect_err(bad).to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
            assert!(error.contains("00:16:3e:12:34:56"), "{error}");
        }
    }

    #[test]
    fn refuses_addresses_that_no_card_can_have() {
        for bad in [
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            let error = bad.parse::<Mac>().expect_err(bad).to_string();
            assert!(error.contains("unicast"), "{error}");
        }
    }

    #[test]
    fn generates_stable_and_distinct_addresses() {
        let mac = Mac::generate("web", 0);
        assert_eq!(mac, Mac::generate("web", 0));
        assert_eq!(mac.bytes()[..3], XEN_PREFIX);
        assert!(Mac::new(mac.bytes()).is_some());
        assert_ne!(mac, Mac::generate("web", 1));
        assert_ne!(mac, Mac::generate("wec", 0));
    }
}
