// SPDX-License-Identifier: GPL-2.0

//! What the backend says of its device, and whether that is acceptable.

use kernel::{
    fmt,
    prelude::*, //
};

use super::{
    super::sys::bindings::{
        self as raw,
        virtio_xenbus_identity as RawIdentity, //
    },
    features_from_wire,
    CONFIG_SIZE,
    MAX_QUEUES,
    VERSION, //
};

/// A device as its backend describes it, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The device id of the virtio specification.
    pub(crate) device_id: u32,
    /// The vendor id.
    pub(crate) vendor_id: u32,
    /// The offered features.
    pub(crate) features: [u64; 2],
    /// The largest size of each queue in descriptors, 0 where there is none.
    pub(crate) queue_sizes: [u16; MAX_QUEUES],
    /// The number of queue indices, from 1 to [`MAX_QUEUES`].
    pub(crate) num_queues: usize,
    /// The length of the configuration space in bytes, up to [`CONFIG_SIZE`].
    pub(crate) config_length: usize,
}

/// Why an identity is not acceptable. As text it names field, value and what is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadIdentity {
    /// The page holds something else.
    Magic(u32),
    /// Not the version that was chosen.
    Version(u32),
    /// Not the device that xenstore says.
    Device {
        /// What the page says.
        found: u32,
        /// What xenstore says.
        expected: u32,
    },
    /// No queue, or too many.
    NumQueues(u16),
    /// Not a size that a queue can have.
    QueueSize {
        /// The index of the queue.
        queue: usize,
        /// Its size.
        size: u16,
    },
    /// Longer than the space for it.
    ConfigLength(u16),
}

impl fmt::Display for BadIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("control page: ")?;
        match *self {
            Self::Magic(magic) => write!(
                f,
                "magic {magic:#010x}, but {:#010x} is expected",
                raw::VIRTIO_XENBUS_MAGIC
            ),
            Self::Version(version) => write!(f, "version {version}, but {VERSION} was chosen"),
            Self::Device { found, expected } => {
                write!(f, "device id {found}, but {expected} in xenstore")
            }
            Self::NumQueues(n) => write!(f, "{n} queues, but 1 to {MAX_QUEUES} are possible"),
            Self::QueueSize { queue, size } => {
                write!(f, "queue {queue} has size {size}, not a power of two")
            }
            Self::ConfigLength(length) => write!(
                f,
                "{length} bytes of configuration, but up to {CONFIG_SIZE} are possible"
            ),
        }
    }
}

/// Checks what the backend says of its device; `raw` is the driver's copy.
pub(crate) fn check_identity(
    raw: &RawIdentity,
    expected_device: u32,
) -> Result<Identity, BadIdentity> {
    let magic = u32::from_le(raw.magic);
    if magic != raw::VIRTIO_XENBUS_MAGIC {
        return Err(BadIdentity::Magic(magic));
    }
    let version = u32::from_le(raw.version);
    if version != VERSION {
        return Err(BadIdentity::Version(version));
    }
    let found = u32::from_le(raw.device_id);
    if found != expected_device {
        let expected = expected_device;
        return Err(BadIdentity::Device { found, expected });
    }

    let num_queues = u16::from_le(raw.num_queues);
    if num_queues == 0 || usize::from(num_queues) > MAX_QUEUES {
        return Err(BadIdentity::NumQueues(num_queues));
    }
    let num_queues = usize::from(num_queues);
    let mut queue_sizes = [0; MAX_QUEUES];
    let sizes = queue_sizes.iter_mut().zip(raw.queue_size_max);
    for (queue, (checked, size)) in sizes.take(num_queues).enumerate() {
        let size = u16::from_le(size);
        // The largest that virtio allows, 32768, is the largest there is in 16 bits.
        if size != 0 && !size.is_power_of_two() {
            return Err(BadIdentity::QueueSize { queue, size });
        }
        *checked = size;
    }

    let config_length = u16::from_le(raw.config_length);
    if usize::from(config_length) > CONFIG_SIZE {
        return Err(BadIdentity::ConfigLength(config_length));
    }

    Ok(Identity {
        device_id: found,
        vendor_id: u32::from_le(raw.vendor_id),
        features: features_from_wire(raw.features),
        queue_sizes,
        num_queues,
        config_length: usize::from(config_length),
    })
}

#[kunit_tests(virtio_xenbus_identity)]
mod tests {
    use super::*;
    use kernel::str::CString;

    const NET: u32 = 1;

    /// The identity of a card with two queues.
    fn good() -> RawIdentity {
        let mut queue_size_max = [0; MAX_QUEUES];
        for size in queue_size_max.iter_mut().take(2) {
            *size = 256u16.to_le();
        }
        RawIdentity {
            magic: raw::VIRTIO_XENBUS_MAGIC.to_le(),
            version: 1u32.to_le(),
            device_id: NET.to_le(),
            vendor_id: 0x1af4u32.to_le(),
            features: [0x8000_0001, 3, 5, 0x8000_0007].map(u32::to_le),
            num_queues: 2u16.to_le(),
            config_length: 12u16.to_le(),
            reserved: 0,
            queue_size_max,
            pad: [0; 56],
        }
    }

