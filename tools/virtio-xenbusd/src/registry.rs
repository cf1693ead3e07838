// SPDX-License-Identifier: GPL-2.0-or-later
//! What is known of the devices, for those who ask through the control socket.
//!
//! Each device's thread says how its device is whenever that changes. Whoever asks gets that, and
//! keeps no device from working.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use control_socket::{Counters, Device, Queue};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::keys::Node;
use crate::stats::{Counter, Stats};
use crate::worker::Alarm;

/// A device as its thread sees it.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// What does not change by itself: no queues.
    pub device: Device,
    /// The queues, with their counters beside them.
    pub queues: Vec<(Queue, Arc<Stats>)>,
}

/// All devices, by their places in xenstore.
#[derive(Debug, Default)]
pub struct Registry(Mutex<Devices>);

#[derive(Debug, Default)]
struct Devices {
    known: BTreeMap<Node, Status>,
    /// Rung at each change.
    waiting: BTreeMap<u64, Alarm>,
    /// The key of the next one who waits.
    next: u64,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Devices> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device is as `status` says.
    pub fn publish(&self, node: Node, status: Status) {
        let mut devices = self.lock();
        devices.known.insert(node, status);
        devices.waiting.values().for_each(Alarm::ring);
    }

    /// Nothing is held of the device any more.
    pub fn remove(&self, node: Node) {
        let mut devices = self.lock();
        devices.known.remove(&node);
        devices.waiting.values().for_each(Alarm::ring);
    }

    /// All devices, ordered by domain, type and number, with the counters of now.
    pub fn devices(&self) -> Vec<Device> {
        let known: Vec<Status> = self.lock().known.values().cloned().collect();
        known.into_iter().map(Status::into_device).collect()
    }

    /// A device, with the counters of now.
    pub fn device(&self, node: Node) -> Option<Device> {
        let status = self.lock().known.get(&node).cloned();
        status.map(Status::into_device)
    }

    /// Looks at a device, which may not be there, at once and after each change, until `look` is
    /// content.
    ///
    /// `None` if it is not until `deadline`.
    ///
    /// # Errors
    ///
    /// The other end of `client`, a socket, has been closed.
    pub fn wait<T>(
        &self,
        node: Node,
        deadline: Instant,
        client: BorrowedFd<'_>,
        mut look: impl FnMut(Option<&Device>) -> Option<T>,
    ) -> Result<Option<T>> {
        let waiter = Waiter::new(self)?;
        loop {
            waiter.alarm.clear();
            if let Some(found) = look(self.lock().known.get(&node).map(|status| &status.device)) {
                return Ok(Some(found));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            waiter.sleep(left, client)?;
        }
    }
}

impl Status {
    fn into_device(self) -> Device {
        let queues = self.queues.into_iter().map(|(queue, stats)| Queue {
            counters: counters(&stats),
            ..queue
        });
        Device {
            queues: queues.collect(),
            ..self.device
        }
    }
}

fn counters(stats: &Stats) -> Counters {
    let counted = |counter: &Counter| stats.all.then(|| counter.get());
    Counters {
        requests: counted(&stats.requests),
        bytes_to_guest: counted(&stats.to_guest),
        bytes_from_guest: counted(&stats.from_guest),
        errors: counted(&stats.errors),
        drops: counted(&stats.drops),
        copied: counted(&stats.copied),
        kicks: stats.kicks.get(),
        interrupts: stats.interrupts.get(),
        pool_buffers: counted(&stats.pool_buffers),
        grant_buffers: counted(&stats.grant_buffers),
        machine_buffers: counted(&stats.machine_buffers),
        bytes_grant_copied: counted(&stats.grant_copied),
        frames_mapped: counted(&stats.frames_mapped),
        frames_unmapped: counted(&stats.frames_unmapped),
        frame_hits: counted(&stats.frame_hits),
    }
}

/// One who waits for a change.
struct Waiter<'a> {
    registry: &'a Registry,
    key: u64,
    alarm: Alarm,
}

