// SPDX-License-Identifier: GPL-2.0

//! Whether a driver can go on with another device than the one that it was probed with.

use kernel::{
    fmt,
    prelude::*, //
};

use super::{
    transport_features,
    Identity, //
};

/// What a driver lacks of a device after the system has been restored. As text it names what there
/// is, and what the driver has set itself up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// A feature that the driver uses is not offered any more.
    Feature(usize),
    /// There are fewer virtqueues.
    NumQueues {
        /// What there are.
        found: usize,
        /// What the driver uses.
        used: usize,
    },
    /// A virtqueue is smaller.
    QueueSize {
        /// Its index.
        queue: usize,
        /// Its size now.
        found: u16,
        /// Its size before.
        used: u16,
    },
    /// Configuration space is shorter.
    ConfigLength {
        /// What it is.
        found: usize,
        /// What it was.
        used: usize,
    },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("after restore: ")?;
        match *self {
            Self::Feature(bit) => write!(
                f,
                "the backend does not offer feature bit {bit}, which the driver uses"
            ),
            Self::NumQueues { found, used } => {
                write!(f, "the backend has {found} queues, the driver uses {used}")
            }
            Self::QueueSize { queue, found, used } => write!(
                f,
                "the backend's queue {queue} has size {found}, the driver's {used}"
            ),
            Self::ConfigLength { found, used } => write!(
                f,
                "the backend has {found} bytes of configuration, the driver knows {used}"
            ),
        }
    }
}

/// Checks whether a driver that has accepted `features` of `old`, and uses `queues` of its
/// virtqueues, can go on with `new`.
pub(crate) fn check_fit(
    new: &Identity,
    old: &Identity,
    features: [u64; 2],
    queues: usize,
) -> Result<(), Unfit> {
    for (bits, (used, offered)) in [0, 64]
        .into_iter()
        .zip(features.into_iter().zip(transport_features(new.features)))
    {
        let missing = used & !offered;
        if missing != 0 {
            return Err(Unfit::Feature(bits + missing.trailing_zeros() as usize));
        }
    }

    let found = new.num_queues;
    if found < queues {
        let used = queues;
        return Err(Unfit::NumQueues { found, used });
    }
    let sizes = new.queue_sizes.iter().zip(&old.queue_sizes).take(queues);
    for (queue, (&found, &used)) in sizes.enumerate() {
        if found < used {
            return Err(Unfit::QueueSize { queue, found, used });
        }
    }

    let (found, used) = (new.config_length, old.config_length);
    if found < used {
        return Err(Unfit::ConfigLength { found, used });
    }
    Ok(())
}

#[kunit_tests(virtio_xenbus_unfit)]
mod tests {
    use super::{
        super::MAX_QUEUES,
        *, //
    };
    use kernel::str::CString;

    fn identity() -> Identity {
        let mut queue_sizes = [0; MAX_QUEUES];
        for size in queue_sizes.iter_mut().take(3) {
            *size = 256;
        }
        Identity {
            device_id: 2,
            vendor_id: 0,
            features: [0x1_0000_0006, 1],
            queue_sizes,
            num_queues: 3,
            config_length: 60,
        }
    }

    /// Whether a driver that uses all of `identity()` but one queue can go on with it changed.
    fn check(change: impl FnOnce(&mut Identity)) -> Result<(), Unfit> {
        let mut new = identity();
        change(&mut new);
        check_fit(&new, &identity(), [0x1_0000_0002, 1], 2)
    }

    #[test]
    fn the_same_and_more_will_do() {
        assert_eq!(check(|_| ()), Ok(()));
        assert_eq!(check(|id| id.features = [0x1_0000_00ff, 7]), Ok(()));
        assert_eq!(check(|id| id.num_queues = 4), Ok(()));
        assert_eq!(check(|id| id.config_length = 100), Ok(()));
        assert_eq!(check(|id| id.queue_sizes = [1024; MAX_QUEUES]), Ok(()));
        assert_eq!(check(|id| id.vendor_id = 5), Ok(()));
    }

    #[test]
    fn what_the_driver_does_not_use_may_be_missing() {
        assert_eq!(check(|id| id.features = [0x1_0000_0002, 1]), Ok(()));
        assert_eq!(check(|id| id.num_queues = 2), Ok(()));
    }

    #[test]
    fn a_missing_feature_is_named() -> Result {
        assert_eq!(
            check(|id| id.features = [0x1_0000_0000, 1]),
            Err(Unfit::Feature(1))
        );
        let bad = check(|id| id.features = [0x1_0000_0002, 0]);
        assert_eq!(bad, Err(Unfit::Feature(64)));
        let text = CString::try_from_fmt(fmt!("{}", Unfit::Feature(64)))?;
        assert_eq!(
            &*text,
            c"after restore: the backend does not offer feature bit 64, which the driver uses"
        );
        Ok(())
    }

    #[test]
    fn less_room_is_refused() {
        let bad = check(|id| id.num_queues = 1);
        assert_eq!(bad, Err(Unfit::NumQueues { found: 1, used: 2 }));
        let bad = check(|id| id.queue_sizes = [128; MAX_QUEUES]);
        assert!(matches!(bad, Err(Unfit::QueueSize { queue: 0, .. })));
        let bad = check(|id| id.config_length = 59);
        assert!(matches!(
            bad,
            Err(Unfit::ConfigLength {
                found: 59,
                used: 60
            })
        ));
    }
}
