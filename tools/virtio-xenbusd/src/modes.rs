// SPDX-License-Identifier: GPL-2.0-or-later
//! Address modes: what a guest's descriptors may point to beside the pool.

use std::fmt;

use anyhow::{Result, bail};
use serde::Deserialize;
use virtioif::bindings::{
    VIRTIO_XENBUS_MODE_GRANT, VIRTIO_XENBUS_MODE_MACHINE, VIRTIO_XENBUS_MODE_POOL,
};
use xen::{DomainId, ForeignMemory};

use crate::keys::key;

/// An address mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Pool,
    /// Grants.
    Grant,
    /// Frames, whether they are granted or not.
    Machine,
}

impl Mode {
    /// All of them, in the order in which they are offered by default.
    pub const ALL: [Self; 3] = [Self::Pool, Self::Grant, Self::Machine];

    /// Its name in xenstore and in the configuration.
    pub fn name(self) -> &'static str {
        key(match self {
            Self::Pool => VIRTIO_XENBUS_MODE_POOL,
            Self::Grant => VIRTIO_XENBUS_MODE_GRANT,
            Self::Machine => VIRTIO_XENBUS_MODE_MACHINE,
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Address modes to offer, best first. Each is there once at most, and `pool` always is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "Vec<String>")]
pub struct Modes([Option<Mode>; Mode::ALL.len()]);

impl Modes {
    /// `pool` and no other.
    pub const POOL: Self = Self([Some(Mode::Pool), None, None]);

    /// Those of `wanted` that `device` can do, for a guest of domain `domain`; all by default.
    ///
    /// # Errors
    ///
    /// `machine` is wanted, but this domain may not map the guest's memory.
    pub fn to_offer(wanted: Option<Self>, device: &[Mode], domain: DomainId) -> Result<Self> {
        let mut offered = wanted.unwrap_or(Self(Mode::ALL.map(Some)));

        offered.keep(|mode| device.contains(&mode));
        if offered.contains(Mode::Machine) {
            if let Err(error) = ForeignMemory::check(domain) {
                if wanted.is_some() {
                    bail!(
                        "address-modes has \"{}\", but this domain may not map the guest's memory \
                         ({error}): leave it out, or run the daemon in dom0",
                        Mode::Machine
                    );
                }
                offered.keep(|mode| mode != Mode::Machine);
            }
        }
        Ok(offered)
    }

    fn keep(&mut self, wanted: impl Fn(Mode) -> bool) {
        self.0 = self.0.map(|mode| mode.filter(|&mode| wanted(mode)));
    }

    fn iter(&self) -> impl Iterator<Item = Mode> {
        self.0.iter().flatten().copied()
    }

    /// Whether `mode` is among them.
    pub fn contains(&self, mode: Mode) -> bool {
        self.iter().any(|other| other == mode)
    }

    /// The one with this name.
    pub fn find(&self, name: &str) -> Option<Mode> {
        self.iter().find(|mode| mode.name() == name)
    }
}

impl fmt::Display for Modes {
    /// As in xenstore: separated by spaces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Mode::name).collect();
        f.write_str(&names.join(" "))
    }
}

impl TryFrom<Vec<String>> for Modes {
    type Error = String;

    fn try_from(names: Vec<String>) -> Result<Self, String> {
        let all = Self(Mode::ALL.map(Some));
        let mut modes = Self([None; Mode::ALL.len()]);

        for name in names {
            let mode = all.find(&name).ok_or_else(|| {
                format!(
                    "{name:?} is not an address mode: there are \"pool\", \"grant\", \"machine\""
                )
            })?;
            if modes.contains(mode) {
                return Err(format!("address mode \"{mode}\" is named twice"));
            }
            // Three names that differ fit.
            if let Some(free) = modes.0.iter_mut().find(|slot| slot.is_none()) {
                *free = Some(mode);
            }
        }
        if !modes.contains(Mode::Pool) {
            return Err(format!(
                "address mode \"{}\" is missing: every guest must be able to choose it; what \
                 comes first is preferred",
                Mode::Pool
            ));
        }
        Ok(modes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(names: &[&str]) -> Result<Modes, String> {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        Modes::try_from(names)
    }

    #[test]
    fn order_is_kept() {
        let names = modes(&["grant", "pool"]).unwrap();
        assert_eq!(names.to_string(), "grant pool");
        assert_eq!(names.find("grant"), Some(Mode::Grant));
        assert_eq!((names.find("machine"), names.find("")), (None, None));
        let all = modes(&["machine", "grant", "pool"]).unwrap();
        assert_eq!(all.to_string(), "machine grant pool");
    }

    #[test]
    fn bad_lists_are_refused() {
        for (names, what) in [
            (["pool", "Grant"].as_slice(), "\"Grant\" is not"),
            (&["pool", "grant", "pool"], "\"pool\" is named twice"),
            (&[], "\"pool\" is missing"),
            (&["grant"], "\"pool\" is missing"),
        ] {
            let error = modes(names).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn offer_is_what_the_device_can_do() {
        // There is no such domain: nothing may be mapped.
        let offer = |wanted, device: &[Mode]| Modes::to_offer(wanted, device, 0x7ff4);
        assert_eq!(offer(None, &Mode::ALL).unwrap().to_string(), "pool grant");
        assert_eq!(offer(None, &[Mode::Pool]).unwrap().to_string(), "pool");
        let wanted = modes(&["machine", "grant", "pool"]).ok();
        let pool = offer(wanted, &[Mode::Pool]).unwrap();
        assert_eq!(pool.to_string(), "pool");
        let error = offer(wanted, &Mode::ALL).unwrap_err().to_string();
        assert!(
            error.contains("\"machine\"") && error.contains("dom0"),
            "{error}"
        );
    }
}
