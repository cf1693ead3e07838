// SPDX-License-Identifier: GPL-2.0-or-later
//! Passes buffers between the guest's rings and those of a [`Shadow`].

use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};
use virtio_queue::QueueT;

use super::shadow::Shadow;
use crate::device::Ring;
use crate::vhost::join::wait;
use crate::vhost::vring::Events;
use crate::worker::Stop;

/// Passes buffers on, until told to stop; then [`finish`] is left to do.
///
/// # Errors
///
/// The guest's ring is broken, or the program's is.
pub fn relay(ring: &mut Ring, events: &Events, shadow: &Mutex<Shadow>, stop: &Stop) -> Result<()> {
    while !stop.requested() {
        ring.queue.disable_notification(&ring.memory)?;
        let sleeps = {
            let mut shadow = lock(shadow);
            if give(ring, &mut shadow)? {
                events.kick.signal()?;
            }
            take_back(ring, &mut shadow)?;
            shadow.listen()?
        };
        // What comes from now on rings.
        if !ring.queue.enable_notification(&ring.memory)? && sleeps {
            let [_, kicked, called, failed] = wait([
                stop.as_fd(),
                ring.doorbell.as_fd(),
                events.call.as_fd(),
                events.error.as_fd(),
            ])?;
            if kicked {
                ring.stats.kicks.add(ring.doorbell.acknowledge()?.into());
            }
            if called {
                events.call.take()?;
            }
            if failed && events.error.take()? {
                bail!("the vhost-user program says that the ring is broken");
            }
        }
    }
    Ok(())
}

/// Gives the guest what the program has finished at last.
pub fn finish(ring: &mut Ring, shadow: &Mutex<Shadow>) -> Result<()> {
    take_back(ring, &mut lock(shadow))
}

/// Locks what the queue's thread and the one that connects share.
pub fn lock(shadow: &Mutex<Shadow>) -> MutexGuard<'_, Shadow> {
    // An error in between is one of the queue, which does not go on.
    shadow.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the program what is available, as much as the ring has; whether there was something.
fn give(ring: &mut Ring, shadow: &mut Shadow) -> Result<bool> {
    let mut any = false;
    for _ in 0..ring.queue.size() {
        let Some(head) = ring.take()? else {
            break;
        };
        shadow.give(head)?;
        any = true;
    }
    if any {
        shadow.publish()?;
    }
    Ok(any)
}

fn take_back(ring: &mut Ring, shadow: &mut Shadow) -> Result<()> {
    shadow.collect()?;
    while let Some((head, len)) = shadow.next_done() {
        ring.finish(head, len)?;
    }
    ring.notify()
}
