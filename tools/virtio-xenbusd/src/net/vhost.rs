// SPDX-License-Identifier: GPL-2.0-or-later
//! Has the kernel's vhost-net pass packets between rings and tap.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use vhost::VhostBackend;

use super::card::Card;
use crate::config::Tuning;
use crate::device::Ring;
use crate::memory::Pool;
use crate::modes::Modes;
use crate::vhost::accepted;
use crate::vhost::join::join;
use crate::vhost::kernel::{Kernel, Unbound};
use crate::vhost::vring::Vring;
use crate::worker::Worker;

/// The kernel's device.
const PATH: &str = "/dev/vhost-net";

/// The queues of a pair: receive and transmit.
const QUEUES: usize = 2;

/// A vhost-net device for each pair of queues.
pub struct Pairs {
    features: u64,
    /// Until the guest's memory is known.
    unbound: Mutex<Vec<Unbound>>,
    bound: OnceLock<Vec<Mutex<Pair>>>,
}

/// Each of its queues works when it has been set up and the tap's queue is attached.
struct Pair {
    kernel: Kernel,
    ready: [bool; QUEUES],
    attached: bool,
}

impl Pairs {
    /// Opens the kernel's devices; none if there are none and nobody has said that there must be,
    /// or somebody that they are not to be used or that the guest may choose other address modes.
    pub fn open(wanted: Option<bool>, tuning: &Tuning) -> Result<Option<Self>> {
        let others = tuning
            .address_modes
            .is_some_and(|modes| modes != Modes::POOL);
        if wanted == Some(false) || (wanted.is_none() && others) {
            return Ok(None);
        }
        let unbound: io::Result<Vec<_>> = (0..tuning.queues).map(|_| Unbound::open(PATH)).collect();
        match (unbound, wanted) {
            (Ok(unbound), _) => Ok(Some(Self {
                features: unbound
                    .first()
                    .context("a card without queues")?
                    .features()?,
                unbound: Mutex::new(unbound),
                bound: OnceLock::new(),
            })),
            (Err(error), Some(true)) => Err(error).with_context(|| {
                format!("`vhost = true`, but cannot open {PATH}: is the module vhost_net loaded?")
            }),
            (Err(error), _) => {
                log::info!("{}: without vhost-net: {PATH}: {error}", tuning.name);
                Ok(None)
            }
        }
    }

    /// What the kernel can do.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Gives it the guest's memory.
    pub fn bind(&self, memory: &Pool) -> Result<()> {
        let unbound = std::mem::take(&mut *lock(&self.unbound));
        let bind = |unbound: Unbound| {
            unbound.bind(memory).map(|kernel| {
                Mutex::new(Pair {
                    kernel,
                    ready: Default::default(),
                    attached: false,
                })
            })
        };
        let bound: Result<Vec<_>> = unbound.into_iter().map(bind).collect();
        ensure!(self.bound.set(bound?).is_ok(), "it has memory already");
        Ok(())
    }

    /// The driver has accepted `features`.
    pub fn accept(&self, features: u128) -> Result<()> {
        // Those of checksums and segments are between driver and tap.
        let features = accepted(features) & self.features;
        for pair in self.bound.get().into_iter().flatten() {
            lock(pair).kernel.set_features(features)?;
        }
        Ok(())
    }

    /// The tap's queue for pair number `pair` has been attached, or is going to be detached.
    pub fn set_tap(&self, pair: u16, tap: Option<&tap::Queue>) -> Result<()> {
        // Before there is memory, nothing works.
        let Some(bound) = self.bound.get() else {
            return Ok(());
        };
        let mut pair = lock(bound.get(usize::from(pair)).context("no such pair")?);
        pair.attached = tap.is_some();
        for queue in 0..QUEUES {
            pair.update(queue, tap)?;
        }
        Ok(())
    }

    fn pair(&self, pair: u16) -> Result<MutexGuard<'_, Pair>> {
        let bound = self.bound.get().context("no memory is mapped")?;
        Ok(lock(bound.get(usize::from(pair)).context("no such pair")?))
    }
}

impl Pair {
    /// Has queue number `queue` of the pair work or not.
    fn update(&self, queue: usize, tap: Option<&tap::Queue>) -> io::Result<()> {
        match self.ready.get(queue) {
            Some(true) => self.kernel.set_tap(queue as u32, tap),
            _ => Ok(()),
        }
    }

    fn start(&mut self, queue: usize, vring: &Vring, tap: &tap::Queue) -> Result<()> {
        vring.set_up(&self.kernel, queue, vring.first())?;
        vring.start(&self.kernel, queue)?;
        if let Some(ready) = self.ready.get_mut(queue) {
            *ready = true;
        }
        Ok(self.update(queue, self.attached.then_some(tap))?)
    }

    fn stop(&mut self, queue: usize) -> Result<()> {
        self.update(queue, None)?;
        if let Some(ready) = self.ready.get_mut(queue) {
            *ready = false;
        }
        Ok(())
    }
}

/// Serves a queue of pair number `pair`.
pub fn serve(ring: Ring, card: Arc<Card>, pair: u16) -> Result<Worker> {
    let vring = Vring::new(&ring)?;
    let events = vring.events.clone();
    let running = Running {
        queue: usize::from(ring.index) % QUEUES,
        pair,
        card,
    };
    running.start(&vring).context("vhost-net")?;
    Worker::spawn(ring, move |mut ring, stop| {
        let result = join(&mut ring, &events, stop);
        result.and(running.stop().context("vhost-net"))
    })
}

/// A queue that the kernel serves, which ends with this in any case: the guest may use the memory
/// for something else after.
struct Running {
    card: Arc<Card>,
    pair: u16,
    queue: usize,
}

impl Running {
    fn pairs(&self) -> Result<&Pairs> {
        let pairs = self.card.vhost.as_ref();
        pairs.ok_or_else(|| anyhow!("a card without vhost-net"))
    }

    fn start(&self, vring: &Vring) -> Result<()> {
        let tap = self.card.tap(self.pair)?;
        self.pairs()?.pair(self.pair)?.start(self.queue, vring, tap)
    }

    fn stop(&self) -> Result<()> {
        self.pairs()?.pair(self.pair)?.stop(self.queue)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Has been done, unless the thread has not begun or not come to its end.
        let _ = self.stop();
    }
}

impl fmt::Debug for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pairs").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in it is consistent at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
