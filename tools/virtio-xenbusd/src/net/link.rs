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
/// The link is up when both the tap and its bridge were set up by their administrator. A bridge
/// that is removed and made anew gets the tap again.
#[derive(Debug)]
pub struct Watch {
    stop: Alarm,
    thread: Option<JoinHandle<()>>,
}

/// The link of a tap to its bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    Down,
    /// There is no tap any more.
    NoTap,
    /// There is no bridge now.
    NoBridge,
}

impl State {
    fn of(links: &Links, tap: &Name, bridge: &Name) -> Self {
        match (links.is_up(tap), links.is_up(bridge)) {
            (Err(_), _) => Self::NoTap,
            (_, Err(_)) => Self::NoBridge,
            (Ok(true), Ok(true)) => Self::Up,
            _ => Self::Down,
        }
    }

    /// For the log, with what to do.
    fn text(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down: set both up",
            Self::NoTap => {
                "down: somebody has removed the tap; unbind and bind the card's driver in the \
                 guest, or plug the card anew"
            }
            Self::NoBridge => "down: somebody has removed the bridge; create it again",
        }
    }
}

/// Whether the link is up.
pub fn is_up(links: &Links, tap: &Name, bridge: &Name) -> bool {
    State::of(links, tap, bridge) == State::Up
}

/// Plugs the tap into its bridge if that is another one than the one with number `plugged`: it has
/// been made anew. The number of the bridge now, if there is one. An administrator who puts the
/// tap into another bridge keeps it there.
fn replug(links: &Links, tap: &Name, bridge: &Name, plugged: Option<i32>) -> Option<i32> {
    let now = links.index(bridge).ok();
    if let (Some(_), Ok(port)) = (now.filter(|_| now != plugged), links.index(tap)) {
        match links.add_port(bridge, port) {
            Ok(()) => log::info!("tap {tap} is plugged into bridge {bridge}, which is a new one"),
            Err(error) => log::warn!("tap {tap} is not plugged into the new {bridge}: {error}"),
        }
    }
    // While there is none, the number of the last one does.
    now.or(plugged)
}

impl Watch {
    /// Watches the link of `tap` to `bridge`, for the card called `name`.
    pub fn start(name: String, tap: Name, bridge: Name, config: ConfigSpace) -> Result<Self> {
        let stop = Alarm::new()?;
        let theirs = stop.clone();
        let links = Links::new()?;
        let monitor = Monitor::new()?;
        let mut plugged = links.index(&bridge).ok();
        let mut watch = move || -> Result<()> {
            let mut state = None;
            loop {
                plugged = replug(&links, &tap, &bridge, plugged);
                let now = State::of(&links, &tap, &bridge);
                if state != Some(now) {
                    if state.is_some() || now != State::Up {
                        let text = now.text();
                        log::info!("{name}: link of tap {tap} to bridge {bridge} is {text}");
                    }
                    let status = LINK_UP * u16::from(now == State::Up);
                    config.write(STATUS, &status.to_le_bytes());
                    state = Some(now);
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
