// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory that is mapped.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use vm_memory::volatile_memory::{Error as VolatileError, Result as VolatileResult};
use vm_memory::{VolatileMemory, VolatileSlice};

use crate::{ForeignMemory, GrantTable, PAGE_SIZE, last_error};

/// Where the memory of a [`Mapping`] comes from, and so how it is given back.
#[derive(Debug)]
pub(crate) enum Source {
    Grants {
        table: Arc<GrantTable>,
        count: u32,
    },
    Frames {
        memory: Arc<ForeignMemory>,
        pages: usize,
    },
    Anonymous,
}

/// Memory shared with somebody who may change it at any time; unmapped when dropped.
///
/// # Invariants
///
/// `len` bytes at `start` are mapped readable until `Drop`, and writable too unless whoever has
/// mapped them has asked for less.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    source: Source,
}

// SAFETY: The memory belongs to no thread, and is only accessed with volatile operations.
unsafe impl Send for Mapping {}
// SAFETY: As above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Takes over `len` bytes at `start`, which `source` has mapped.
    pub(crate) fn new(start: NonNull<u8>, len: usize, source: Source) -> Self {
        Self { start, len, source }
    }

    /// Maps `len` bytes of zeroes that no other domain sees.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        // SAFETY: A new mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(last_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self::new(start, len, Source::Anonymous))
    }
}

impl Mapping {
    /// Maps pages of `file` side by side, for tests.
    pub fn of_file(file: BorrowedFd<'_>, pages: &[u64], writable: bool) -> io::Result<Self> {
        let mapping = Self::anonymous(pages.len() * PAGE_SIZE)?;
        let write = if writable { libc::PROT_WRITE } else { 0 };

        for (index, &page) in pages.iter().enumerate() {
            let offset = page
                .checked_mul(PAGE_SIZE as u64)
                .and_then(|offset| i64::try_from(offset).ok())
                .ok_or(io::ErrorKind::InvalidInput)?;
            // SAFETY: The page is one of the mapping's, which nobody uses yet, and is mapped
            // after as it was before.
            let start = unsafe {
                libc::mmap(
                    mapping.start.as_ptr().add(index * PAGE_SIZE).cast(),
                    PAGE_SIZE,
                    libc::PROT_READ | write,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    file.as_raw_fd(),
                    offset,
                )
            };
            if start == libc::MAP_FAILED {
                return Err(last_error());
            }
        }
        Ok(mapping)
    }
}

impl VolatileMemory for Mapping {
    type B = ();

    fn len(&self) -> usize {
        self.len
    }

    fn get_slice(&self, offset: usize, count: usize) -> VolatileResult<VolatileSlice<'_>> {
        let end = offset.checked_add(count).ok_or(VolatileError::Overflow {
            base: offset,
            offset: count,
        })?;
        if end > self.len {
            return Err(VolatileError::OutOfBounds { addr: end });
        }
        // SAFETY: By the type invariant and the check above, the slice is inside the mapping,
        // which outlives the borrow of `self`.
        Ok(unsafe { VolatileSlice::new(self.start.as_ptr().add(offset), count) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: What is given back is what was mapped, and nothing borrows it.
        unsafe {
            match &self.source {
                Source::Grants { table, count } => table.unmap(self.start, *count),
                Source::Frames { memory, pages } => memory.unmap(self.start, *pages),
                Source::Anonymous => {
                    libc::munmap(self.start.as_ptr().cast(), self.len);
                }
            }
        }
    }
}
