// SPDX-License-Identifier: GPL-2.0-or-later
//! Asynchronous file I/O on guests' buffers, with io_uring.
//!
//! The `unsafe` code of the block device is here.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{opcode, types};
use tap::IoVec;

use super::disk::Disk;
use crate::memory::{Parts, Pool};
use crate::uring::{Event, Uring};

/// How memory and offsets must be aligned for direct I/O, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectAlignment {
    /// Of memory.
    pub memory: usize,
    /// Of offsets in the file, and lengths.
    pub offset: usize,
}

/// What direct I/O on `file` needs, or `None` if there is none. Where the kernel does not say, a
/// block is assumed to suffice.
pub fn direct_alignment(file: &File, block_size: u32) -> io::Result<Option<DirectAlignment>> {
    let mut buffer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: The path is a C string, and the buffer has room for the result.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            buffer.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: All bytes were zeroed, which is a valid value, and then filled in.
    let stat = unsafe { buffer.assume_init() };
    if stat.stx_mask & libc::STATX_DIOALIGN == 0 {
        let block = block_size as usize;
        return Ok(Some(DirectAlignment {
            memory: block,
            offset: block,
        }));
    }
    if stat.stx_dio_mem_align == 0 || stat.stx_dio_offset_align == 0 {
        return Ok(None);
    }
    Ok(Some(DirectAlignment {
        memory: stat.stx_dio_mem_align as usize,
        offset: stat.stx_dio_offset_align as usize,
    }))
}

/// An I/O on the file.
#[derive(Clone, Copy, Debug)]
pub enum Io {
    /// Read from this offset on.
    Read(u64),
    /// Write from this offset on; with `durable`, complete when it is on the disk.
    Write { offset: u64, durable: bool },
    /// Make what has been written durable.
    Sync,
    /// `fallocate(2)`.
    Allocate { mode: i32, offset: u64, len: u64 },
}

/// Asynchronous I/O on one file, used by one thread.
///
/// # Invariants
///
/// The slots whose I/O has been pushed and has not completed are `busy` ones, and `count` is their
/// number. The kernel may use their parts: these are not changed.
pub struct Aio {
    uring: Uring,
    fd: types::Fd,
    at_once: bool,
    slots: Vec<Slot>,
    count: usize,
}

struct Slot {
    parts: Parts,
    busy: bool,
}

impl Aio {
    /// I/O on `disk` through `uring`, which has room for `slots` I/Os.
    ///
    /// The disk must stay open as long.
    pub fn new(uring: Uring, disk: &Disk, pool: &Pool, slots: u16) -> Self {
        let slot = |_| Slot {
            parts: Parts::new(pool),
            busy: false,
        };
        Self {
            uring,
            fd: types::Fd(disk.file().as_raw_fd()),
            at_once: disk.in_memory(),
            slots: (0..slots).map(slot).collect(),
            count: 0,
        }
    }

    /// The number of I/Os that have not completed.
    pub fn busy(&self) -> usize {
        self.count
    }

    /// The memory that an I/O in `slot` is to use.
    ///
    /// # Errors
    ///
    /// One is using it.
    pub fn parts(&mut self, slot: u16) -> io::Result<&mut Parts> {
        match self.slots.get_mut(usize::from(slot)) {
            Some(slot) if !slot.busy => Ok(&mut slot.parts),
            _ => Err(io::ErrorKind::ResourceBusy.into()),
        }
    }

    /// Begins an I/O with the slot's parts, whose result is reported as [`Event::Io`] of `slot`. Of
    /// one that is done already, the result is returned: bytes or a negative errno value.
    ///
    /// # Errors
    ///
    /// The slot is busy. The I/O is not begun.
    pub fn start(&mut self, slot: u16, io: Io) -> io::Result<Option<i32>> {
        let fd = self.fd;
        let at_once = self.at_once;
        let vectors = self.parts(slot)?.vectors();
        if at_once {
            if let Some(result) = do_at_once(fd, io, vectors) {
                return Ok(Some(result));
            }
        }
        let count = u32::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let vectors = vectors.as_ptr().cast::<libc::iovec>();
        let entry = match io {
            Io::Read(offset) => opcode::Readv::new(fd, vectors, count)
                .offset(offset)
                .build(),
            Io::Write { offset, durable } => opcode::Writev::new(fd, vectors, count)
                .offset(offset)
                .rw_flags(write_flags(durable))
                .build(),
            Io::Sync => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Io::Allocate { mode, offset, len } => opcode::Fallocate::new(fd, len)
                .offset(offset)
                .mode(mode)
                .build(),
        };
        // SAFETY: The vectors stay as they are, and with them the memory that they name, while the
        // slot is busy: until the completion.
        unsafe { self.uring.push(&entry.user_data(slot.into()))? };
        // INVARIANT: It has been pushed.
        self.set_busy(slot, true);
        Ok(None)
    }

    fn set_busy(&mut self, slot: u16, busy: bool) {
        if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
            slot.busy = busy;
        }
        self.count = match busy {
            true => self.count + 1,
            false => self.count.saturating_sub(1),
        };
    }

    /// As [`Uring::acknowledge`].
    pub fn acknowledge(&mut self) -> io::Result<()> {
        self.uring.acknowledge()
    }

    /// As [`Uring::wait`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.uring.wait(timeout)
    }

    /// As [`Uring::next_event`].
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        let event = self.uring.next_event()?;
        if let Some(Event::Io(slot, _)) = event {
            // INVARIANT: It has completed.
            self.set_busy(slot, false);
        }
        Ok(event)
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        while self.count > 0 {
            // A broken doorbell does not matter any more.
            while !matches!(self.next_event(), Ok(None)) {}
            if self.count == 0 {
                return;
            }
            if let Err(error) = self.wait(None) {
                // The kernel may still use the memory: leave it mapped.
                log::error!("io_uring: {error}");
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
        }
    }
}

fn write_flags(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

/// Reads or writes without io_uring. `None` for other I/O.
fn do_at_once(fd: types::Fd, io: Io, vectors: &[IoVec<'_>]) -> Option<i32> {
    let count = i32::try_from(vectors.len()).ok()?;
    let all = vectors.as_ptr().cast::<libc::iovec>();
    // CAST: Offsets are inside of a file, and what is done at once is at most 2 GiB (rw(2)).
    // SAFETY: An `IoVec` is a transparent `struct iovec`, whose memory can be used while it is
    // borrowed; what must not be written is not read into.
    let result = unsafe {
        match (io, vectors) {
            // As with one vector below; the kernel has less to do.
            (Io::Read(offset), [one]) => {
                let to = one.slice().ptr_guard_mut().as_ptr().cast();
                libc::pread(fd.0, to, one.len(), offset as i64)
            }
            (
                Io::Write {
                    offset,
                    durable: false,
                },
                [one],
            ) => {
                let from = one.slice().ptr_guard().as_ptr().cast();
                libc::pwrite(fd.0, from, one.len(), offset as i64)
            }
            (Io::Read(offset), _) => libc::preadv(fd.0, all, count, offset as i64),
            (Io::Write { offset, durable }, _) => {
                libc::pwritev2(fd.0, all, count, offset as i64, write_flags(durable))
            }
            (Io::Sync | Io::Allocate { .. }, _) => return None,
        }
    };
    Some(match result {
        -1 => -io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO),
        bytes => bytes as i32,
    })
}
