// SPDX-License-Identifier: GPL-2.0

//! What the backend offers in xenstore, and what the frontend chooses of it.
//!
//! Every value here was written by the other side and may hold anything.

use kernel::prelude::*;

use super::wire::{
    KEY_MAX_POOL,
    KEY_MAX_QUEUES,
    KEY_MODES,
    KEY_VERSIONS,
    MAX_POOL_PAGES,
    MODE_GRANT,
    MODE_MACHINE,
    MODE_POOL,
    VERSION, //
};

mod refusal;

pub(crate) use refusal::Refusal;
use refusal::Wanted;

/// The fewest pages of a pool: what the ring of a small device and some buffers need.
pub(crate) const MIN_POOL_PAGES: usize = 64;

/// The toolstack's key for the kind of a device of type `virtio`.
pub(crate) const KEY_TYPE: &CStr = c"type";

/// The device id of a block device in the virtio specification.
const DEVICE_ID_BLOCK: u32 = 2;

/// What the addresses in descriptors mean, apart from those in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing else: every buffer is in the pool.
    Pool,
    /// Whole pages are granted for as long as a request lasts.
    Grant,
    /// The backend maps machine addresses by itself.
    Machine,
}

impl Mode {
    const ALL: [Mode; 3] = [Mode::Pool, Mode::Grant, Mode::Machine];

    /// Those that may be used with a backend that is trusted or not; `wish` is the position of the
    /// one that the user wants, counted from 1, or 0 for any.
    ///
    /// A backend that is not trusted must see nothing but what is meant for it (XSA-403).
    pub(crate) fn allowed(wish: usize, trusted: bool) -> &'static [Mode] {
        const ALL: &[Mode] = &Mode::ALL;

        match wish.checked_sub(1) {
            _ if !trusted => ALL.get(..1),
            None => Some(ALL),
            Some(position) => ALL.get(position..=position),
        }
        .unwrap_or_default()
    }

    /// The name that stands in xenstore.
    pub(crate) fn name(self) -> &'static CStr {
        match self {
            Mode::Pool => MODE_POOL,
            Mode::Grant => MODE_GRANT,
            Mode::Machine => MODE_MACHINE,
        }
    }

    fn from_name(name: &[u8]) -> Option<Mode> {
        Mode::ALL
            .into_iter()
            .find(|mode| mode.name().to_bytes() == name)
    }
}

/// What the backend offers; each value has the form that it shall have.
pub(crate) struct Offer<'a> {
    versions: &'a [u8],
    modes: &'a [u8],
    max_pool: Option<&'a [u8]>,
    max_pool_pages: usize,
}

/// What the frontend is ready for.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// The address modes that it may use.
    pub(crate) modes: &'static [Mode],
    /// The pages it would like to have in the pool.
    pub(crate) pool_pages: usize,
    /// The fewest pages that it can do with.
    pub(crate) min_pool_pages: usize,
}

/// What both sides go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The protocol version.
    pub(crate) version: u32,
    /// The address mode.
    pub(crate) mode: Mode,
    /// The pages of the pool, from [`MIN_POOL_PAGES`] to [`MAX_POOL_PAGES`].
    pub(crate) pool_pages: usize,
}

/// Checks the form of the backend's values; [`None`] stands for a key that is missing.
pub(crate) fn parse_offer<'a>(
    versions: Option<&'a [u8]>,
    modes: Option<&'a [u8]>,
    max_queues: Option<&[u8]>,
    max_pool: Option<&'a [u8]>,
) -> Result<Offer<'a>, Refusal> {
    let missing = |key, wanted| Refusal::new(key, None, wanted);
    let versions = versions.ok_or(missing(KEY_VERSIONS, Wanted::Version))?;
    let modes = modes.ok_or(missing(KEY_MODES, Wanted::Text("a list of address modes")))?;
    // The control page says how many there are, and how large each is.
    number(KEY_MAX_QUEUES, max_queues, 1)?;
    Ok(Offer {
        versions,
        modes,
        max_pool,
        max_pool_pages: number(KEY_MAX_POOL, max_pool, MIN_POOL_PAGES)?,
    })
}

