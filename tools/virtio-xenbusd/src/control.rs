// SPDX-License-Identifier: GPL-2.0-or-later
//! What the frontend asks for through the control page.

mod queues;
mod takeover;

use std::io;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use nix::errno::Errno;
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use virtioif::bindings::{
    VIRTIO_XENBUS_OP_CONFIG_WRITE, VIRTIO_XENBUS_OP_FEATURES, VIRTIO_XENBUS_OP_QUEUE_ENABLE,
    VIRTIO_XENBUS_OP_QUEUE_RESET, VIRTIO_XENBUS_OP_RESET, VIRTIO_XENBUS_OP_STATUS,
    VIRTIO_XENBUS_WRITE_SIZE,
};
use virtioif::{ControlPage, Identity, Request};
use vm_memory::VolatileMemory;

use crate::device::{Device, Doorbell, feature, page_error};
use crate::memory::{Pool, Sharing};
use crate::record::Record;
use crate::stats::Stats;
use crate::status;
use crate::throttle::Throttle;
use crate::worker::Alarm;
use queues::{QueueState, stop};

/// Offered for every device.
pub const TRANSPORT_FEATURES: u128 =
    feature(VIRTIO_F_VERSION_1) | feature(VIRTIO_F_ACCESS_PLATFORM);

/// What a device may offer of rings. Packed ones it may not: virtio-queue has split ones only.
pub const RING_FEATURES: u128 =
    feature(VIRTIO_RING_F_INDIRECT_DESC) | feature(VIRTIO_RING_F_EVENT_IDX);

/// Features that the driver must accept.
const REQUIRED_FEATURES: u128 = feature(VIRTIO_F_VERSION_1);

/// Binds queues' event channels.
pub trait Binder: Send {
    /// Binds to the frontend's `port`.
    fn bind(&self, port: u32) -> io::Result<Box<dyn Doorbell>>;
}

/// A connected device: carries out requests and keeps the queues running.
pub struct Controller<M> {
    name: String,
    page: ControlPage<M>,
    pool: Pool,
    sharing: Sharing,
    binder: Box<dyn Binder>,
    device: Box<dyn Device>,
    /// What the next daemon is to know.
    record: Record,
    offered: u128,
    /// Largest size of each queue.
    sizes: Vec<u16>,
    /// Rung when a queue's worker ends.
    alarm: Alarm,

    /// As the driver has set it.
    status: u32,
    /// As the driver has accepted them.
    features: Option<u128>,
    queues: Vec<QueueState>,
    /// Of each queue.
    stats: Vec<Arc<Stats>>,
    /// Why the driver has to reset the device, if it has to.
    failure: Option<String>,
    throttle: Throttle,
}

impl<M: VolatileMemory> Controller<M> {
    /// Writes the device's identity and configuration to the page, and takes over what the
    /// frontend has set up already for an earlier backend.
    pub fn new(
        name: &str,
        page: ControlPage<M>,
        pool: Pool,
        sharing: Sharing,
        binder: Box<dyn Binder>,
        device: Box<dyn Device>,
        record: Record,
    ) -> Result<Self> {
        let sizes = device.queue_sizes();
        let offered =
            device.features() | (device.ring_features() & RING_FEATURES) | TRANSPORT_FEATURES;
        let config = device.config().bytes();
        page.set_identity(&Identity {
            device_id: device.id(),
            features: offered,
            queue_sizes: sizes.clone(),
            config_length: u16::try_from(config.len())?,
        })?;
        page.set_config(&config)?;
        page.set_record(record.number()?)?;

        let mut controller = Self {
            name: name.into(),
            page,
            pool,
            sharing,
            binder,
            offered,
            queues: sizes.iter().map(|_| QueueState::Off).collect(),
            stats: status::stats(device.as_ref(), sizes.len()),
            device,
            record,
            sizes,
            alarm: Alarm::new()?,
            status: 0,
            features: None,
            failure: None,
            throttle: Throttle::new(),
        };
        match controller.take_over() {
            Ok(()) => controller.record.commit()?,
            // Nor can the next one, until the driver has reset the device.
            Err(error) => {
                controller.fail(&error.context("cannot go on where an earlier backend ended"));
            }
        }
        Ok(controller)
    }

