// SPDX-License-Identifier: GPL-2.0-or-later
//! Descriptor chains of a split ring.

use anyhow::{Context, Result, ensure};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, VolatileMemory, VolatileSlice};

use super::{Access, Pool, Segment};

const DESCRIPTOR: usize = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The descriptors of a queue.
#[derive(Clone, Copy, Debug)]
pub struct Table<'m> {
    pool: &'m Pool,
    descriptors: VolatileSlice<'m>,
}

impl<'m> Table<'m> {
    /// Those of `queue`.
    ///
    /// # Errors
    ///
    /// They are not inside `pool`.
    pub fn new(queue: &Queue, pool: &'m Pool) -> Result<Self> {
        let segment = Segment {
            address: GuestAddress(queue.desc_table()),
            len: DESCRIPTOR * usize::from(queue.size()),
        };
        let descriptors = pool.slice(segment);
        Ok(Self {
            pool,
            descriptors: descriptors.context("the descriptors are outside the pool")?,
        })
    }

    /// The buffers of the chain that begins with descriptor `head`, up to `most` of them.
    pub fn chain(&self, head: u16, most: usize) -> Chain<'m> {
        Chain {
            pool: self.pool,
            table: self.descriptors,
            next: Some(head),
            indirect: false,
            most,
            left: most,
        }
    }
}

/// The buffers of a chain. Each descriptor is read once; addresses are not checked.
#[derive(Debug)]
pub struct Chain<'m> {
    pool: &'m Pool,
    table: VolatileSlice<'m>,
    next: Option<u16>,
    /// The table is an indirect one.
    indirect: bool,
    most: usize,
    left: usize,
}

impl Chain<'_> {
    fn read(&mut self, index: u16) -> Result<(Segment, Access)> {
        let (mut segment, mut flags, mut next) = self.descriptor(index)?;
        if flags & INDIRECT != 0 {
            self.enter(segment, flags)?;
            (segment, flags, next) = self.descriptor(0)?;
            ensure!(flags & INDIRECT == 0, "an indirect table inside another");
        }
        let most = self.most;
        ensure!(
            self.left > 0,
            "it has too many descriptors, more than {most}, or is a loop"
        );
        self.left -= 1;
        self.next = (flags & NEXT != 0).then_some(next);
        let access = match flags & WRITE {
            0 => Access::Read,
            _ => Access::Write,
        };
        Ok((segment, access))
    }

    /// Goes on in an indirect table, which a descriptor with `flags` names.
    fn enter(&mut self, table: Segment, flags: u16) -> Result<()> {
        ensure!(
            !self.indirect && flags & NEXT == 0,
            "an indirect table inside a chain"
        );
        ensure!(
            table.len % DESCRIPTOR == 0,
            "an indirect table of {} bytes",
            table.len
        );
        self.table = self
            .pool
            .slice(table)
            .context("an indirect table outside the pool")?;
        self.indirect = true;
        Ok(())
    }

    fn descriptor(&self, index: u16) -> Result<(Segment, u16, u16)> {
        let [address, rest]: [u64; 2] = self
            .table
            .get_ref(DESCRIPTOR * usize::from(index))
            .with_context(|| format!("descriptor {index} is outside its table"))?
            .load();
        let rest = u64::from_le(rest);
        // CAST: The fields of the second half: 32, 16 and 16 bits.
        let (len, flags, next) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
        let segment = Segment {
            address: GuestAddress(u64::from_le(address)),
            len: len as usize,
        };
        Ok((segment, flags, next))
    }
}

impl Iterator for Chain<'_> {
    type Item = Result<(Segment, Access)>;

    /// After an error there is nothing more.
    fn next(&mut self) -> Option<Self::Item> {
        let index = self.next.take()?;
        Some(self.read(index))
    }
}