    /// `good()` with something changed, and what is made of it.
    fn check(change: impl FnOnce(&mut RawIdentity)) -> Result<Identity, BadIdentity> {
        let mut identity = good();
        change(&mut identity);
        check_identity(&identity, NET)
    }

    fn size_of_queue(queue: usize, size: u16) -> Result<Identity, BadIdentity> {
        check(|id| {
            if let Some(s) = id.queue_size_max.get_mut(queue) {
                *s = size.to_le();
            }
        })
    }

    #[test]
    fn magic_reads_vxen() {
        assert_eq!(&raw::VIRTIO_XENBUS_MAGIC.to_le_bytes(), b"VXEN");
    }

    #[test]
    fn a_good_identity_is_taken_over() -> Result {
        let identity = check(|_| ()).map_err(|_| EINVAL)?;
        assert_eq!(identity.device_id, NET);
        assert_eq!(identity.vendor_id, 0x1af4);
        assert_eq!(identity.features, [0x3_8000_0001, 0x8000_0007_0000_0005]);
        assert_eq!(identity.queue_sizes.get(..3), Some(&[256, 256, 0][..]));
        assert_eq!(identity.num_queues, 2);
        assert_eq!(identity.config_length, 12);
        Ok(())
    }

    #[test]
    fn a_page_of_zeroes_is_refused() {
        let bad = check(|id| id.magic = 0);
        assert_eq!(bad, Err(BadIdentity::Magic(0)));
        let bad = check(|id| id.magic = raw::VIRTIO_XENBUS_MAGIC.swap_bytes());
        assert!(matches!(bad, Err(BadIdentity::Magic(_))));
    }

    #[test]
    fn another_version_is_refused() {
        for version in [0, 2, u32::MAX] {
            let bad = check(|id| id.version = version.to_le());
            assert_eq!(bad, Err(BadIdentity::Version(version)));
        }
    }

    #[test]
    fn another_device_is_refused() {
        for found in [0, 2, 1 << 24, u32::MAX] {
            let expected = NET;
            let bad = check(|id| id.device_id = found.to_le());
            assert_eq!(bad, Err(BadIdentity::Device { found, expected }));
        }
    }

    #[test]
    fn queues_are_1_to_48() {
        for n in [0, 49, 64, 256, u16::MAX] {
            let bad = check(|id| id.num_queues = n.to_le());
            assert_eq!(bad, Err(BadIdentity::NumQueues(n)));
        }
        for n in [1u16, 2, 48] {
            assert!(check(|id| id.num_queues = n.to_le()).is_ok());
        }
    }

    #[test]
    fn queue_sizes_are_powers_of_two_or_0() {
        for queue in 0..2 {
            for size in [3, 255, 257, 32767, 32769, 49152, u16::MAX] {
                let bad = size_of_queue(queue, size);
                assert_eq!(bad, Err(BadIdentity::QueueSize { queue, size }));
            }
            for size in [0, 1, 2, 1024, 32768] {
                assert!(size_of_queue(queue, size).is_ok());
            }
        }
    }

    #[test]
    fn sizes_of_queues_that_do_not_exist_are_not_read() -> Result {
        let identity = size_of_queue(2, 12345).map_err(|_| EINVAL)?;
        assert_eq!(identity.queue_sizes.get(2), Some(&0));
        Ok(())
    }

    #[test]
    fn configuration_is_up_to_2048_bytes() {
        for length in [2049, 4096, u16::MAX] {
            let bad = check(|id| id.config_length = length.to_le());
            assert_eq!(bad, Err(BadIdentity::ConfigLength(length)));
        }
        for length in [0u16, 1, 2048] {
            assert!(check(|id| id.config_length = length.to_le()).is_ok());
        }
    }

    #[test]
    fn reserved_fields_are_not_read() {
        let identity = check(|id| {
            id.reserved = u32::MAX;
            id.pad = [0xff; 56];
        });
        assert_eq!(identity, check(|_| ()));
    }

    #[test]
    fn a_refusal_names_field_value_and_limit() -> Result {
        for (bad, text) in [
            (
                BadIdentity::Magic(0x12),
                c"control page: magic 0x00000012, but 0x4e455856 is expected",
            ),
            (
                BadIdentity::Version(7),
                c"control page: version 7, but 1 was chosen",
            ),
            (
                BadIdentity::Device {
                    found: 2,
                    expected: 1,
                },
                c"control page: device id 2, but 1 in xenstore",
            ),
            (
                BadIdentity::NumQueues(49),
                c"control page: 49 queues, but 1 to 48 are possible",
            ),
            (
                BadIdentity::QueueSize { queue: 3, size: 12 },
                c"control page: queue 3 has size 12, not a power of two",
            ),
            (
                BadIdentity::ConfigLength(2049),
                c"control page: 2049 bytes of configuration, but up to 2048 are possible",
            ),
        ] {
            assert_eq!(&*CString::try_from_fmt(fmt!("{bad}"))?, text);
        }
        Ok(())
    }
}
