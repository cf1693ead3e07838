// SPDX-License-Identifier: GPL-2.0-or-later
//! Goes on where an earlier backend has ended.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, anyhow, bail, ensure};
use virtio_bindings::bindings::virtio_config::VIRTIO_CONFIG_S_FEATURES_OK;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, VolatileMemory};

use super::Controller;
use super::queues::QueueState;
use crate::device::{Resumption, Ring};
use crate::vhost::vring::ring_index;

impl<M: VolatileMemory> Controller<M> {
    /// Does what the requests did that an earlier backend has answered.
    pub(super) fn take_over(&mut self) -> Result<()> {
        let driver = self.page.driver()?;
        if driver.status == 0 {
            return Ok(self.page.set_device_status(0)?);
        }
        if driver.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            self.accept_features(driver.features)
                .map_err(|_| anyhow!("the device no longer has features that the driver uses"))?;
            for index in 0..u16::try_from(self.queues.len())? {
                self.take_over_queue(index)
                    .with_context(|| format!("queue {index}"))?;
            }
        }
        self.set_status().context("status")?;
        // The configuration may be another one than before.
        Ok(self.page.raise_config_interrupt()?)
    }

    fn take_over_queue(&mut self, index: u16) -> Result<()> {
        let setup = self.page.queue(index)?;
        if !setup.enabled {
            return Ok(());
        }
        let mut ring = self.make_ring(index, &setup)?;
        let used = ring_index(ring.queue.used_ring(), &self.pool)?;
        let available = ring_index(ring.queue.avail_ring(), &self.pool)?;
        let under_way = available.wrapping_sub(used);
        match self.device.resumption(index) {
            Resumption::InOrder => (),
            Resumption::Recorded if self.record.was_found() => {
                let element = |index| used_element(&ring, index);
                ring.left = ring.taken.recover(used, ring.queue.size(), element)?;
            }
            _ if under_way != 0 => {
                bail!("{under_way} requests were under way, and there is no record of which");
            }
            Resumption::Recorded => ring.taken.begin(used)?,
            Resumption::Idle => (),
        }
        let taken = u16::try_from(ring.left.len())?;
        ensure!(
            taken <= under_way,
            "{taken} requests are recorded as under way, of {under_way} in the ring"
        );
        ring.queue.set_next_avail(used.wrapping_add(taken));
        ring.queue.set_next_used(used);
        // What was used but not announced is seen now.
        ring.doorbell.notify()?;
        ring.told = used;
        self.set_queue(usize::from(index), QueueState::Enabled(setup, ring));
        Ok(())
    }
}

/// The head in element `index` of the used ring.
fn used_element(ring: &Ring, index: u16) -> Result<u32> {
    const ELEMENTS: u64 = 4;
    const SIZE: u64 = 8;
    let slot = u64::from(index % ring.queue.size());
    let address = ring.queue.used_ring().checked_add(ELEMENTS + SIZE * slot);
    let address = GuestAddress(address.context("no such address")?);
    Ok(u32::from_le(ring.memory.load(address, Ordering::Relaxed)?))
}
