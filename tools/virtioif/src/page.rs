// SPDX-License-Identifier: GPL-2.0-or-later
//! The control page, as the backend uses it.
//!
//! The frontend may change the page at any time: everything is read once into a copy. All fields
//! are little-endian.

use std::mem::{offset_of, size_of};
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, VolatileMemory, VolatileMemoryError, volatile_memory::Result};

use crate::Page;
use crate::bindings::{
    VIRTIO_XENBUS_CONFIG_SIZE, VIRTIO_XENBUS_FEATURE_WORDS, VIRTIO_XENBUS_MAGIC,
    VIRTIO_XENBUS_MAX_DIRECTORY, VIRTIO_XENBUS_MAX_QUEUES, VIRTIO_XENBUS_VERSION,
    VIRTIO_XENBUS_WRITE_SIZE, virtio_xenbus_queue,
};

/// Who the device is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Device id of the virtio specification.
    pub device_id: u32,
    /// Offered features: bit n is feature n.
    pub features: u128,
    /// Largest size of each queue; 0 for none.
    pub queue_sizes: Vec<u16>,
    /// Bytes of configuration space.
    pub config_length: u16,
}

/// What the frontend has set up for the whole device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverRegs {
    /// Virtio device status.
    pub status: u32,
    /// Pages of the pool.
    pub pool_pages: u32,
    /// Accepted features.
    pub features: u128,
    /// References of the pages that hold the references of the pool's pages.
    pub pool_directory: [u32; VIRTIO_XENBUS_MAX_DIRECTORY as usize],
}

/// A request of the frontend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Number of the request, which its answer repeats.
    pub seq: u32,
    /// `VIRTIO_XENBUS_OP_*`.
    pub op: u32,
    /// Which queue.
    pub queue: u32,
    /// Where in the configuration space to write.
    pub offset: u32,
    /// How many bytes of `data` to write.
    pub length: u32,
    /// What to write.
    pub data: [u8; VIRTIO_XENBUS_WRITE_SIZE as usize],
}

/// A virtqueue, as the frontend has set it up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Address of the descriptor area.
    pub desc: u64,
    /// Address of the driver area.
    pub driver: u64,
    /// Address of the device area.
    pub device: u64,
    /// The frontend's port.
    pub event_channel: u32,
    /// Number of descriptors.
    pub size: u16,
    /// Whether the queue is in use.
    pub enabled: bool,
}

/// A mapped control page.
///
/// # Invariants
///
/// The memory has the size of a control page, so accesses at its fields do not fail.
#[derive(Debug)]
pub struct ControlPage<M>(M);

impl<M: VolatileMemory> ControlPage<M> {
    /// Takes mapped memory as a control page.
    ///
    /// # Errors
    ///
    /// It is too small, or not aligned for its fields.
    pub fn new(memory: M) -> Result<Self> {
        memory.get_slice(0, size_of::<Page>())?;
        memory.get_atomic_ref::<std::sync::atomic::AtomicU64>(0)?;
        Ok(Self(memory))
    }

    /// Writes the identity.
    pub fn set_identity(&self, identity: &Identity) -> Result<()> {
        let sizes = offset_of!(Page, identity.queue_size_max);
        let num_queues = u16::try_from(identity.queue_sizes.len())
            .ok()
            .filter(|&n| u32::from(n) <= VIRTIO_XENBUS_MAX_QUEUES)
            .ok_or(VolatileMemoryError::OutOfBounds { addr: sizes })?;

        self.put32(offset_of!(Page, identity.magic), VIRTIO_XENBUS_MAGIC)?;
        self.put32(offset_of!(Page, identity.version), VIRTIO_XENBUS_VERSION)?;
        self.put32(offset_of!(Page, identity.device_id), identity.device_id)?;
        self.put32(offset_of!(Page, identity.vendor_id), 0)?;
        for (word, shift) in (0..VIRTIO_XENBUS_FEATURE_WORDS as usize).zip((0..).step_by(32)) {
            // CAST: The word is the low half of what is left after the shift.
            let bits = (identity.features >> shift) as u32;
            self.put32(offset_of!(Page, identity.features) + 4 * word, bits)?;
        }
        self.put16(offset_of!(Page, identity.num_queues), num_queues)?;
        self.put16(
            offset_of!(Page, identity.config_length),
            identity.config_length,
        )?;
        for (index, &size) in identity.queue_sizes.iter().enumerate() {
            self.put16(sizes + 2 * index, size)?;
        }
        Ok(())
    }

    /// The status that the backend has applied.
    pub fn device_status(&self) -> Result<u32> {
        self.get32(offset_of!(Page, device.status))
    }

    /// Writes the status that the backend has applied.
    pub fn set_device_status(&self, status: u32) -> Result<()> {
        self.put32(offset_of!(Page, device.status), status)
    }

    /// Writes the configuration space; readers see the old one or the new one.
    ///
    /// `bytes` beyond the space's size are an error.
    pub fn set_config(&self, bytes: &[u8]) -> Result<()> {
        let generation = offset_of!(Page, device.config_generation);
        // An odd value is one that a backend which died meanwhile has left.
        let odd = self.get32(generation)? | 1;

        if bytes.len() > VIRTIO_XENBUS_CONFIG_SIZE as usize {
            return Err(VolatileMemoryError::OutOfBounds { addr: bytes.len() });
        }
        self.put32(generation, odd)?;
        std::sync::atomic::fence(Ordering::Release);
        self.0
            .get_slice(offset_of!(Page, config), bytes.len())?
            .copy_from(bytes);
        self.release32(generation, odd.wrapping_add(1))
    }

