// SPDX-License-Identifier: GPL-2.0-or-later
//! The link status that the guest sees.

use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::poll::PollFlags;
use tap::{Links, Monitor, Name};

use super::wait;
use crate::config_space::ConfigSpace;
use crate::worker::Alarm;

/// Where the status is in the configuration space, and its bit for a link that is up.
pub const STATUS: usize = 6;
pub const LINK_UP: u16 = 1;

/// Bytes of the thread's stack.
const STACK_SIZE: usize = 128 << 10;

/// Link messages that are taken before the link is looked at again.
const MESSAGES: usize = 64;

/// Keeps the link status in the configuration space, until it is dropped.
///
/// The link is up when both the tap and its bridge were set up by their administrator.
#[derive(Debug)]
pub struct Watch {
    stop: Alarm,
    thread: Option<JoinHandle<()>>,
}

/// Whether the link is up.
pub fn is_up(links: &Links, tap: &Name, bridge: &Name) -> bool {
    // An interface that is gone is not up.
    [tap, bridge]
        .iter()
        .all(|name| links.is_up(name).unwrap_or(false))
}

impl Watch {
    /// Watches the link of `tap` to `bridge`, for the card called `name`.
    pub fn start(name: String, tap: Name, bridge: Name, config: ConfigSpace) -> Result<Self> {
        let stop = Alarm::new()?;
        let theirs = stop.clone();
        let links = Links::new()?;
        let monitor = Monitor::new()?;
        let watch = move || -> Result<()> {
            let mut up = None;
            loop {
                let now = is_up(&links, &tap, &bridge);
                if up != Some(now) {
                    if up.is_some() || !now {
                        let state = if now { "up" } else { "down: set both up" };
                        log::info!("{name}: link of tap {tap} to bridge {bridge} is {state}");
                    }
                    config.write(STATUS, &(LINK_UP * u16::from(now)).to_le_bytes());
                    up = Some(now);
                }
                let fds = [theirs.as_fd(), monitor.as_fd()].map(|fd| (fd, PollFlags::POLLIN));
                let [stopped, _] = wait(fds, None)?;
                if stopped {
                    return Ok(());
                }
                monitor.drain(MESSAGES)?;
            }
        };
        let thread = thread::Builder::new()
            .name("link".to_owned())
            .stack_size(STACK_SIZE)
            .spawn(move || {
                if let Err(error) = watch() {
                    log::error!("watching links: {error}; their status is not updated any more");
                }
            })
            .context("cannot start a thread")?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.ring();
        // It does not panic, and has logged its error.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
