// SPDX-License-Identifier: GPL-2.0-or-later
//! Requests of the virtio block device.

use anyhow::{Result, bail, ensure};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use super::{MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS, SECTOR};
use crate::memory::Pool;

/// Bytes of the header: type, reserved, sector.
const HEADER_SIZE: usize = 16;

/// Bytes of a discard or write-zeroes segment: sector, number of sectors, flags.
const RANGE_SIZE: usize = 16;

/// A part of a request's buffers, inside the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub address: GuestAddress,
    /// Bytes; not 0.
    pub len: usize,
}

/// What is to be done. Offsets and lengths are bytes, inside the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read from `offset` on.
    Read { offset: u64 },
    /// Write from `offset` on.
    Write { offset: u64 },
    /// Make completed writes durable.
    Flush,
    /// The content does not matter any more.
    Discard { offset: u64, len: u64 },
    /// Make it zeroes; the space may be given back.
    WriteZeroes { offset: u64, len: u64, unmap: bool },
    /// Read the serial number.
    GetId,
}

/// The status of a request that cannot be done: `VIRTIO_BLK_S_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub u8);

const IOERR: Refused = Refused(VIRTIO_BLK_S_IOERR as u8);
const UNSUPP: Refused = Refused(VIRTIO_BLK_S_UNSUPP as u8);

/// The buffers of a request.
#[derive(Debug, Default)]
pub struct Buffers {
    /// After the header, what the device reads; after parsing, what it works on.
    pub data: Vec<Segment>,
    writable: Vec<Segment>,
    header: [u8; HEADER_SIZE],
    /// Where the status goes.
    pub status: GuestAddress,
}

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Capacity.
    pub sectors: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// Writes are refused.
    pub readonly: bool,
    /// Discards are accepted.
    pub discard: bool,
    /// The most descriptors that a chain may have: a driver with a smaller ring than offered
    /// still goes by `seg_max`.
    pub descriptors: usize,
}

impl Buffers {
    /// Takes a chain apart.
    ///
    /// # Errors
    ///
    /// It is no request, and there is no place for a status: the driver is broken.
    pub fn collect(&mut self, chain: DescriptorChain<&Pool>, limits: &Limits) -> Result<()> {
        let pool = chain.memory().clone();
        let head = chain.head_index();

        self.data.clear();
        self.writable.clear();
        for (count, descriptor) in chain.enumerate() {
            ensure!(
                count < limits.descriptors,
                "chain {head} has too many descriptors"
            );
            self.add(&pool, head, descriptor)?;
        }
        ensure!(
            total(&self.data) >= HEADER_SIZE,
            "chain {head} has no request header"
        );
        let mut at = 0;
        while let Some(part) = self.header.get_mut(at..).filter(|part| !part.is_empty()) {
            let segment = take_front(&mut self.data, part.len())
                .ok_or_else(|| anyhow::anyhow!("chain {head} has no request header"))?;
            let Some(part) = part.get_mut(..segment.len) else {
                bail!("chain {head} has no request header");
            };
            pool.read_slice(part, segment.address)?;
            at += segment.len;
        }
        let Some(last) = self.writable.last_mut() else {
            bail!("chain {head} has no place for a status");
        };
        last.len -= 1;
        self.status = last.address.unchecked_add(last.len as u64);
        if last.len == 0 {
            self.writable.pop();
        }
        Ok(())
    }

    fn add(&mut self, pool: &Pool, head: u16, descriptor: Descriptor) -> Result<()> {
        let segment = Segment {
            address: descriptor.addr(),
            len: descriptor.len() as usize,
        };

        if segment.len == 0 {
            return Ok(());
        }
        ensure!(
            pool.check_range(segment.address, segment.len),
            "chain {head} has a buffer outside the pool: {:#x}, {} bytes",
            segment.address.0,
            segment.len
        );
        if descriptor.is_write_only() {
            self.writable.push(segment);
        } else {
            ensure!(
                self.writable.is_empty(),
                "chain {head} has a readable part after a writable"
            );
            self.data.push(segment);
        }
        Ok(())
    }

