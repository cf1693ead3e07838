// SPDX-License-Identifier: GPL-2.0

//! The control page, as types and rules.
//!
//! `include/xen/interface/io/virtioif.h` defines it. What is here turns the numbers of that header
//! into types, and says which values of the backend are acceptable.

use core::{
    mem::{
        offset_of,
        size_of, //
    },
    ops::Range, //
};

use kernel::prelude::*;

use super::sys::bindings::{
    self as raw,
    virtio_xenbus_control_page as ControlPage,
    virtio_xenbus_device_regs as DeviceRegs,
    virtio_xenbus_driver_regs as DriverRegs,
    virtio_xenbus_identity as RawIdentity,
    virtio_xenbus_queue as Queue,
    virtio_xenbus_request as Request, //
};

mod identity;

pub(crate) use identity::{
    check_identity,
    Identity, //
};

mod unfit;

pub(crate) use unfit::check_fit;

/// The protocol version of this driver.
pub(crate) const VERSION: u32 = raw::VIRTIO_XENBUS_VERSION;
/// Bytes of a page of the pool and of the control page.
pub(crate) const PAGE_SIZE: usize = raw::VIRTIO_XENBUS_PAGE_SIZE as usize;
/// The most virtqueues of a device.
pub(crate) const MAX_QUEUES: usize = raw::VIRTIO_XENBUS_MAX_QUEUES as usize;
/// The most bytes of configuration space.
pub(crate) const CONFIG_SIZE: usize = raw::VIRTIO_XENBUS_CONFIG_SIZE as usize;
/// The most bytes of one write to the configuration space.
pub(crate) const WRITE_SIZE: usize = raw::VIRTIO_XENBUS_WRITE_SIZE as usize;
/// Grant references in one page of the pool directory.
pub(crate) const REFS_PER_PAGE: usize = raw::VIRTIO_XENBUS_REFS_PER_PAGE as usize;
/// The most pages of a pool: what the directory has room for.
pub(crate) const MAX_POOL_PAGES: usize = raw::VIRTIO_XENBUS_MAX_DIRECTORY as usize * REFS_PER_PAGE;
/// Marks an address that names a grant.
// CAST: bindgen makes an `i64` of a constant with bit 63.
pub(crate) const ADDR_GRANT: u64 = raw::VIRTIO_XENBUS_ADDR_GRANT as u64;
/// Marks an address in the pool.
pub(crate) const ADDR_POOL: u64 = raw::VIRTIO_XENBUS_ADDR_POOL;
/// Where the grant reference begins in the address of a grant.
pub(crate) const ADDR_SHIFT: u32 = raw::VIRTIO_XENBUS_ADDR_SHIFT;

/// The backend's versions.
pub(crate) const KEY_VERSIONS: &CStr = text(raw::VIRTIO_XENBUS_KEY_VERSIONS);
/// The backend's address modes.
pub(crate) const KEY_MODES: &CStr = text(raw::VIRTIO_XENBUS_KEY_MODES);
/// The number of the device's virtqueues.
pub(crate) const KEY_MAX_QUEUES: &CStr = text(raw::VIRTIO_XENBUS_KEY_MAX_QUEUES);
/// The most pages that the backend maps as pool.
pub(crate) const KEY_MAX_POOL: &CStr = text(raw::VIRTIO_XENBUS_KEY_MAX_POOL);
/// The frontend's choice of a version.
pub(crate) const KEY_VERSION: &CStr = text(raw::VIRTIO_XENBUS_KEY_VERSION);
/// The frontend's choice of an address mode.
pub(crate) const KEY_MODE: &CStr = text(raw::VIRTIO_XENBUS_KEY_MODE);
/// Whose frame numbers machine addresses have.
pub(crate) const KEY_FRAMES: &CStr = text(raw::VIRTIO_XENBUS_KEY_FRAMES);
/// The grant reference of the control page.
pub(crate) const KEY_CONTROL_REF: &CStr = text(raw::VIRTIO_XENBUS_KEY_CONTROL_REF);
/// The control event channel.
pub(crate) const KEY_EVTCHN: &CStr = text(raw::VIRTIO_XENBUS_KEY_EVTCHN);
/// The name of the address mode in which every buffer is in the pool.
pub(crate) const MODE_POOL: &CStr = text(raw::VIRTIO_XENBUS_MODE_POOL);
/// The name of the address mode with grants.
pub(crate) const MODE_GRANT: &CStr = text(raw::VIRTIO_XENBUS_MODE_GRANT);
/// The name of the address mode with machine addresses.
pub(crate) const MODE_MACHINE: &CStr = text(raw::VIRTIO_XENBUS_MODE_MACHINE);
/// Says that frame numbers are the machine's.
pub(crate) const FRAMES_MACHINE: &CStr = text(raw::VIRTIO_XENBUS_FRAMES_MACHINE);
/// Says that frame numbers are the guest's, and Xen translates them.
pub(crate) const FRAMES_GUEST: &CStr = text(raw::VIRTIO_XENBUS_FRAMES_GUEST);