/// Chooses from `offer` what `limits` allow.
///
/// Of the address modes that `limits` allow the backend's best is taken: how much of its memory the
/// backend may see is the guest's decision, what suits the device is the backend's.
pub(crate) fn choose(offer: &Offer<'_>, limits: &Limits) -> Result<Choice, Refusal> {
    if !words(offer.versions).any(|word| decimal(word) == Some(VERSION)) {
        let found = Some(offer.versions);
        return Err(Refusal::new(KEY_VERSIONS, found, Wanted::Version));
    }
    let Some(mode) = words(offer.modes)
        .filter_map(Mode::from_name)
        .find(|mode| limits.modes.contains(mode))
    else {
        let wanted = Wanted::Modes(limits.modes);
        return Err(Refusal::new(KEY_MODES, Some(offer.modes), wanted));
    };
    if offer.max_pool_pages < limits.min_pool_pages {
        let wanted = Wanted::Number(limits.min_pool_pages);
        return Err(Refusal::new(KEY_MAX_POOL, offer.max_pool, wanted));
    }
    let pool_pages = limits.pool_pages.clamp(MIN_POOL_PAGES, MAX_POOL_PAGES);
    Ok(Choice {
        version: VERSION,
        mode,
        pool_pages: pool_pages.min(offer.max_pool_pages),
    })
}

/// The device id of the virtio specification for a device of xenbus type `kind`.
///
/// For `virtio` it stands in the backend's key [`KEY_TYPE`], as `virtio,device` and the id in
/// hexadecimal digits; a `virtio_disk` is a block device.
pub(crate) fn device_id(kind: &str, type_node: Option<&[u8]>) -> Result<u32, Refusal> {
    match kind {
        "virtio_disk" => Ok(DEVICE_ID_BLOCK),
        "virtio" => type_node
            .and_then(|text| text.strip_prefix(b"virtio,device"))
            .and_then(hexadecimal)
            .filter(|&id| id != 0)
            .ok_or_else(|| {
                let wanted = Wanted::Text("virtio,device<hexadecimal id>");
                Refusal::new(KEY_TYPE, type_node, wanted)
            }),
        _ => {
            let wanted = Wanted::Text("virtio or virtio_disk");
            Err(Refusal::new(c"device", Some(kind.as_bytes()), wanted))
        }
    }
}

/// The words of a list, with empty ones where spaces follow each other. Words that are not known
/// are for later revisions of the protocol, and no error.
fn words(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&c| c == b' ')
}

/// The value of `key`, which shall be a number and at least `least`.
fn number(key: &'static CStr, value: Option<&[u8]>, least: usize) -> Result<usize, Refusal> {
    value
        .and_then(decimal)
        .map(|number| number as usize)
        .filter(|&number| number >= least)
        .ok_or_else(|| Refusal::new(key, value, Wanted::Number(least)))
}