    /// The number of the backend's own record of this connection; 0 if there is none.
    pub fn record(&self) -> Result<u32> {
        self.get32(offset_of!(Page, device.record))
    }

    /// Writes the number of the backend's own record of this connection.
    pub fn set_record(&self, number: u32) -> Result<()> {
        self.put32(offset_of!(Page, device.record), number)
    }

    /// Announces a change of the configuration space or of the device's status. The caller
    /// notifies the frontend.
    pub fn raise_config_interrupt(&self) -> Result<()> {
        let offset = offset_of!(Page, device.config_interrupts);
        let count = self.get32(offset)?;
        self.release32(offset, count.wrapping_add(1))
    }

    /// What the frontend has set up for the whole device.
    pub fn driver(&self) -> Result<DriverRegs> {
        let mut pool_directory = [0; VIRTIO_XENBUS_MAX_DIRECTORY as usize];

        for (index, reference) in pool_directory.iter_mut().enumerate() {
            *reference = self.get32(offset_of!(Page, driver.pool_directory) + 4 * index)?;
        }
        Ok(DriverRegs {
            status: self.driver_status()?,
            pool_pages: self.get32(offset_of!(Page, driver.pool_pages))?,
            features: self.driver_features()?,
            pool_directory,
        })
    }

    /// The status that the driver has set.
    pub fn driver_status(&self) -> Result<u32> {
        self.get32(offset_of!(Page, driver.status))
    }

    /// The features that the driver has accepted.
    pub fn driver_features(&self) -> Result<u128> {
        let mut features = 0;

        for (word, shift) in (0..VIRTIO_XENBUS_FEATURE_WORDS as usize).zip((0..).step_by(32)) {
            let bits = self.get32(offset_of!(Page, driver.features) + 4 * word)?;
            features |= u128::from(bits) << shift;
        }
        Ok(features)
    }

    /// The request that is not answered yet, if there is one.
    pub fn request(&self) -> Result<Option<Request>> {
        let offset = offset_of!(Page, request.seq);
        // Acquire: the arguments were written before the number.
        let seq = u32::from_le(self.0.get_slice(offset, 4)?.load(0, Ordering::Acquire)?);

        if seq == self.get32(offset_of!(Page, device.response_seq))? {
            return Ok(None);
        }
        let mut data = [0; VIRTIO_XENBUS_WRITE_SIZE as usize];
        self.0
            .get_slice(offset_of!(Page, request.data), data.len())?
            .copy_to(&mut data);
        Ok(Some(Request {
            seq,
            op: self.get32(offset_of!(Page, request.op))?,
            queue: self.get32(offset_of!(Page, request.queue))?,
            offset: self.get32(offset_of!(Page, request.offset))?,
            length: self.get32(offset_of!(Page, request.length))?,
            data,
        }))
    }

    /// Answers request `seq` with 0 or a negative errno value. The caller notifies the frontend.
    pub fn answer(&self, seq: u32, result: i32) -> Result<()> {
        // CAST: The field has the same bits as its unsigned counterpart.
        self.put32(offset_of!(Page, device.response_result), result as u32)?;
        self.release32(offset_of!(Page, device.response_seq), seq)
    }

    /// Virtqueue `index`.
    pub fn queue(&self, index: u16) -> Result<Queue> {
        if u32::from(index) >= VIRTIO_XENBUS_MAX_QUEUES {
            return Err(VolatileMemoryError::OutOfBounds {
                addr: usize::from(index),
            });
        }
        let base = offset_of!(Page, queues) + usize::from(index) * size_of::<virtio_xenbus_queue>();
        // Acquire: the rest was written before `enabled`.
        let enabled = base + offset_of!(virtio_xenbus_queue, enabled);
        let enabled = self.0.get_slice(enabled, 2)?.load(0, Ordering::Acquire)?;
        Ok(Queue {
            desc: self.get64(base + offset_of!(virtio_xenbus_queue, desc))?,
            driver: self.get64(base + offset_of!(virtio_xenbus_queue, driver))?,
            device: self.get64(base + offset_of!(virtio_xenbus_queue, device))?,
            event_channel: self.get32(base + offset_of!(virtio_xenbus_queue, event_channel))?,
            size: self.get16(base + offset_of!(virtio_xenbus_queue, size))?,
            enabled: u16::from_le(enabled) == 1,
        })
    }

    fn get16(&self, offset: usize) -> Result<u16> {
        Ok(u16::from_le(
            self.0.get_slice(offset, 2)?.load(0, Ordering::Relaxed)?,
        ))
    }

    fn get32(&self, offset: usize) -> Result<u32> {
        Ok(u32::from_le(
            self.0.get_slice(offset, 4)?.load(0, Ordering::Relaxed)?,
        ))
    }

    fn get64(&self, offset: usize) -> Result<u64> {
        Ok(u64::from_le(
            self.0.get_slice(offset, 8)?.load(0, Ordering::Relaxed)?,
        ))
    }

    fn put16(&self, offset: usize, value: u16) -> Result<()> {
        self.0
            .get_slice(offset, 2)?
            .store(value.to_le(), 0, Ordering::Relaxed)
    }

    fn put32(&self, offset: usize, value: u32) -> Result<()> {
        self.0
            .get_slice(offset, 4)?
            .store(value.to_le(), 0, Ordering::Relaxed)
    }

    fn release32(&self, offset: usize, value: u32) -> Result<()> {
        self.0
            .get_slice(offset, 4)?
            .store(value.to_le(), 0, Ordering::Release)
    }
}