impl<'a> Waiter<'a> {
    fn new(registry: &'a Registry) -> Result<Self> {
        let alarm = Alarm::new()?;
        let mut devices = registry.lock();
        let key = devices.next;
        devices.next += 1;
        devices.waiting.insert(key, alarm.clone());
        drop(devices);
        Ok(Self {
            registry,
            key,
            alarm,
        })
    }

    /// Waits for a change, for `time` at most.
    fn sleep(&self, time: Duration, client: BorrowedFd<'_>) -> Result<()> {
        // Rounded up, not to wake up just before the time.
        let timeout = PollTimeout::try_from(time + Duration::from_millis(1))?;
        let mut fds = [
            PollFd::new(self.alarm.as_fd(), PollFlags::POLLIN),
            // Hanging up is always reported.
            PollFd::new(client, PollFlags::empty()),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) if fds[1].any() == Some(true) => bail!("the client has gone"),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno).context("poll"),
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.registry.lock().waiting.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;
    use crate::keys::Type;

    fn node(domain: u16, number: u32) -> Node {
        Node {
            domain,
            kind: Type::Virtio,
            number,
        }
    }

    fn status(state: &str) -> Status {
        Status {
            device: Device {
                state: state.into(),
                ..Device::default()
            },
            queues: Vec::new(),
        }
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// Waits for a state of device 5/0.
    fn wait(
        registry: &Registry,
        state: &str,
        deadline: Instant,
        client: &UnixStream,
    ) -> Result<Option<()>> {
        registry.wait(node(5, 0), deadline, client.as_fd(), |device| {
            (device?.state == state).then_some(())
        })
    }

    #[test]
    fn devices_come_in_order_with_the_counters_of_now() {
        let registry = Registry::default();
        let stats = Arc::<Stats>::default();
        let mut first = status("first");
        first.queues.push((Queue::default(), Arc::clone(&stats)));
        registry.publish(node(12, 0), status("last"));
        registry.publish(node(5, 10), status("second"));
        registry.publish(node(5, 9), first);
        stats.requests.add(3);
        let devices = registry.devices();
        let states: Vec<_> = devices.iter().map(|device| device.state.as_str()).collect();
        assert_eq!(states, ["first", "second", "last"]);
        assert_eq!(devices[0].queues[0].counters.requests, Some(3));
        registry.remove(node(5, 10));
        assert_eq!(registry.devices().len(), 2);
    }

    #[test]
    fn change_ends_the_wait() {
        let registry = Registry::default();
        let (client, _other) = UnixStream::pair().unwrap();
        let deadline = later();
        thread::scope(|scope| {
            scope.spawn(|| {
                for state in ["a", "b", "c"] {
                    registry.publish(node(5, 0), status(state));
                }
            });
            assert_eq!(wait(&registry, "c", deadline, &client).unwrap(), Some(()));
        });
        assert!(Instant::now() < deadline);
        assert!(registry.lock().waiting.is_empty());
    }

    #[test]
    fn wait_ends_with_its_time_and_with_the_client() {
        let registry = Registry::default();
        let (client, other) = UnixStream::pair().unwrap();
        registry.publish(node(5, 0), status("a"));
        let soon = Instant::now() + Duration::from_millis(5);
        assert_eq!(wait(&registry, "b", soon, &client).unwrap(), None);
        assert!(Instant::now() >= soon);
        // What is there already is found, whatever the time.
        assert_eq!(wait(&registry, "a", soon, &client).unwrap(), Some(()));
        thread::scope(|scope| {
            scope.spawn(|| drop(other));
            let error = wait(&registry, "b", later(), &client).unwrap_err();
            assert!(error.to_string().contains("client"), "{error}");
        });
        assert!(registry.lock().waiting.is_empty());
    }
}
