// SPDX-License-Identifier: GPL-2.0-or-later
//! The queues of a connected device: enabled, running, reset, taken over.

use std::sync::Arc;

use anyhow::{Context, Result};
use nix::errno::Errno;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, VolatileMemory};

use super::Controller;
use crate::device::{Ring, feature, page_error};
use crate::worker::Worker;

/// A queue, with what the frontend has enabled it with.
pub(super) enum QueueState {
    Off,
    /// Waits for `DRIVER_OK`.
    Enabled(virtioif::Queue, Ring),
    Running(virtioif::Queue, Worker),
    /// Cannot run until it is reset.
    Failed,
}

impl<M: VolatileMemory> Controller<M> {
    pub(super) fn enable_queue(&mut self, index: u32) -> Result<(), Errno> {
        let index = self.queue_index(index)?;
        let setup = self.page.queue(index).map_err(page_error)?;
        match self.queues.get(usize::from(index)) {
            Some(QueueState::Off) => (),
            // A request that an earlier backend has not answered is carried out again.
            Some(QueueState::Enabled(old, _) | QueueState::Running(old, _)) if *old == setup => {
                return Ok(());
            }
            _ => return Err(Errno::EINVAL),
        }
        let ring = self.make_ring(index, &setup)?;
        let index = usize::from(index);
        self.set_queue(index, QueueState::Enabled(setup, ring));
        if self.driver_ok() {
            self.run_queue(index).map_err(|error| {
                self.fail(&error);
                Errno::EIO
            })?;
        }
        Ok(())
    }

    pub(super) fn reset_queue(&mut self, index: u32) -> Result<(), Errno> {
        let index = usize::from(self.queue_index(index)?);
        if let Some(state) = self.queues.get_mut(index) {
            if let Err(error) = stop(state) {
                self.throttle
                    .warn(format_args!("{}: queue {index}: {error:#}", self.name));
            }
        }
        match self.device.is_quiet() {
            true => self.clear(index),
            false => Err(Errno::EIO),
        }
    }

    /// Forgets what queues have worked on. None of them runs.
    pub(super) fn clear_taken(&self) -> Result<(), Errno> {
        (0..self.sizes.len()).try_for_each(|index| self.clear(index))
    }

    fn clear(&self, index: usize) -> Result<(), Errno> {
        let index = u16::try_from(index).map_err(|_| Errno::ENOENT)?;
        self.record.taken(index).clear().map_err(|error| {
            log::error!("{}: queue {index}: {error:#}", self.name);
            Errno::EIO
        })
    }

    /// Checks a queue's setup and binds its event channel.
    pub(super) fn make_ring(&self, index: u16, setup: &virtioif::Queue) -> Result<Ring, Errno> {
        let features = self.features.ok_or(Errno::EINVAL)?;
        let size_max = self
            .sizes
            .get(usize::from(index))
            .copied()
            .filter(|&n| n > 0)
            .ok_or(Errno::ENOENT)?;
        if !setup.enabled {
            return Err(Errno::EINVAL);
        }
        let stats = self.stats.get(usize::from(index)).ok_or(Errno::ENOENT)?;
        let invalid = |_| Errno::EINVAL;
        let mut queue = Queue::new(size_max).map_err(invalid)?;
        queue.try_set_size(setup.size).map_err(invalid)?;
        queue
            .try_set_desc_table_address(GuestAddress(setup.desc))
            .map_err(invalid)?;
        queue
            .try_set_avail_ring_address(GuestAddress(setup.driver))
            .map_err(invalid)?;
        queue
            .try_set_used_ring_address(GuestAddress(setup.device))
            .map_err(invalid)?;
        queue.set_event_idx(features & feature(VIRTIO_RING_F_EVENT_IDX) != 0);
        queue.set_ready(true);
        if !queue.is_valid(&self.pool) {
            return Err(Errno::ENXIO);
        }
        let doorbell = self.binder.bind(setup.event_channel).map_err(|error| {
            log::debug!(
                "{}: queue {index}: port {}: {error}",
                self.name,
                setup.event_channel
            );
            Errno::EINVAL
        })?;
        Ok(Ring {
            index,
            name: format!("{} queue {index}", self.name),
            queue,
            memory: self.pool.clone(),
            sharing: self.sharing.clone(),
            doorbell,
            stats: Arc::clone(stats),
            alarm: self.alarm.clone(),
            told: 0,
            taken: self.record.taken(index),
            left: Vec::new(),
        })
    }

    /// Starts a queue that waits for it.
    pub(super) fn run_queue(&mut self, index: usize) -> Result<()> {
        let Some(slot) = self.queues.get_mut(index) else {
            return Ok(());
        };
        match std::mem::replace(slot, QueueState::Failed) {
            QueueState::Enabled(setup, ring) => {
                let worker = self
                    .device
                    .start_queue(ring)
                    .with_context(|| format!("cannot start queue {index}"))?;
                *slot = QueueState::Running(setup, worker);
            }
            other => *slot = other,
        }
        Ok(())
    }

    pub(super) fn set_queue(&mut self, index: usize, state: QueueState) {
        if let Some(slot) = self.queues.get_mut(index) {
            *slot = state;
        }
    }

    fn queue_index(&self, index: u32) -> Result<u16, Errno> {
        u16::try_from(index)
            .ok()
            .filter(|&index| {
                self.sizes
                    .get(usize::from(index))
                    .is_some_and(|&size| size > 0)
            })
            .ok_or(Errno::ENOENT)
    }
}

/// Stops a queue and switches it off.
pub(super) fn stop(state: &mut QueueState) -> Result<()> {
    match std::mem::replace(state, QueueState::Off) {
        QueueState::Running(_, worker) => worker.stop(),
        _ => Ok(()),
    }
}
