// SPDX-License-Identifier: GPL-2.0-or-later
//! Requests of the virtio block device.

use std::ops::Range;

use anyhow::{Result, bail, ensure};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Address, GuestAddress};

use super::{MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS, SECTOR};
use crate::memory::{Memory, Segment, total};
use crate::vring::Chain;

/// Bytes of the header: type, reserved, sector.
const HEADER_SIZE: usize = 16;

/// Bytes of a discard or write-zeroes segment: sector, number of sectors, flags.
const RANGE_SIZE: usize = 16;

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
    /// All of them, as [`Vring::pop`](crate::vring::Vring::pop) has found them; after
    /// [`Buffers::collect`] without the status, after [`Buffers::parse`] without the header.
    pub segments: Vec<Segment>,
    /// How many of them the device reads.
    readable: usize,
    /// Which of them the request is about.
    data: Range<usize>,
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
}

impl Buffers {
    /// What the request is about, after [`Buffers::parse`]. None of them is empty.
    pub fn data(&self) -> &[Segment] {
        self.segments.get(self.data.clone()).unwrap_or_default()
    }

    /// Takes a chain, which is in `segments`, apart.
    ///
    /// # Errors
    ///
    /// It is no request, and there is no place for a status: the driver is broken.
    pub fn collect(&mut self, chain: Chain) -> Result<()> {
        let head = chain.head;
        let (readable, writable) = self.segments.split_at_mut(chain.readable);

        ensure!(
            total(readable) >= HEADER_SIZE,
            "chain {head} has no request header"
        );
        let Some(last) = writable.last_mut() else {
            bail!("chain {head} has no place for a status");
        };
        last.len -= 1;
        self.status = last.address.unchecked_add(last.len as u64);
        if last.len == 0 {
            self.segments.pop();
        }
        self.readable = chain.readable;
        self.data = 0..self.readable;
        Ok(())
    }

    /// Decides what is to be done, and leaves the buffers for it in [`Buffers::data`].
    pub fn parse(&mut self, memory: &mut Memory, limits: &Limits) -> Result<Operation, Refused> {
        let mut header = [0; HEADER_SIZE];
        self.read(memory, &mut header)?;
        self.skip_header();
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);

        match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => {
                self.data = self.readable..self.segments.len();
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
                self.data = self.readable..self.segments.len();
                Ok(Operation::GetId)
            }
            VIRTIO_BLK_T_DISCARD if limits.discard => {
                check_writable(limits)?;
                let (offset, len, flags) = self.range(memory, limits, MAX_DISCARD_SECTORS)?;
                match flags {
                    0 => Ok(Operation::Discard { offset, len }),
                    _ => Err(UNSUPP),
                }
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                check_writable(limits)?;
                let (offset, len, flags) = self.range(memory, limits, MAX_WRITE_ZEROES_SECTORS)?;
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

    /// Takes the header away from the beginning of the data.
    fn skip_header(&mut self) {
        let mut left = HEADER_SIZE;
        for segment in &mut self.segments {
            let skipped = left.min(segment.len);
            segment.address = segment.address.unchecked_add(skipped as u64);
            segment.len -= skipped;
            left -= skipped;
            if segment.len > 0 {
                break;
            }
            self.data.start += 1;
        }
    }

    /// Fills `buffer` from the beginning of the data.
    fn read(&self, memory: &mut Memory, buffer: &mut [u8]) -> Result<(), Refused> {
        memory
            .gather(self.data(), 0, buffer.into())
            .map_err(|_| IOERR)
    }

    /// Checks that the data lies inside the disk; its offset.
    fn check_data(&self, sector: u64, limits: &Limits) -> Result<u64, Refused> {
        let len = total(self.data()) as u64;
        check_range(sector, len, limits)
    }

    /// The only segment of a discard or write-zeroes request: offset, length and flags.
    fn range(
        &mut self,
        memory: &mut Memory,
        limits: &Limits,
        max_sectors: u32,
    ) -> Result<(u64, u64, u32), Refused> {
        if total(self.data()) != RANGE_SIZE {
            return Err(IOERR);
        }
        let mut bytes = [0; RANGE_SIZE];
        self.read(memory, &mut bytes)?;
        self.data = 0..0;
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
