// SPDX-License-Identifier: GPL-2.0-or-later
//! Rings of the daemon's own, in place of the guest's, for programs that use buffers out of order
//! and keep no record of the requests under way.
//!
//! The guest's available and used rings do not tell which requests were under way when a program
//! ends. So the program is given other ones, in memory of the daemon, with the guest's descriptors:
//! what goes through them is known, and the next program gets what its predecessor has not done.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, Result, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Bytes, VolatileMemory};
use xen::Mapping;

/// The address of the first byte, for the program.
const START: u64 = 1 << 61;

/// Bytes of a queue's rings, and where its used ring begins; for up to 1024 descriptors.
const STRIDE: usize = 16 << 10;
const USED: usize = 4 << 10;

/// Where a ring has its index and its entries.
const INDEX: usize = 2;
const ENTRIES: usize = 4;

/// The rings of all queues of a device.
pub struct Rings {
    file: OwnedFd,
    len: usize,
    memory: Arc<Mapping>,
}

/// The rings of a queue, of which this is the driver's side.
pub struct Shadow {
    memory: Arc<Mapping>,
    offset: usize,
    size: u16,
    next_avail: u16,
    next_used: u16,
    /// For each head that the program has, when it was given to it.
    given: Vec<Option<u64>>,
    /// The time of the next one.
    time: u64,
    /// What the program has finished: heads, and bytes written.
    done: VecDeque<(u16, u32)>,
}

impl Rings {
    /// Memory for so many queues.
    pub fn new(queues: usize) -> Result<Self> {
        let len = STRIDE * queues;
        let pages: Vec<u64> = (0..).take(len / xen::PAGE_SIZE).collect();
        let file = memfd_create(c"rings", MFdFlags::MFD_CLOEXEC)?;
        ftruncate(&file, i64::try_from(len)?)?;
        let memory = Arc::new(Mapping::of_file(file.as_fd(), &pages, true)?);
        Ok(Self { file, len, memory })
    }

    /// What the program is to map.
    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: START,
            memory_size: self.len as u64,
            userspace_addr: START,
            mmap_offset: 0,
            mmap_handle: self.as_raw_fd(),
        }
    }

    /// The rings of queue `index`, empty.
    pub fn queue(&self, index: u16, size: u16) -> Result<Shadow> {
        let mut shadow = Shadow {
            memory: Arc::clone(&self.memory),
            offset: STRIDE * usize::from(index),
            size,
            next_avail: 0,
            next_used: 0,
            given: vec![None; usize::from(size)],
            time: 0,
            done: VecDeque::new(),
        };
        shadow.begin()?;
        Ok(shadow)
    }
}

impl AsRawFd for Rings {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Shadow {
    /// The program's addresses of the available and the used ring.
    pub fn addresses(&self) -> (u64, u64) {
        let start = START + self.offset as u64;
        (start, start + USED as u64)
    }

    /// How far the program has used buffers.
    pub fn used(&self) -> Result<u16> {
        Ok(u16::from_le(
            self.slice()?.load(USED + INDEX, Ordering::Acquire)?,
        ))
    }

    /// Gives the program a buffer, which it sees with [`Shadow::publish`].
    ///
    /// # Errors
    ///
    /// It has it already.
    pub fn give(&mut self, head: u16) -> Result<()> {
        let given = self
            .given
            .get_mut(usize::from(head))
            .context("no such descriptor")?;
        ensure!(given.is_none(), "descriptor {head} is made available twice");
        *given = Some(self.time);
        self.time += 1;
        self.put(head)
    }

    fn put(&mut self, head: u16) -> Result<()> {
        let entry = ENTRIES + 2 * usize::from(self.next_avail % self.size);
        self.slice()?.write_obj(head.to_le(), entry)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(())
    }

    /// Shows the program what it was given.
    pub fn publish(&self) -> Result<()> {
        let index = self.next_avail.to_le();
        Ok(self.slice()?.store(index, INDEX, Ordering::Release)?)
    }

    /// Takes what the program has finished.
    ///
    /// # Errors
    ///
    /// The program says what cannot be.
    pub fn collect(&mut self) -> Result<()> {
        let used = self.used()?;
        let count = used.wrapping_sub(self.next_used);
        ensure!(
            count <= self.size,
            "the vhost-user program has used {count} buffers"
        );
        for _ in 0..count {
            let entry = USED + ENTRIES + 8 * usize::from(self.next_used % self.size);
            let [head, len] = self.slice()?.read_obj::<[u32; 2]>(entry)?.map(u32::from_le);
            let given = self.given.get_mut(head as usize).and_then(Option::take);
            ensure!(
                given.is_some(),
                "the vhost-user program has used buffer {head}, which it does not have"
            );
            // CAST: It is the number of one of at most 1024 heads.
            self.done.push_back((head as u16, len));
            self.next_used = self.next_used.wrapping_add(1);
        }
        Ok(())
    }

