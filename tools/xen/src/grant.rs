// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory that another domain has granted.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use vm_memory::volatile_memory::{Error as VolatileError, Result as VolatileResult};
use vm_memory::{VolatileMemory, VolatileSlice};

use crate::{DomainId, PAGE_SIZE, last_error, sys};

/// A grant device.
#[derive(Debug)]
pub struct GrantTable {
    handle: NonNull<sys::GnttabHandle>,
}

// SAFETY: A libxengnttab handle is a file descriptor; the kernel serializes what is done with it.
unsafe impl Send for GrantTable {}
// SAFETY: As above.
unsafe impl Sync for GrantTable {}

impl GrantTable {
    /// Opens the grant device.
    pub fn open() -> io::Result<Arc<Self>> {
        // SAFETY: The logger lives for ever.
        let handle = NonNull::new(unsafe { sys::xengnttab_open(sys::silent(), 0) })
            .ok_or_else(last_error)?;
        Ok(Arc::new(Self { handle }))
    }

    /// Maps the pages that `references` of `domain` name, readable and writable, side by side.
    ///
    /// # Errors
    ///
    /// There is no page to map, or Xen refuses one of the references.
    pub fn map(self: &Arc<Self>, domain: DomainId, references: &[u32]) -> io::Result<Mapping> {
        let count = u32::try_from(references.len())
            .ok()
            .filter(|&count| count > 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let len = references
            .len()
            .checked_mul(PAGE_SIZE)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // The library wants the array mutable, though it does not change it.
        let mut references = references.to_vec();

        // SAFETY: The handle is open, and `references` has `count` elements.
        let start = unsafe {
            sys::xengnttab_map_domain_grant_refs(
                self.handle.as_ptr(),
                count,
                u32::from(domain),
                references.as_mut_ptr(),
                libc::PROT_READ | libc::PROT_WRITE,
            )
        };
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(last_error)?;
        Ok(Mapping {
            start,
            len,
            source: Source::Grants {
                table: Arc::clone(self),
                count,
            },
        })
    }
}

impl Drop for GrantTable {
    fn drop(&mut self) {
        // SAFETY: The handle is open and not used after: every `Mapping` holds a reference to
        // `self`.
        unsafe { sys::xengnttab_close(self.handle.as_ptr()) };
    }
}

/// Where the memory of a [`Mapping`] comes from, and so how it is given back.
#[derive(Debug)]
enum Source {
    Grants { table: Arc<GrantTable>, count: u32 },
    Anonymous,
}

/// Memory shared with somebody who may change it at any time; unmapped when dropped.
///
/// # Invariants
///
/// `len` bytes at `start` are mapped readable and writable until `Drop`.
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
    /// Maps `len` bytes of zeroes that no other domain sees, for tests.
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
        Ok(Self {
            start,
            len,
            source: Source::Anonymous,
        })
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
        let start = self.start.as_ptr().cast();

        match &self.source {
            // SAFETY: `start` and `count` are those of the mapping, and nothing borrows it.
            Source::Grants { table, count } => unsafe {
                sys::xengnttab_unmap(table.handle.as_ptr(), start, *count);
            },
            // SAFETY: As above.
            Source::Anonymous => unsafe {
                libc::munmap(start, self.len);
            },
        }
    }
}