/// A string of the header; anything else does not compile.
const fn text(bytes: &'static [u8]) -> &'static CStr {
    match CStr::from_bytes_with_nul(bytes) {
        Ok(text) => text,
        Err(_) => panic!("not one C string"),
    }
}

// The layout that protocol.rst gives in numbers.
static_assert!(size_of::<RawIdentity>() == 0xc0);
static_assert!(offset_of!(RawIdentity, magic) == 0);
static_assert!(offset_of!(RawIdentity, version) == 4);
static_assert!(offset_of!(RawIdentity, device_id) == 8);
static_assert!(offset_of!(RawIdentity, vendor_id) == 12);
static_assert!(offset_of!(RawIdentity, features) == 16);
static_assert!(offset_of!(RawIdentity, num_queues) == 32);
static_assert!(offset_of!(RawIdentity, config_length) == 34);
static_assert!(offset_of!(RawIdentity, queue_size_max) == 40);

static_assert!(size_of::<DeviceRegs>() == 0x40);
static_assert!(offset_of!(DeviceRegs, status) == 0);
static_assert!(offset_of!(DeviceRegs, config_generation) == 4);
static_assert!(offset_of!(DeviceRegs, config_interrupts) == 8);
static_assert!(offset_of!(DeviceRegs, response_result) == 12);
static_assert!(offset_of!(DeviceRegs, response_seq) == 16);

static_assert!(size_of::<DriverRegs>() == 0xc0);
static_assert!(offset_of!(DriverRegs, status) == 0);
static_assert!(offset_of!(DriverRegs, pool_pages) == 4);
static_assert!(offset_of!(DriverRegs, features) == 8);
static_assert!(offset_of!(DriverRegs, pool_directory) == 32);

static_assert!(size_of::<Request>() == 0x40);
static_assert!(offset_of!(Request, seq) == 0);
static_assert!(offset_of!(Request, op) == 4);
static_assert!(offset_of!(Request, queue) == 8);
static_assert!(offset_of!(Request, offset) == 12);
static_assert!(offset_of!(Request, length) == 16);
static_assert!(offset_of!(Request, data) == 20);

static_assert!(size_of::<Queue>() == 0x20);
static_assert!(offset_of!(Queue, desc) == 0);
static_assert!(offset_of!(Queue, driver) == 8);
static_assert!(offset_of!(Queue, device) == 16);
static_assert!(offset_of!(Queue, event_channel) == 24);
static_assert!(offset_of!(Queue, size) == 28);
static_assert!(offset_of!(Queue, enabled) == 30);

static_assert!(size_of::<ControlPage>() == PAGE_SIZE);
static_assert!(offset_of!(ControlPage, identity) == 0);
static_assert!(offset_of!(ControlPage, device) == 0xc0);
static_assert!(offset_of!(ControlPage, driver) == 0x100);
static_assert!(offset_of!(ControlPage, request) == 0x1c0);
static_assert!(offset_of!(ControlPage, queues) == 0x200);
static_assert!(offset_of!(ControlPage, config) == 0x800);

/// The feature bits of the words in the control page.
pub(crate) fn features_from_wire(words: [u32; 4]) -> [u64; 2] {
    let [a, b, c, d] = words.map(|word| u64::from(u32::from_le(word)));
    [a | b << 32, c | d << 32]
}

/// The words in the control page of feature bits.
pub(crate) fn features_to_wire(features: [u64; 2]) -> [u32; 4] {
    // CAST: takes the lower half of each.
    let [low, high] = features;
    [low, low >> 32, high, high >> 32].map(|word| (word as u32).to_le())
}

/// `driver` without the features that this transport has no means for.
pub(crate) fn transport_features(driver: [u64; 2]) -> [u64; 2] {
    const ABSENT: u64 =
        // Virtual functions are a matter of PCI.
        1 << raw::VIRTIO_F_SR_IOV
        // An event channel carries one bit: no queue index and no ring position.
        | 1 << raw::VIRTIO_F_NOTIFICATION_DATA
        // Nor a value of the device's choice.
        | 1 << raw::VIRTIO_F_NOTIF_CONFIG_DATA
        // The control page has no registers that would tell the administration queues.
        | 1 << raw::VIRTIO_F_ADMIN_VQ;

    let [low, high] = driver;
    [low & !ABSENT, high]
}

/// The bytes of the configuration space from `offset` on, if all `len` of them exist.
pub(crate) fn config_range(offset: u32, len: usize, config_length: usize) -> Option<Range<usize>> {
    let start = offset as usize;
    let end = start.checked_add(len)?;
    (end <= config_length).then_some(start..end)
}

/// What the frontend asks of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Op {
    /// Stop the device and let go of all its buffers.
    Reset = raw::VIRTIO_XENBUS_OP_RESET,
    /// Take over the status byte.
    Status = raw::VIRTIO_XENBUS_OP_STATUS,
    /// Take over the accepted features.
    Features = raw::VIRTIO_XENBUS_OP_FEATURES,
    /// Start a queue.
    QueueEnable = raw::VIRTIO_XENBUS_OP_QUEUE_ENABLE,
    /// Stop a queue and let go of its buffers.
    QueueReset = raw::VIRTIO_XENBUS_OP_QUEUE_RESET,
    /// Write to the configuration space.
    ConfigWrite = raw::VIRTIO_XENBUS_OP_CONFIG_WRITE,
}

