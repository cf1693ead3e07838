// SPDX-License-Identifier: GPL-2.0

//! What debugfs shows of a device, beside [`crate::features`] and [`crate::requests`].
//!
//! Nothing here waits for a lock that is held while anybody waits for the backend.

use crate::{
    link::Peer,
    partition::Usage,
    state::State,
    sys::{
        map::{
            QueueMap,
            SharedPartition, //
        },
        virtqueue::Queue,
        xenbus, //
    },
};
use kernel::{
    debugfs::Writer,
    fmt,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
};

/// The state of the frontend.
pub(crate) struct StateReport(pub(crate) ARef<xenbus::Device>);

impl Writer for StateReport {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", State::from_raw(self.0.state()))
    }
}

impl Writer for Peer {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_fmt(fmt!("{}\n", self.mode().name()))
    }
}

impl Writer for Queue {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (interrupts, spurious) = self.events();
        let counters = self.map().counters();

        f.write_fmt(fmt!("name            {}\n", self.name()))?;
        for (name, number) in [
            ("size", self.size().into()),
            ("in_use", self.in_use().into()),
            ("kicks", self.kicks()),
            ("interrupts", interrupts),
            ("spurious", spurious),
            ("mapped", counters.mapped),
            ("granted", counters.granted),
            ("ungranted", counters.ungranted),
            ("machine", counters.machine),
            ("bytes_to_pool", counters.to_pool),
            ("bytes_from_pool", counters.from_pool),
        ] {
            writeln!(f, "{name:<16}{number:>20}")?;
        }
        Ok(())
    }
}

/// How much of the pool is in use.
pub(crate) struct PoolReport {
    queues: KVec<Arc<QueueMap>>,
    shared: Arc<SharedPartition>,
}

impl PoolReport {
    /// The pool of these queues, and the part that they share.
    pub(crate) fn new(queues: KVec<Arc<QueueMap>>, shared: Arc<SharedPartition>) -> Self {
        Self { queues, shared }
    }

    /// Ends a line with what is in use of a part, and how often there was no room.
    fn numbers(f: &mut fmt::Formatter<'_>, usage: Usage, failed: u64) -> fmt::Result {
        for bytes in [usage.size, usage.used, usage.high_water] {
            write!(f, "{bytes:>12}")?;
        }
        writeln!(f, "{failed:>12}")
    }
}

impl Writer for PoolReport {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "part                size      in_use  high_water      failed"
        )?;

        let mut total = self.shared.usage();
        let mut total_failed = 0;
        for (i, queue) in self.queues.iter().enumerate() {
            let (usage, failed) = (queue.usage(), queue.counters().failed);
            total.size += usage.size;
            total.used += usage.used;
            total.high_water += usage.high_water;
            total_failed += failed;

            write!(f, "queue-{i:<6}")?;
            Self::numbers(f, usage, failed)?;
        }

        // Who finds no room in its own part and none here either is counted there.
        f.write_str("shared      ")?;
        Self::numbers(f, self.shared.usage(), 0)?;
        f.write_str("total       ")?;
        Self::numbers(f, total, total_failed)
    }
}
