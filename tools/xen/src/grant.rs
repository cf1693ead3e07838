// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory that another domain has granted.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::mapping::Source;
use crate::{DomainId, GrantCopies, Mapping, PAGE_SIZE, last_error, sys};

/// A grant device.
#[derive(Debug)]
pub struct GrantTable {
    pub(crate) handle: NonNull<sys::GnttabHandle>,
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
        let table = Arc::clone(self);
        Ok(Mapping::new(start, len, Source::Grants { table, count }))
    }

    /// Copies with granted memory of `domain`.
    pub fn copies(&self, domain: DomainId) -> GrantCopies<'_> {
        GrantCopies::new(self, domain)
    }

    /// Unmaps what [`GrantTable::map`] has mapped.
    ///
    /// # Safety
    ///
    /// `start` and `count` are those of a mapping of this table, which nobody uses any more.
    pub(crate) unsafe fn unmap(&self, start: NonNull<u8>, count: u32) {
        // SAFETY: By the requirement above.
        unsafe { sys::xengnttab_unmap(self.handle.as_ptr(), start.as_ptr().cast(), count) };
    }
}

impl Drop for GrantTable {
    fn drop(&mut self) {
        // SAFETY: The handle is open and not used after: every `Mapping` holds a reference to
        // `self`.
        unsafe { sys::xengnttab_close(self.handle.as_ptr()) };
    }
}