impl Op {
    /// All operations in the order of their numbers, which begin with 1.
    pub(crate) const ALL: [Op; 6] = [
        Op::Reset,
        Op::Status,
        Op::Features,
        Op::QueueEnable,
        Op::QueueReset,
        Op::ConfigWrite,
    ];

    /// The name in the header, without what is common to all.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Op::Reset => "RESET",
            Op::Status => "STATUS",
            Op::Features => "FEATURES",
            Op::QueueEnable => "QUEUE_ENABLE",
            Op::QueueReset => "QUEUE_RESET",
            Op::ConfigWrite => "CONFIG_WRITE",
        }
    }

    /// The number that stands in the control page.
    pub(crate) fn raw(self) -> u32 {
        self as u32
    }
}

/// The result of a request, as the backend has written it.
///
/// # Errors
///
/// The backend's error number, or `EIO` for a value that is neither 0 nor one.
pub(crate) fn answer(result: i32) -> Result {
    match result {
        0 => Ok(()),
        -4095..=-1 => Err(Error::from_errno(result)),
        _ => Err(EIO),
    }
}

/// A state of the configuration space that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(u32);

impl Generation {
    /// The state with the generation count `raw`, or [`None`] while it is being changed.
    pub(crate) fn begin(raw: u32) -> Option<Self> {
        (raw % 2 == 0).then_some(Self(raw))
    }

    /// Whether what was read since `begin` is all of one state; `raw` is the count now.
    pub(crate) fn is_still(self, raw: u32) -> bool {
        self.0 == raw
    }
}

#[kunit_tests(virtio_xenbus_wire)]
mod tests {
    use super::*;

    #[test]
    fn features_survive_the_wire() {
        for features in [
            [0, 0],
            [u64::MAX; 2],
            [1 << 32, 1],
            [0x1234_5678_9abc_def0, 7 << 61],
        ] {
            assert_eq!(features_from_wire(features_to_wire(features)), features);
        }
        assert_eq!(features_to_wire([1 << 32, 0]), [0, 1u32.to_le(), 0, 0]);
        assert_eq!(
            features_to_wire([0, 1 << 63]),
            [0, 0, 0, (1u32 << 31).to_le()]
        );
    }

    #[test]
    fn features_without_means_are_cleared_and_no_other() {
        let [low, high] = transport_features([u64::MAX; 2]);
        assert_eq!(!low, 1 << 37 | 1 << 38 | 1 << 39 | 1 << 41);
        assert_eq!(high, u64::MAX);
        assert_eq!(transport_features([0, 0]), [0, 0]);
    }

    #[test]
    fn configuration_ends_at_its_length() {
        assert_eq!(config_range(0, 12, 12), Some(0..12));
        assert_eq!(config_range(4, 8, 12), Some(4..12));
        assert_eq!(config_range(12, 0, 12), Some(12..12));
        assert_eq!(config_range(5, 8, 12), None);
        assert_eq!(config_range(12, 1, 12), None);
        assert_eq!(config_range(13, 0, 12), None);
        assert_eq!(config_range(0, 1, 0), None);
        assert_eq!(config_range(u32::MAX, 8, 12), None);
        assert_eq!(config_range(1, usize::MAX, 12), None);
        assert_eq!(config_range(u32::MAX, usize::MAX, usize::MAX), None);
    }

    #[test]
    fn operations_have_their_numbers() {
        for (op, number) in Op::ALL.into_iter().zip(1..) {
            assert_eq!(op.raw(), number);
        }
    }

    #[test]
    fn answers_are_0_or_an_error_number() {
        assert_eq!(answer(0), Ok(()));
        assert_eq!(answer(-22), Err(EINVAL));
        assert_eq!(answer(-1), Err(EPERM));
        assert_eq!(answer(-4095).map_err(Error::to_errno), Err(-4095));
        for result in [1, 22, i32::MAX, -4096, i32::MIN] {
            assert_eq!(answer(result), Err(EIO));
        }
    }

    #[test]
    fn an_odd_generation_is_not_read() {
        for raw in [1, 3, u32::MAX] {
            assert_eq!(Generation::begin(raw), None);
        }
    }

    #[test]
    fn a_generation_that_changed_is_read_again() -> Result {
        for raw in [0, 2, u32::MAX - 1] {
            let generation = Generation::begin(raw).ok_or(EINVAL)?;
            assert!(generation.is_still(raw));
            assert!(!generation.is_still(raw + 1));
            assert!(!generation.is_still(raw.wrapping_add(2)));
        }
        Ok(())
    }
}
