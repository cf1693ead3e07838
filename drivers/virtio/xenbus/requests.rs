// SPDX-License-Identifier: GPL-2.0

//! What has become of the requests to a backend.

use kernel::{
    debugfs::Writer,
    fmt,
    prelude::*,
    sync::atomic::{
        ordering,
        Atomic, //
    },
};

use super::wire::Op;

/// The requests of one operation; times are in microseconds.
///
/// Written under the lock that is held while a request is under way. Read without it: it may be
/// held for as long as a backend takes to answer.
struct Tally {
    count: Atomic<u64>,
    failed: Atomic<u64>,
    last: Atomic<u64>,
    total: Atomic<u64>,
    worst: Atomic<u64>,
}

impl Tally {
    fn new() -> Self {
        Self {
            count: Atomic::new(0),
            failed: Atomic::new(0),
            last: Atomic::new(0),
            total: Atomic::new(0),
            worst: Atomic::new(0),
        }
    }

    fn record(&self, failed: bool, micros: u64) {
        self.count.fetch_add(1, ordering::Relaxed);
        self.failed.fetch_add(u64::from(failed), ordering::Relaxed);
        self.last.store(micros, ordering::Relaxed);
        self.total.fetch_add(micros, ordering::Relaxed);

        let worst = self.worst.load(ordering::Relaxed);
        self.worst.store(worst.max(micros), ordering::Relaxed);
    }

    fn mean(&self) -> u64 {
        let count = self.count.load(ordering::Relaxed);
        let total = self.total.load(ordering::Relaxed);
        total.checked_div(count).unwrap_or(0)
    }
}

/// The requests of each operation, for debugfs.
pub(crate) struct Requests([Tally; Op::ALL.len()]);

impl Requests {
    /// No request yet.
    pub(crate) fn new() -> Self {
        Self(Op::ALL.map(|_| Tally::new()))
    }

    /// Records a request that has taken so many microseconds. Not to be called twice at a time.
    pub(crate) fn record(&self, op: Op, result: &Result, micros: u64) {
        let mut tallies = Op::ALL.into_iter().zip(&self.0);
        if let Some((_, tally)) = tallies.find(|(other, _)| *other == op) {
            tally.record(result.is_err(), micros);
        }
    }
}

impl Writer for Requests {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "request           count    failed   last_us   mean_us  worst_us"
        )?;
        for (op, tally) in Op::ALL.into_iter().zip(&self.0) {
            write!(f, "{:<13}", op.name())?;
            for number in [
                tally.count.load(ordering::Relaxed),
                tally.failed.load(ordering::Relaxed),
                tally.last.load(ordering::Relaxed),
                tally.mean(),
                tally.worst.load(ordering::Relaxed),
            ] {
                write!(f, "{number:>10}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[kunit_tests(virtio_xenbus_requests)]
mod tests {
    use super::*;

    fn numbers(tally: &Tally) -> [u64; 5] {
        [
            tally.count.load(ordering::Relaxed),
            tally.failed.load(ordering::Relaxed),
            tally.last.load(ordering::Relaxed),
            tally.mean(),
            tally.worst.load(ordering::Relaxed),
        ]
    }

    #[test]
    fn operations_are_counted_apart() {
        let requests = Requests::new();
        for (op, count) in Op::ALL.into_iter().zip(0..) {
            for _ in 0..count {
                requests.record(op, &Ok(()), 7);
            }
        }
        for (tally, count) in requests.0.iter().zip(0..) {
            assert_eq!(tally.count.load(ordering::Relaxed), count);
        }
    }

    #[test]
    fn times_are_last_mean_and_worst() {
        let tally = Tally::new();
        assert_eq!(numbers(&tally), [0; 5]);
        for (failed, micros, expected) in [
            (false, 100, [1, 0, 100, 100, 100]),
            (true, 400, [2, 1, 400, 250, 400]),
            (false, 10, [3, 1, 10, 170, 400]),
        ] {
            tally.record(failed, micros);
            assert_eq!(numbers(&tally), expected);
        }
    }
}
