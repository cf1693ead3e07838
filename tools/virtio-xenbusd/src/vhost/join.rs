// SPDX-License-Identifier: GPL-2.0-or-later
//! Joins a queue's event channel and its eventfds.
//!
//! Linux has nothing that does this without a process between. `IOCTL_PRIVCMD_IRQFD` makes an
//! eventfd raise an interrupt line by a device model operation, and `IOCTL_PRIVCMD_IOEVENTFD` has
//! one written to when a guest accesses the registers that an ioreq server emulates: both are for
//! transports with registers, need a privileged domain, and know no event channels.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::vring::Events;
use crate::device::Ring;
use crate::worker::Stop;

/// Passes events on, until told to stop. The queue is being served already, or will be.
///
/// Whatever comes in, there is one event each way for each turn.
///
/// # Errors
///
/// The event channel is broken, or whoever serves the queue says that it is.
pub fn join(ring: &mut Ring, events: &Events, stop: &Stop) -> Result<()> {
    // There may be buffers already.
    events.kick.signal()?;
    loop {
        let [stopped, kicked, called, failed] = wait([
            stop.as_fd(),
            ring.doorbell.as_fd(),
            events.call.as_fd(),
            events.error.as_fd(),
        ])?;
        if stopped {
            return Ok(());
        }
        if kicked && ring.doorbell.acknowledge()? {
            ring.stats.kicks.add(1);
            events.kick.signal()?;
        }
        if called && events.call.take()? {
            ring.doorbell.notify()?;
            ring.stats.interrupts.add(1);
        }
        if failed && events.error.take()? {
            bail!("whoever serves it says that the ring is broken");
        }
    }
}

/// Waits until one of them is readable or in error; which are.
pub fn wait<const N: usize>(fds: [BorrowedFd<'_>; N]) -> Result<[bool; N]> {
    let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => (),
            Err(errno) => return Err(errno).context("poll"),
            Ok(_) => return Ok(fds.map(|fd| fd.any() != Some(false))),
        }
    }
}