    /// Decides what is to be done, and leaves the buffers for it in `data`.
    pub fn parse(&mut self, pool: &Pool, limits: &Limits) -> Result<Operation, Refused> {
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = self.header;
        let sector = u64::from_le_bytes(sector);

        match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => {
                std::mem::swap(&mut self.data, &mut self.writable);
                let offset = self.check_data(sector, limits)?;
                Ok(Operation::Read { offset })
            }
            VIRTIO_BLK_T_OUT => {
                check_writable(limits)?;
                let offset = self.check_data(sector, limits)?;
                Ok(Operation::Write { offset })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Operation::Flush),
            VIRTIO_BLK_T_GET_ID => {
                std::mem::swap(&mut self.data, &mut self.writable);
                Ok(Operation::GetId)
            }
            VIRTIO_BLK_T_DISCARD if limits.discard => {
                check_writable(limits)?;
                let (offset, len, flags) = self.range(pool, limits, MAX_DISCARD_SECTORS)?;
                match flags {
                    0 => Ok(Operation::Discard { offset, len }),
                    _ => Err(UNSUPP),
                }
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                check_writable(limits)?;
                let (offset, len, flags) = self.range(pool, limits, MAX_WRITE_ZEROES_SECTORS)?;
                match flags {
                    0 => Ok(Operation::WriteZeroes {
                        offset,
                        len,
                        unmap: false,
                    }),
                    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP => Ok(Operation::WriteZeroes {
                        offset,
                        len,
                        unmap: limits.discard,
                    }),
                    _ => Err(UNSUPP),
                }
            }
            _ => Err(UNSUPP),
        }
    }

    /// Checks that the data lies inside the disk; its offset.
    fn check_data(&self, sector: u64, limits: &Limits) -> Result<u64, Refused> {
        let len = total(&self.data) as u64;
        check_range(sector, len, limits)
    }

    /// The only segment of a discard or write-zeroes request: offset, length and flags.
    fn range(
        &mut self,
        pool: &Pool,
        limits: &Limits,
        max_sectors: u32,
    ) -> Result<(u64, u64, u32), Refused> {
        if total(&self.data) != RANGE_SIZE {
            return Err(IOERR);
        }
        let mut bytes = [0; RANGE_SIZE];
        let mut at = 0;
        for segment in self.data.drain(..) {
            let part = bytes.get_mut(at..at + segment.len).ok_or(IOERR)?;
            pool.read_slice(part, segment.address).map_err(|_| IOERR)?;
            at += segment.len;
        }
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        if sectors > max_sectors {
            return Err(IOERR);
        }
        let len = u64::from(sectors) * SECTOR;
        Ok((
            check_range(sector, len, limits)?,
            len,
            u32::from_le_bytes(flags),
        ))
    }
}

/// Takes up to `len` bytes from the beginning of `segments`.
fn take_front(segments: &mut Vec<Segment>, len: usize) -> Option<Segment> {
    let first = segments.first_mut()?;
    if first.len <= len {
        return Some(segments.remove(0));
    }
    let front = Segment {
        address: first.address,
        len,
    };
    first.address = first.address.unchecked_add(len as u64);
    first.len -= len;
    Some(front)
}

/// Bytes in `segments`.
///
/// Cannot overflow: a chain has at most 2^32 bytes, which `DescriptorChain` sees to.
pub fn total(segments: &[Segment]) -> usize {
    segments.iter().map(|segment| segment.len).sum()
}

/// What `segments` hold from byte `skip` on, `len` bytes of it.
pub fn parts(segments: &[Segment], skip: usize, len: usize) -> impl Iterator<Item = Segment> {
    let (mut skip, mut left) = (skip, len);

    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.len);
        let len = left.min(segment.len - skipped);
        skip -= skipped;
        left -= len;
        let address = segment.address.unchecked_add(skipped as u64);
        (len > 0).then_some(Segment { address, len })
    })
}

fn check_writable(limits: &Limits) -> Result<(), Refused> {
    if limits.readonly { Err(IOERR) } else { Ok(()) }
}

/// Checks that `len` bytes at `sector` are whole blocks inside the disk; their offset.
fn check_range(sector: u64, len: u64, limits: &Limits) -> Result<u64, Refused> {
    let block = u64::from(limits.block_size);
    let size = limits.sectors * SECTOR;
    let offset = sector.checked_mul(SECTOR).ok_or(IOERR)?;
    let end = offset.checked_add(len).ok_or(IOERR)?;

    if end > size || offset % block != 0 || len % block != 0 {
        return Err(IOERR);
    }
    Ok(offset)
}
