// SPDX-License-Identifier: GPL-2.0-or-later
//! Sockets between guest and backend, which the kernel's vhost-vsock serves.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use serde::Deserialize;
use vhost::VhostBackend;

use super::join::join;
use super::kernel::{Kernel, Unbound};
use super::vring::Vring;
use super::{accepted, device_features, ring_features};
use crate::config::{Tuning, with_limits};
use crate::config_space::ConfigSpace;
use crate::device::{Device, Resumption, Ring, SharedPool};
use crate::worker::Worker;

/// Device id of the virtio specification.
pub const ID: u32 = 19;

/// The kernel's device.
const PATH: &str = "/dev/vhost-vsock";

/// What the queues are for. The kernel serves all but the last, on which there are never events:
/// it tells of a migration.
const QUEUES: [&str; 3] = ["receive", "transmit", "event"];
const SERVED: usize = 2;

with_limits! {
    /// What the configuration says of sockets.
    pub struct Settings {
        /// The guest's address.
        pub cid: Cid,
    }
}

/// The address of a guest's sockets.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "i64")]
pub struct Cid(u32);

impl TryFrom<i64> for Cid {
    type Error = String;

    fn try_from(value: i64) -> Result<Self, String> {
        // Lower ones are those of hypervisor, loopback and host; the highest means any.
        u32::try_from(value)
            .ok()
            .filter(|cid| (3..u32::MAX).contains(cid))
            .map(Self)
            .ok_or_else(|| format!("{value} is not a guest's CID: it must be from 3 to 4294967294"))
    }
}

/// A guest's sockets.
struct Vsock {
    cid: Cid,
    config: ConfigSpace,
    features: u64,
    queue_size: u16,
    /// Until the guest's memory is known.
    unbound: Option<Unbound>,
    served: Option<Arc<Served>>,
}

/// The queues that the kernel serves: both run, or none.
struct Served {
    kernel: Kernel,
    ready: Mutex<[bool; SERVED]>,
}

/// Opens the device for the guest.
pub fn open(settings: &Settings, tuning: &Tuning) -> Result<Box<dyn Device>> {
    let unbound = Unbound::open(PATH)
        .with_context(|| format!("cannot open {PATH}: is the module vhost_vsock loaded?"))?;
    let Cid(cid) = settings.cid;
    unbound
        .set_guest_cid(cid)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EADDRINUSE) => anyhow!("`cid = {cid}` is in use already"),
            _ => anyhow!(error).context("VHOST_VSOCK_SET_GUEST_CID"),
        })?;
    Ok(Box::new(Vsock {
        cid: settings.cid,
        config: ConfigSpace::new(&u64::from(cid).to_le_bytes())?,
        features: unbound.features()?,
        queue_size: tuning.queue_size,
        unbound: Some(unbound),
        served: None,
    }))
}

impl Served {
    fn start(&self, vring: &Vring) -> Result<()> {
        let index = usize::from(vring.index);
        vring
            .set_up(&self.kernel, index, vring.first())
            .and_then(|()| vring.start(&self.kernel, index))
            .context("vhost-vsock")?;
        self.set_ready(index, true)
    }

    fn stop(&self, index: u16) -> Result<()> {
        self.set_ready(index.into(), false)
    }

    fn set_ready(&self, index: usize, is_ready: bool) -> Result<()> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *ready == [true; SERVED];
        if let Some(ready) = ready.get_mut(index) {
            *ready = is_ready;
        }
        let after = *ready == [true; SERVED];
        if before != after {
            self.kernel
                .set_running(after)
                .context("VHOST_VSOCK_SET_RUNNING")?;
        }
        Ok(())
    }
}

impl Device for Vsock {
    fn id(&self) -> u32 {
        ID
    }

    fn describe(&self) -> String {
        format!("sockets of CID {}, by vhost-vsock", self.cid.0)
    }

    fn features(&self) -> u128 {
        device_features(self.features)
    }

    fn ring_features(&self) -> u128 {
        ring_features(self.features)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; QUEUES.len()]
    }

    fn queue_name(&self, index: u16) -> String {
        let name = QUEUES.get(usize::from(index));
        name.copied().unwrap_or("unused").into()
    }

    fn counts(&self, _index: u16) -> bool {
        false
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn connect(&mut self, pool: &SharedPool) -> Result<()> {
        let unbound = self.unbound.take().context("it has memory already")?;
        let kernel = unbound.bind(&pool.pool).context("vhost-vsock")?;
        self.served = Some(Arc::new(Served {
            kernel,
            ready: Mutex::default(),
        }));
        Ok(())
    }

    fn set_features(&mut self, features: u128) -> Result<(), Errno> {
        let served = self.served.as_ref().ok_or(Errno::EIO)?;
        let result = served.kernel.set_features(accepted(features));
        result.map_err(|_| Errno::EINVAL)
    }

    fn resumption(&self, _index: u16) -> Resumption {
        Resumption::InOrder
    }

    fn start_queue(&mut self, ring: Ring) -> Result<Worker> {
        let vring = Vring::new(&ring)?;
        let events = vring.events.clone();
        if usize::from(ring.index) >= SERVED {
            return Worker::spawn(ring, move |mut ring, stop| join(&mut ring, &events, stop));
        }
        let served = Arc::clone(self.served.as_ref().context("no memory is mapped")?);
        served.start(&vring)?;
        Worker::spawn(ring, move |mut ring, stop| {
            let result = join(&mut ring, &events, stop);
            result.and(served.stop(vring.index))
        })
    }

    fn reset(&mut self) {}
}