    /// The next of the buffers that were collected, and how many bytes were written to it.
    pub fn next_done(&mut self) -> Option<(u16, u32)> {
        self.done.pop_front()
    }

    /// Has the program tell of the next buffer that it finishes; whether there is none yet.
    pub fn listen(&self) -> Result<bool> {
        let event = ENTRIES + 2 * usize::from(self.size);
        self.slice()?.write_obj(self.next_used.to_le(), event)?;
        // The program writes its index and then reads this; we the other way round.
        fence(Ordering::SeqCst);
        Ok(self.used()? == self.next_used)
    }

    /// Gives another program, which begins with the first entry, what the last one has not
    /// finished, in the order in which that got it.
    pub fn restart(&mut self) -> Result<()> {
        self.collect()?;
        self.begin()?;
        let mut left: Vec<(u64, u16)> = (0..)
            .zip(&self.given)
            .filter_map(|(head, given)| given.map(|time| (time, head)))
            .collect();
        left.sort_unstable();
        for (_, head) in left {
            self.put(head)?;
        }
        self.publish()
    }

    /// Makes both rings empty.
    fn begin(&mut self) -> Result<()> {
        self.slice()?.write_slice(&[0; STRIDE], 0)?;
        self.next_avail = 0;
        self.next_used = 0;
        Ok(())
    }

    fn slice(&self) -> Result<vm_memory::VolatileSlice<'_>> {
        Ok(self.memory.get_slice(self.offset, STRIDE)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u16 = 4;

    fn shadow() -> Shadow {
        Rings::new(2).unwrap().queue(1, SIZE).unwrap()
    }

    /// As the program does.
    fn finish(shadow: &Shadow, head: u32, len: u32) {
        let index = shadow.used().unwrap();
        let slice = shadow.slice().unwrap();
        let entry = USED + ENTRIES + 8 * usize::from(index % SIZE);
        slice.write_obj([head.to_le(), len.to_le()], entry).unwrap();
        let index = index.wrapping_add(1);
        slice
            .store(index.to_le(), USED + INDEX, Ordering::Release)
            .unwrap();
    }

    /// The heads that the program finds.
    fn available(shadow: &Shadow) -> Vec<u16> {
        let slice = shadow.slice().unwrap();
        let index: u16 = slice.load(INDEX, Ordering::Acquire).unwrap();
        let head = |at: u16| {
            slice
                .read_obj(ENTRIES + 2 * usize::from(at % SIZE))
                .unwrap()
        };
        (0..index).map(head).collect()
    }

    #[test]
    fn buffers_go_there_and_come_back() {
        let mut shadow = shadow();
        for round in 0..70_000u32 {
            shadow.give(2).unwrap();
            shadow.publish().unwrap();
            assert!(shadow.listen().unwrap());
            finish(&shadow, 2, round);
            assert!(!shadow.listen().unwrap());
            shadow.collect().unwrap();
            assert_eq!(shadow.next_done(), Some((2, round)));
            assert_eq!(shadow.next_done(), None);
        }
    }

    #[test]
    fn next_program_gets_what_is_left_in_its_order() {
        let mut shadow = shadow();
        for head in [3, 0, 2, 1] {
            shadow.give(head).unwrap();
        }
        shadow.publish().unwrap();
        finish(&shadow, 0, 7);
        // It has not been told of that one.
        shadow.restart().unwrap();
        assert_eq!(available(&shadow), [3, 2, 1]);
        assert_eq!(shadow.next_done(), Some((0, 7)));
        shadow.give(0).unwrap();
        finish(&shadow, 2, 0);
        shadow.restart().unwrap();
        assert_eq!(available(&shadow), [3, 1, 0]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut shadow = shadow();
        shadow.give(0).unwrap();
        assert!(shadow.give(0).unwrap_err().to_string().contains("twice"));
        assert!(shadow.give(SIZE).is_err());
        finish(&shadow, 1, 0);
        let error = shadow.collect().unwrap_err().to_string();
        assert!(error.contains("buffer 1"), "{error}");
        let mut shadow = self::shadow();
        finish(&shadow, u32::MAX, 0);
        assert!(shadow.collect().is_err());
        let mut shadow = self::shadow();
        shadow
            .slice()
            .unwrap()
            .write_obj(5u16, USED + INDEX)
            .unwrap();
        assert!(shadow.collect().unwrap_err().to_string().contains("used 5"));
    }
}
