// SPDX-License-Identifier: GPL-2.0-or-later
//! Block device on a file or block device.

mod aio;
mod claim;
mod disk;
mod poll;
mod queue;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use nix::errno::Errno;
use serde::Deserialize;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

use crate::config::{Tuning, with_limits};
use crate::config_space::ConfigSpace;
use crate::device::{Device, ID_BLOCK, Resumption, Ring, feature};
use crate::modes::Mode;
use crate::record::Kept;
use crate::uring;
use crate::worker::Worker;
pub use claim::Busy;
use disk::Disk;

/// Bytes of a sector, the unit of addresses and sizes whatever the block size.
const SECTOR: u64 = 512;

/// Bytes of the serial number.
const SERIAL_SIZE: usize = 20;

/// The most that one discard request covers: 1 GiB.
const MAX_DISCARD_SECTORS: u32 = 1 << 21;

/// The most that one write-zeroes request covers: 32 MiB, because it may mean to write them.
const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 16;

with_limits! {
    /// What the configuration says of a block device.
    #[derive(Default)]
    pub struct Settings {
        /// The file or block device; absolute.
        pub path: Option<PathBuf>,
        /// The guest may not write; false by default.
        pub readonly: Option<bool>,
        /// Bytes of a block that the guest sees; 512 by default.
        pub logical_block_size: Option<BlockSize>,
        /// Serial number, by default one made of the guest's domain and the device's number.
        pub serial: Option<Serial>,
        /// Pass discards on to the file; true by default.
        pub discard: Option<bool>,
        /// Go past dom0's page cache; if possible, by default.
        pub direct: Option<bool>,
        /// How long a queue's thread looks for the next request before it sleeps; 0 by default.
        pub poll_us: Option<PollTime>,
    }
}

/// Bytes of a logical block.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "i64")]
pub struct BlockSize(u32);

impl TryFrom<i64> for BlockSize {
    type Error = String;

    fn try_from(value: i64) -> Result<Self, String> {
        match value {
            512 => Ok(Self(512)),
            4096 => Ok(Self(4096)),
            _ => Err(format!(
                "{value} is not a logical block size: it must be 512 or 4096"
            )),
        }
    }
}

/// A time to look for requests, in microseconds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "i64")]
pub struct PollTime(u64);

impl TryFrom<i64> for PollTime {
    type Error = String;

    fn try_from(value: i64) -> Result<Self, String> {
        match u64::try_from(value) {
            Ok(time @ 0..=10_000) => Ok(Self(time)),
            _ => Err(format!(
                "{value} is not a time to poll: it must be from 0 to 10000 microseconds"
            )),
        }
    }
}

/// A serial number.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct Serial([u8; SERIAL_SIZE]);

impl TryFrom<String> for Serial {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.len() > SERIAL_SIZE || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "{text:?} is not a serial number: it must have at most {SERIAL_SIZE} characters, \
                 printable ASCII without spaces"
            ));
        }
        let mut serial = [0; SERIAL_SIZE];
        for (to, from) in serial.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        Ok(Self(serial))
    }
}

/// A block device.
struct Block {
    disk: Arc<Disk>,
    config: ConfigSpace,
    queues: u16,
    queue_size: u16,
    kept: Option<Kept>,
}

/// Where the driver's choice of the cache is kept: `writeback` + 1.
const KEPT_CACHE: usize = 0;

impl Block {
    fn set_cache(&mut self, writeback: u8) -> io::Result<()> {
        self.disk.set_writeback(writeback == 1)?;
        self.config.write(WCE_OFFSET, &[writeback]);
        Ok(())
    }
}

/// Opens the device for the guest.
pub fn open(settings: &Settings, tuning: Tuning) -> Result<Box<dyn Device>> {
    let serial = match &settings.serial {
        Some(serial) => serial.clone(),
        None => Serial::try_from(format!("xen-{}-{}", tuning.domain, tuning.device))
            .map_err(anyhow::Error::msg)?,
    };
    uring::check().context("cannot use io_uring, which the kernel must have and allow")?;
    let disk = Disk::open(settings, serial.0, tuning.id)?;
    let config = ConfigSpace::new(&config_space(&disk, &tuning))?;
    Ok(Box::new(Block {
        disk: Arc::new(disk),
        config,
        queues: tuning.queues,
        queue_size: tuning.queue_size,
        kept: None,
    }))
}

