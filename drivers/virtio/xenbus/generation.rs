// SPDX-License-Identifier: GPL-2.0

//! The generation of configuration space, as the virtio core is told it.

use kernel::{
    prelude::*,
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};

/// The most changes that the core is told in one [`PERIOD`].
const MAX_CHANGES: u32 = 100;

const PERIOD: Delta = Delta::from_secs(1);

/// Limits how often the generation changes.
///
/// The core reads configuration space again as long as the generation does, without a limit of its
/// own: a backend that never stops would hang the driver.
pub(crate) struct Throttle {
    told: u32,
    changes: u32,
    since: Instant<Monotonic>,
}

impl Throttle {
    /// A throttle that has told nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            told: 0,
            changes: 0,
            since: Instant::now(),
        }
    }

    /// What to tell the core when the generation is `current`.
    pub(crate) fn tell(&mut self, current: u32) -> u32 {
        self.tell_at(current, Instant::now())
    }

    fn tell_at(&mut self, current: u32, now: Instant<Monotonic>) -> u32 {
        if current == self.told {
            return self.told;
        }
        if now - self.since >= PERIOD {
            self.since = now;
            self.changes = 0;
        }
        if self.changes < MAX_CHANGES {
            self.changes += 1;
            self.told = current;
        }
        self.told
    }
}

#[kunit_tests(virtio_xenbus_generation)]
mod tests {
    use super::*;

    #[test]
    fn tells_changes() {
        let mut throttle = Throttle::new();
        assert_eq!(throttle.tell(0), 0);
        assert_eq!(throttle.tell(2), 2);
        assert_eq!(throttle.tell(2), 2);
        assert_eq!(throttle.tell(u32::MAX), u32::MAX);
    }

    #[test]
    fn ends_a_storm() {
        let mut throttle = Throttle::new();
        let now = throttle.since;
        let mut last = 0;
        for i in 1..1000 {
            last = throttle.tell_at(i, now);
        }
        assert_eq!(last, MAX_CHANGES);
        assert_eq!(throttle.tell_at(5000, now), MAX_CHANGES);
    }

    #[test]
    fn goes_on_after_a_storm() {
        let mut throttle = Throttle::new();
        let now = throttle.since;
        for i in 1..1000 {
            throttle.tell_at(i, now);
        }
        assert_eq!(throttle.tell_at(5000, now + PERIOD), 5000);
    }
}