    /// Rung when [`Controller::check_queues`] has something to see.
    pub fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// The device.
    pub fn device(&self) -> &dyn Device {
        self.device.as_ref()
    }

    /// Features that the driver has accepted.
    pub fn features(&self) -> u128 {
        self.features.unwrap_or_default()
    }

    /// Why the driver has to reset the device, if it has to.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The queues that are there.
    pub fn queues(&self) -> Vec<(control_socket::Queue, Arc<Stats>)> {
        let states = self.queues.iter().zip(&self.sizes).zip(&self.stats);
        (0..)
            .zip(states)
            .filter(|&(_, ((_, &size), _))| size > 0)
            .map(|(index, ((state, &size), stats))| {
                let mut queue = status::queue(self.device(), index, size);
                if let QueueState::Enabled(setup, _) | QueueState::Running(setup, _) = state {
                    queue.size = setup.size;
                }
                queue.running = matches!(state, QueueState::Running(..));
                (queue, Arc::clone(stats))
            })
            .collect()
    }

    /// Carries out the pending request, if there is one; whether the frontend is to be notified.
    pub fn serve(&mut self) -> Result<bool> {
        let Some(request) = self.page.request()? else {
            return Ok(false);
        };
        let result = match self.carry_out(&request) {
            Ok(()) => 0,
            Err(errno) => {
                self.throttle.warn(format_args!(
                    "{}: {}: {errno}",
                    self.name,
                    describe(&request)
                ));
                -(errno as i32)
            }
        };
        self.page.answer(request.seq, result)?;
        Ok(true)
    }

    /// Looks for queues that have ended by themselves; whether the frontend is to be notified.
    pub fn check_queues(&mut self) -> Result<bool> {
        self.alarm.clear();
        let mut failed = None;
        for (index, state) in self.queues.iter_mut().enumerate() {
            if !matches!(state, QueueState::Running(_, worker) if worker.ended()) {
                continue;
            }
            let error = stop(state)
                .err()
                .unwrap_or_else(|| anyhow!("ended by itself"));
            *state = QueueState::Failed;
            failed = Some(error.context(format!("queue {index}")));
        }
        match failed {
            None => Ok(false),
            Some(error) => {
                self.fail(&error);
                Ok(true)
            }
        }
    }

    /// Copies a changed configuration space to the page; whether the frontend is to be notified.
    pub fn update_config(&mut self) -> Result<bool> {
        let Some(bytes) = self.device.config().take_change() else {
            return Ok(false);
        };
        self.page.set_config(&bytes)?;
        self.page.raise_config_interrupt()?;
        Ok(true)
    }

    /// Stops all queues. Nothing touches the pool after.
    pub fn stop(&mut self) {
        for state in &self.queues {
            if let QueueState::Running(_, worker) = state {
                worker.request_stop();
            }
        }
        for (index, state) in self.queues.iter_mut().enumerate() {
            if let Err(error) = stop(state) {
                self.throttle
                    .warn(format_args!("{}: queue {index}: {error:#}", self.name));
            }
        }
    }