/// Descriptors of a request: header and status take two of a chain.
fn seg_max(queue_size: u16) -> u16 {
    queue_size.saturating_sub(2).max(1)
}

/// Offset of `writeback` in `struct virtio_blk_config`.
const WCE_OFFSET: usize = 32;

/// `struct virtio_blk_config`.
fn config_space(disk: &Disk, tuning: &Tuning) -> Vec<u8> {
    let block_sectors = disk.block_size() / SECTOR as u32;
    let physical = disk.physical_block_size().max(disk.block_size());
    // CAST: Both are powers of two from 512 up.
    let exponent = (physical.trailing_zeros() - disk.block_size().trailing_zeros()) as u8;
    let alignment = physical / SECTOR as u32;

    let mut bytes = Vec::with_capacity(60);
    bytes.extend(disk.sectors().to_le_bytes());
    bytes.extend(0u32.to_le_bytes()); // size_max: not offered
    bytes.extend(u32::from(seg_max(tuning.queue_size)).to_le_bytes());
    bytes.extend([0; 4]); // geometry: not offered
    bytes.extend(disk.block_size().to_le_bytes());
    bytes.push(exponent);
    bytes.push(0); // alignment_offset
    bytes.extend(1u16.to_le_bytes()); // min_io_size, in blocks
    bytes.extend(0u32.to_le_bytes()); // opt_io_size
    bytes.push(1); // writeback
    bytes.push(0);
    bytes.extend(tuning.queues.to_le_bytes());
    bytes.extend(MAX_DISCARD_SECTORS.to_le_bytes());
    bytes.extend(1u32.to_le_bytes()); // max_discard_seg
    bytes.extend(alignment.max(block_sectors).to_le_bytes()); // discard_sector_alignment
    bytes.extend(MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
    bytes.extend(1u32.to_le_bytes()); // max_write_zeroes_seg
    bytes.push(u8::from(disk.can_discard())); // write_zeroes_may_unmap
    bytes.extend([0; 3]);
    bytes
}

impl Device for Block {
    fn id(&self) -> u32 {
        ID_BLOCK
    }

    fn describe(&self) -> String {
        self.disk.describe()
    }

    fn features(&self) -> u128 {
        let mut features = feature(VIRTIO_BLK_F_SEG_MAX)
            | feature(VIRTIO_BLK_F_BLK_SIZE)
            | feature(VIRTIO_BLK_F_TOPOLOGY)
            | feature(VIRTIO_BLK_F_FLUSH)
            | feature(VIRTIO_BLK_F_CONFIG_WCE)
            | feature(VIRTIO_BLK_F_MQ);
        if self.disk.readonly() {
            features |= feature(VIRTIO_BLK_F_RO);
        } else {
            features |= feature(VIRTIO_BLK_F_WRITE_ZEROES);
            if self.disk.can_discard() {
                features |= feature(VIRTIO_BLK_F_DISCARD);
            }
        }
        features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; usize::from(self.queues)]
    }

    fn address_modes(&self) -> &[Mode] {
        &Mode::ALL
    }

    fn queue_name(&self, index: u16) -> String {
        format!("request {index}")
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) -> Result<(), Errno> {
        match (offset, data) {
            (WCE_OFFSET, &[value @ (0 | 1)]) => {
                self.set_cache(value).map_err(|_| Errno::EIO)?;
                if let Some(kept) = &self.kept {
                    kept.set(KEPT_CACHE, u64::from(value) + 1);
                }
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn set_features(&mut self, features: u128) -> Result<(), Errno> {
        // A driver that does not flush relies on completed writes being on the disk.
        let flushes = features & feature(VIRTIO_BLK_F_FLUSH) != 0;
        self.disk.writeback.store(flushes, Ordering::Relaxed);
        Ok(())
    }

    fn resume(&mut self, kept: Kept) -> Result<()> {
        if let value @ (1 | 2) = kept.get(KEPT_CACHE) {
            self.set_cache(u8::from(value == 2))?;
        }
        self.kept = Some(kept);
        Ok(())
    }

    fn resumption(&self, _index: u16) -> Resumption {
        Resumption::Recorded
    }

    fn start_queue(&mut self, ring: Ring) -> Result<Worker> {
        let disk = Arc::clone(&self.disk);
        Worker::spawn(ring, move |ring, stop| queue::serve(ring, stop, &disk))
    }

    fn reset(&mut self) {
        self.disk.writeback.store(true, Ordering::Relaxed);
        self.config.write(WCE_OFFSET, &[1]);
    }
}