/// The value of one to ten decimal digits and nothing else, if it fits.
fn decimal(text: &[u8]) -> Option<u32> {
    if !(1..=10).contains(&text.len()) {
        return None;
    }
    text.iter().try_fold(0u32, |value, &c| {
        let digit = char::from(c).to_digit(10)?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// The value of one to eight hexadecimal digits of either case and nothing else.
fn hexadecimal(text: &[u8]) -> Option<u32> {
    if !(1..=8).contains(&text.len()) {
        return None;
    }
    text.iter().try_fold(0, |value, &c| {
        let digit = char::from(c).to_digit(16)?;
        Some(value << 4 | digit)
    })
}

#[kunit_tests(virtio_xenbus_negotiate)]
mod tests {
    use super::*;
    use kernel::str::CString;

    const LIMITS: Limits = Limits {
        modes: &[Mode::Pool],
        pool_pages: 2048,
        min_pool_pages: MIN_POOL_PAGES,
    };

    /// What comes of an offer with these values.
    fn outcome(
        versions: &[u8],
        modes: &[u8],
        max_queues: &[u8],
        max_pool: &[u8],
        limits: &Limits,
    ) -> Result<Choice, Refusal> {
        let (max_queues, max_pool) = (Some(max_queues), Some(max_pool));
        let offer = parse_offer(Some(versions), Some(modes), max_queues, max_pool)?;
        choose(&offer, limits)
    }

    /// Whether `result` is a refusal with this text.
    fn says<T>(result: Result<T, Refusal>, text: &CStr) -> Result<bool> {
        let Err(refusal) = result else {
            return Ok(false);
        };
        Ok(&*CString::try_from_fmt(fmt!("{refusal}"))? == text)
    }

    #[test]
    fn an_ordinary_offer_is_taken() {
        let choice = outcome(b"1", b"pool grant machine", b"4", b"4096", &LIMITS);
        let expected = Choice {
            version: 1,
            mode: Mode::Pool,
            pool_pages: 2048,
        };
        assert!(choice == Ok(expected));
    }

    #[test]
    fn our_version_may_stand_anywhere() {
        for versions in [
            &b"1"[..],
            b"1 2",
            b"3 2 1",
            b"  2  1 ",
            b"001",
            b"4294967295 1",
            b"4294967296 1.1 -1 one 1",
        ] {
            assert!(outcome(versions, b"pool", b"1", b"64", &LIMITS).is_ok());
        }
    }

    #[test]
    fn versions_without_ours_are_refused() -> Result {
        assert!(says(
            outcome(b"7 8", b"pool", b"1", b"64", &LIMITS),
            c"virtio-xenbus-versions: backend has \"7 8\", this driver takes 1",
        )?);
        for versions in [&b"0"[..], b"2", b"10 11", b"4294967297", b"", b" "] {
            assert!(outcome(versions, b"pool", b"1", b"64", &LIMITS).is_err());
        }
        Ok(())
    }

    #[test]
    fn what_is_no_number_is_not_our_version() {
        for versions in [
            &b"one"[..],
            b"-1",
            b"+1",
            b"1,2",
            b"1\t2",
            b"1\n",
            b"1\0",
            b"0x1",
            b"1.0",
            b"00000000001",
        ] {
            assert!(outcome(versions, b"pool", b"1", b"64", &LIMITS).is_err());
        }
    }

    #[test]
    fn of_the_modes_that_are_allowed_the_backends_best_is_taken() {
        let limits = Limits {
            modes: &[Mode::Grant, Mode::Pool],
            ..LIMITS
        };
        for (modes, mode) in [
            (&b"pool"[..], Mode::Pool),
            (b"grant", Mode::Grant),
            (b"pool grant", Mode::Pool),
            (b"grant pool", Mode::Grant),
            (b"machine pool", Mode::Pool),
            (b"  later  pool ", Mode::Pool),
        ] {
            let choice = outcome(b"1", modes, b"1", b"64", &limits);
            assert!(choice.is_ok_and(|choice| choice.mode == mode));
        }
    }

    #[test]
    fn modes_without_ours_are_refused() -> Result {
        assert!(says(
            outcome(b"1", b"machine grant", b"1", b"64", &LIMITS),
            c"address-modes: backend has \"machine grant\", this driver takes pool",
        )?);
        let both = Limits {
            modes: &[Mode::Pool, Mode::Grant],
            ..LIMITS
        };
        assert!(says(
            outcome(b"1", b"machine", b"1", b"64", &both),
            c"address-modes: backend has \"machine\", this driver takes pool or grant",
        )?);
        for modes in [
            &b""[..],
            b" ",
            b"POOL",
            b"pool,grant",
            b"pools",
            b"poo",
            b"pool\0",
        ] {
            assert!(outcome(b"1", modes, b"1", b"64", &LIMITS).is_err());
        }
        Ok(())
    }

    #[test]
    fn all_modes_are_allowed_that_the_user_leaves_open() {
        assert_eq!(Mode::allowed(0, true), Mode::ALL);
        assert_eq!(Mode::allowed(1, true), [Mode::Pool]);
        assert_eq!(Mode::allowed(2, true), [Mode::Grant]);
        assert_eq!(Mode::allowed(3, true), [Mode::Machine]);
        assert_eq!(Mode::allowed(4, true), []);
        assert_eq!(Mode::allowed(usize::MAX, true), []);
    }

    #[test]
    fn a_backend_that_is_not_trusted_gets_the_pool() {
        for wish in [0, 1, 2, 3, usize::MAX] {
            assert_eq!(Mode::allowed(wish, false), [Mode::Pool]);
        }
    }

    #[test]
    fn mode_names_are_those_of_the_protocol() {
        assert_eq!(Mode::Pool.name(), c"pool");
        assert_eq!(Mode::Grant.name(), c"grant");
        assert_eq!(Mode::Machine.name(), c"machine");
    }

    #[test]
    fn a_missing_key_is_named() -> Result {
        let one = Some(&b"1"[..]);
        let pool = Some(&b"pool"[..]);
        assert!(says(
            parse_offer(None, pool, one, one),
            c"virtio-xenbus-versions: backend has nothing, this driver takes 1",
        )?);
        assert!(says(
            parse_offer(one, None, one, one),
            c"address-modes: backend has nothing, this driver takes a list of address modes",
        )?);
        assert!(says(
            parse_offer(one, pool, None, one),
            c"max-queues: backend has nothing, this driver takes a number from 1 to 4294967295",
        )?);
        assert!(says(
            parse_offer(one, pool, one, None),
            c"max-pool-pages: backend has nothing, \
              this driver takes a number from 64 to 4294967295",
        )?);
        Ok(())
    }

    #[test]
    fn the_pool_is_the_smallest_of_the_limits() {
        for (theirs, ours, pages) in [
            (&b"64"[..], 2048, 64),
            (b"4096", 2048, 2048),
            (b"4294967295", usize::MAX, 32768),
            (b"4096", 0, 64),
            (b"4096", 63, 64),
        ] {
            let limits = Limits {
                pool_pages: ours,
                ..LIMITS
            };
            let choice = outcome(b"1", b"pool", b"1", theirs, &limits);
            assert!(choice.is_ok_and(|choice| choice.pool_pages == pages));
        }
    }

    #[test]
    fn a_pool_that_is_there_already_must_fit() -> Result {
        let limits = Limits {
            pool_pages: 100,
            min_pool_pages: 100,
            ..LIMITS
        };
        assert!(outcome(b"1", b"pool", b"1", b"100", &limits).is_ok_and(|c| c.pool_pages == 100));
        assert!(says(
            outcome(b"1", b"pool", b"1", b"99", &limits),
            c"max-pool-pages: backend has \"99\", \
              this driver takes a number from 100 to 4294967295",
        )?);
        Ok(())
    }

    #[test]
    fn numbers_out_of_range_are_refused() -> Result {
        assert!(says(
            outcome(b"1", b"pool", b"0", b"64", &LIMITS),
            c"max-queues: backend has \"0\", this driver takes a number from 1 to 4294967295",
        )?);
        assert!(says(
            outcome(b"1", b"pool", b"1", b"63", &LIMITS),
            c"max-pool-pages: backend has \"63\", this driver takes a number from 64 to 4294967295",
        )?);
        for bad in [
            &b""[..],
            b" 64",
            b"64 ",
            b"64\n",
            b"-64",
            b"+64",
            b"64k",
            b"0x64",
            b"00000000064",
            // As 32 bits: 0, and 65 if the product wrapped around.
            b"4294967296",
            b"4294967361",
            b"18446744073709551680",
            b"99999999999999999999999999999999999999999999999999",
        ] {
            assert!(outcome(b"1", b"pool", bad, b"64", &LIMITS).is_err());
            assert!(outcome(b"1", b"pool", b"1", bad, &LIMITS).is_err());
        }
        Ok(())
    }

    #[test]
    fn device_ids_are_hexadecimal() {
        for (text, id) in [
            (&b"virtio,device1"[..], 1),
            (b"virtio,device2", 2),
            (b"virtio,device1a", 26),
            (b"virtio,device1A", 26),
            (b"virtio,device00000010", 16),
            (b"virtio,devicefffffffF", u32::MAX),
        ] {
            assert!(device_id("virtio", Some(text)) == Ok(id));
        }
    }

    #[test]
    fn other_types_are_refused() -> Result {
        assert!(says(
            device_id("virtio", Some(b"virtio,devicezz")),
            c"type: backend has \"virtio,devicezz\", \
              this driver takes virtio,device<hexadecimal id>",
        )?);
        assert!(says(
            device_id("virtio", None),
            c"type: backend has nothing, this driver takes virtio,device<hexadecimal id>",
        )?);
        for text in [
            &b""[..],
            b"virtio",
            b"virtio,device",
            b"virtio,device0",
            b"virtio,device00000000",
            b"virtio,device000000001",
            b"virtio,device+1",
            b"virtio,device-1",
            b"virtio,device 1",
            b"virtio,device1 ",
            b"virtio,device0x1",
            b"virtio,device1\0",
            b" virtio,device1",
            b"Virtio,device1",
            b"virtio,device\xff",
        ] {
            assert!(device_id("virtio", Some(text)).is_err());
        }
        Ok(())
    }

    #[test]
    fn a_disk_is_a_block_device_whatever_its_type_says() {
        assert!(device_id("virtio_disk", None) == Ok(2));
        assert!(device_id("virtio_disk", Some(b"virtio,device1")) == Ok(2));
    }

    #[test]
    fn another_kind_is_refused() -> Result {
        assert!(says(
            device_id("vif", Some(b"virtio,device1")),
            c"device: backend has \"vif\", this driver takes virtio or virtio_disk",
        )?);
        assert!(device_id("", None).is_err());
        Ok(())
    }
}
