// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory of another domain that it need not have granted.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use crate::mapping::Source;
use crate::{DomainId, Mapping, PAGE_SIZE, last_error, sys};

/// The way to other domains' memory.
#[derive(Debug)]
pub struct ForeignMemory {
    handle: NonNull<sys::ForeignMemoryHandle>,
}

// SAFETY: A libxenforeignmemory handle is a file descriptor; the kernel serializes what is done
// with it.
unsafe impl Send for ForeignMemory {}
// SAFETY: As above.
unsafe impl Sync for ForeignMemory {}

impl ForeignMemory {
    /// Opens the device of privileged operations.
    pub fn open() -> io::Result<Arc<Self>> {
        // SAFETY: The logger lives for ever.
        let handle = NonNull::new(unsafe { sys::xenforeignmemory_open(sys::silent(), 0) })
            .ok_or_else(last_error)?;
        Ok(Arc::new(Self { handle }))
    }

    /// Finds out whether this domain may map memory of `domain`.
    ///
    /// Asks for the size of `domain`'s grant table: Xen answers those who are privileged over it.
    ///
    /// # Errors
    ///
    /// It may not, or there is no such domain.
    pub fn check(domain: DomainId) -> io::Result<()> {
        let memory = Self::open()?;
        let mut size = 0;
        // SAFETY: The handle is open, and `size` can be written.
        let result = unsafe {
            sys::xenforeignmemory_resource_size(
                memory.handle.as_ptr(),
                domain,
                sys::XENMEM_RESOURCE_GRANT_TABLE,
                sys::XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED,
                &raw mut size,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(last_error()),
        }
    }

    /// Maps the frames `frames` of `domain` side by side, readable and, if so `writable`, writable.
    ///
    /// Who has an unwritable mapping must not write to its memory.
    ///
    /// # Errors
    ///
    /// Xen refuses one of them.
    pub fn map(
        self: &Arc<Self>,
        domain: DomainId,
        frames: &[u64],
        writable: bool,
    ) -> io::Result<Mapping> {
        let pages = frames.len();
        let len = pages
            .checked_mul(PAGE_SIZE)
            .filter(|&len| len > 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let write = if writable { libc::PROT_WRITE } else { 0 };

        // SAFETY: The handle is open, and `frames` has `pages` elements.
        let start = unsafe {
            sys::xenforeignmemory_map(
                self.handle.as_ptr(),
                u32::from(domain),
                libc::PROT_READ | write,
                pages,
                frames.as_ptr(),
                ptr::null_mut(),
            )
        };
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(last_error)?;
        let memory = Arc::clone(self);
        Ok(Mapping::new(start, len, Source::Frames { memory, pages }))
    }

    /// Unmaps what [`ForeignMemory::map`] has mapped.
    ///
    /// # Safety
    ///
    /// `start` and `pages` are those of a mapping of this handle, which nobody uses any more.
    pub(crate) unsafe fn unmap(&self, start: NonNull<u8>, pages: usize) {
        // SAFETY: By the requirement above.
        unsafe {
            sys::xenforeignmemory_unmap(self.handle.as_ptr(), start.as_ptr().cast(), pages);
        }
    }
}

impl Drop for ForeignMemory {
    fn drop(&mut self) {
        // SAFETY: The handle is open and not used after: every `Mapping` of it holds a reference
        // to `self`.
        unsafe { sys::xenforeignmemory_close(self.handle.as_ptr()) };
    }
}
