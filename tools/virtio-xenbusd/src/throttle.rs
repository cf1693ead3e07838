// SPDX-License-Identifier: GPL-2.0-or-later
//! Bounds what a guest can make the daemon log.

use std::fmt;
use std::time::{Duration, Instant};

use log::Level;

/// Messages in one [`WINDOW`].
const BURST: u32 = 20;

/// How long [`BURST`] lasts.
const WINDOW: Duration = Duration::from_secs(60);

/// Lets a bounded number of messages through, and says how many it has held back.
#[derive(Debug)]
pub struct Throttle {
    since: Instant,
    count: u32,
}

impl Throttle {
    /// A throttle that has let nothing through yet.
    pub fn new() -> Self {
        Self {
            since: Instant::now(),
            count: 0,
        }
    }

    /// Logs an error.
    pub fn error(&mut self, message: fmt::Arguments<'_>) {
        self.log(Level::Error, message);
    }

    /// Logs a warning.
    pub fn warn(&mut self, message: fmt::Arguments<'_>) {
        self.log(Level::Warn, message);
    }

    /// Logs an information.
    pub fn info(&mut self, message: fmt::Arguments<'_>) {
        self.log(Level::Info, message);
    }

    fn log(&mut self, level: Level, message: fmt::Arguments<'_>) {
        match self.admit(Instant::now()) {
            Verdict::Hold => (),
            Verdict::Pass => log::log!(level, "{message}"),
            Verdict::Last => log::log!(level, "{message} (more like this is left out for a while)"),
            Verdict::PassAfter(held) => log::log!(level, "{message} ({held} messages left out)"),
        }
    }

    fn admit(&mut self, now: Instant) -> Verdict {
        let held = self.count.saturating_sub(BURST);

        if now.duration_since(self.since) >= WINDOW {
            *self = Self {
                since: now,
                count: 1,
            };
            return if held == 0 {
                Verdict::Pass
            } else {
                Verdict::PassAfter(held)
            };
        }
        self.count = self.count.saturating_add(1);
        match self.count {
            count if count < BURST => Verdict::Pass,
            BURST => Verdict::Last,
            _ => Verdict::Hold,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    PassAfter(u32),
    Last,
    Hold,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_messages() {
        let mut throttle = Throttle::new();
        let start = throttle.since;
        for _ in 1..BURST {
            assert_eq!(throttle.admit(start), Verdict::Pass);
        }
        assert_eq!(throttle.admit(start), Verdict::Last);
        for _ in 0..7 {
            assert_eq!(throttle.admit(start), Verdict::Hold);
        }
        assert_eq!(throttle.admit(start + WINDOW), Verdict::PassAfter(7));
        assert_eq!(throttle.admit(start + WINDOW), Verdict::Pass);
    }
}
