// SPDX-License-Identifier: GPL-2.0-or-later
//! Log messages on standard error: for the journal if it reads there, else for a person.

use std::env;
use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Logger {
    journal: bool,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries log what a guest does wrong without limit.
        metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (priority, word) = match record.level() {
            Level::Error => (3, "error: "),
            Level::Warn => (4, "warning: "),
            Level::Info => (6, ""),
            Level::Debug | Level::Trace => (7, "debug: "),
        };
        // One write, so that lines of several threads do not mix. Nobody to tell if it fails.
        let line = match self.journal {
            true => format!("<{priority}>{word}{}\n", record.args()),
            false => format!("{}: {word}{}\n", env!("CARGO_PKG_NAME"), record.args()),
        };
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Begins to log messages of `level` and above.
pub fn init(level: LevelFilter) {
    let journal = env::var_os("JOURNAL_STREAM").is_some();

    if log::set_boxed_logger(Box::new(Logger { journal })).is_ok() {
        log::set_max_level(level);
    }
}