    fn carry_out(&mut self, request: &Request) -> Result<(), Errno> {
        match request.op {
            VIRTIO_XENBUS_OP_RESET => self.reset(),
            VIRTIO_XENBUS_OP_STATUS => self.set_status(),
            VIRTIO_XENBUS_OP_FEATURES => self.set_features(),
            VIRTIO_XENBUS_OP_QUEUE_ENABLE => self.enable_queue(request.queue),
            VIRTIO_XENBUS_OP_QUEUE_RESET => self.reset_queue(request.queue),
            VIRTIO_XENBUS_OP_CONFIG_WRITE => self.write_config(request),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn reset(&mut self) -> Result<(), Errno> {
        self.stop();
        if !self.device.is_quiet() {
            // The driver may not use the memory for anything else.
            return Err(Errno::EIO);
        }
        self.device.reset();
        self.record.kept().clear();
        self.clear_taken()?;
        self.record.commit().map_err(|error| {
            log::error!("{}: {error}", self.name);
            Errno::EIO
        })?;
        self.status = 0;
        self.features = None;
        self.failure = None;
        self.page.set_device_status(0).map_err(page_error)
    }

    fn set_status(&mut self) -> Result<(), Errno> {
        let status = self.page.driver_status().map_err(page_error)?;
        if status == 0 || status > 0xff || status & VIRTIO_CONFIG_S_NEEDS_RESET != 0 {
            return Err(Errno::EINVAL);
        }
        // Only a reset clears bits.
        if self.status & !status != 0 {
            return Err(Errno::EINVAL);
        }
        if status & VIRTIO_CONFIG_S_FEATURES_OK != 0 && self.features.is_none() {
            // Accepted by an earlier backend, or not at all.
            self.set_features()?;
        }
        if status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            return Err(Errno::EINVAL);
        }
        let was_ok = self.driver_ok();
        self.status = status;
        if self.driver_ok() && !was_ok {
            for index in 0..self.queues.len() {
                if let Err(error) = self.run_queue(index) {
                    self.fail(&error);
                    return Err(Errno::EIO);
                }
            }
            let features = self.features();
            let running = |state: &&QueueState| matches!(state, QueueState::Running(..));
            let queues = self.queues.iter().filter(running).count();
            self.throttle.info(format_args!(
                "{}: in use by the driver: {queues} queues, features {features:#x}",
                self.name
            ));
        }
        self.publish_status()
    }

    fn set_features(&mut self) -> Result<(), Errno> {
        let features = self.page.driver_features().map_err(page_error)?;
        self.accept_features(features)
    }

    fn accept_features(&mut self, features: u128) -> Result<(), Errno> {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0
            || features & !self.offered != 0
            || features & REQUIRED_FEATURES != REQUIRED_FEATURES
        {
            return Err(Errno::EINVAL);
        }
        self.device.set_features(features)?;
        self.features = Some(features);
        self.device.resume(self.record.kept()).map_err(|error| {
            log::error!("{}: {error:#}", self.name);
            Errno::EIO
        })?;
        Ok(())
    }

    fn write_config(&mut self, request: &Request) -> Result<(), Errno> {
        if request.length > VIRTIO_XENBUS_WRITE_SIZE {
            return Err(Errno::EINVAL);
        }
        let (offset, length) = (request.offset as usize, request.length as usize);
        let end = offset.checked_add(length).ok_or(Errno::EINVAL)?;
        if end > self.device.config().bytes().len() {
            return Err(Errno::EINVAL);
        }
        let data = request.data.get(..length).ok_or(Errno::EINVAL)?;
        self.device.write_config(offset, data)
    }

    fn driver_ok(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0
    }

    /// Tells the driver that the device has to be reset. The caller notifies the frontend.
    fn fail(&mut self, error: &anyhow::Error) {
        // One fault may show in several queues.
        if self.failure.is_some() {
            return;
        }
        let text = format!("{error:#}; the device does not work until its driver resets it");
        self.throttle.error(format_args!("{}: {text}", self.name));
        self.failure = Some(text);
        let result = self
            .publish_status()
            .and_then(|()| self.page.raise_config_interrupt().map_err(page_error));
        if let Err(errno) = result {
            log::error!("{}: {errno}", self.name);
        }
    }

    fn publish_status(&self) -> Result<(), Errno> {
        let needs_reset = match self.failure {
            Some(_) => VIRTIO_CONFIG_S_NEEDS_RESET,
            None => 0,
        };
        self.page
            .set_device_status(self.status | needs_reset)
            .map_err(page_error)
    }
}

impl<M> Drop for Controller<M> {
    fn drop(&mut self) {
        // Workers, which stop when dropped, before the page and the device.
        self.queues.clear();
    }
}

/// What was asked for, for the log.
fn describe(request: &Request) -> String {
    let Request {
        op,
        queue,
        offset,
        length,
        ..
    } = request;
    match *op {
        VIRTIO_XENBUS_OP_RESET => "RESET".into(),
        VIRTIO_XENBUS_OP_STATUS => "STATUS".into(),
        VIRTIO_XENBUS_OP_FEATURES => "FEATURES".into(),
        VIRTIO_XENBUS_OP_QUEUE_ENABLE => format!("QUEUE_ENABLE of queue {queue}"),
        VIRTIO_XENBUS_OP_QUEUE_RESET => format!("QUEUE_RESET of queue {queue}"),
        VIRTIO_XENBUS_OP_CONFIG_WRITE => format!("CONFIG_WRITE of {length} bytes at {offset}"),
        _ => format!("unknown request {op}"),
    }
}

#[cfg(test)]
mod tests;
