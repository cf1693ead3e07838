// SPDX-License-Identifier: GPL-2.0-or-later
//! Copies between memory that another domain has granted and memory of ours.

use std::io;
use std::marker::PhantomData;

use vm_memory::VolatileSlice;

use crate::{DomainId, GrantTable, PAGE_SIZE, last_error, sys};

/// Copies that are done with one system call; a multiple of what the kernel asks Xen for at once.
const BATCH: usize = 64;

/// Where in granted memory a copy begins: reference and offset, as one number. What does not end
/// in its page goes on in that of the next reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantAddress(pub u64);

/// Copies with granted memory of one domain, which are done in batches, and the last of them by
/// [`GrantCopies::finish`].
#[derive(Debug)]
#[must_use = "without finish() not all copies are done"]
pub struct GrantCopies<'a> {
    table: &'a GrantTable,
    domain: DomainId,
    segments: [sys::GrantCopySegment; BATCH],
    count: usize,
    local: PhantomData<VolatileSlice<'a>>,
}

/// Which way a copy goes.
#[derive(Clone, Copy)]
enum Way {
    ToUs,
    ToThem,
}

impl<'a> GrantCopies<'a> {
    pub(crate) fn new(table: &'a GrantTable, domain: DomainId) -> Self {
        Self {
            table,
            domain,
            segments: [sys::GrantCopySegment::NOTHING; BATCH],
            count: 0,
            local: PhantomData,
        }
    }

    /// Fills `to`, which is ordinary memory of this process, from `from` on.
    ///
    /// # Errors
    ///
    /// Xen refuses this copy or one before.
    pub fn read(&mut self, from: GrantAddress, to: VolatileSlice<'a>) -> io::Result<()> {
        self.copy(Way::ToUs, from, to)
    }

    /// Writes `from`, which is ordinary memory of this process, to `to` and following.
    ///
    /// # Errors
    ///
    /// Xen refuses this copy or one before.
    pub fn write(&mut self, to: GrantAddress, from: VolatileSlice<'a>) -> io::Result<()> {
        self.copy(Way::ToThem, to, from)
    }

    fn copy(&mut self, way: Way, remote: GrantAddress, local: VolatileSlice<'a>) -> io::Result<()> {
        let mut done = 0;

        while done < local.len() {
            let address = remote.0.checked_add(done as u64);
            let address = address.ok_or(io::ErrorKind::InvalidInput)?;
            let offset = (address % PAGE_SIZE as u64) as usize;
            let len = (local.len() - done).min(PAGE_SIZE - offset);
            let foreign = sys::Foreign {
                reference: u32::try_from(address / PAGE_SIZE as u64)
                    .map_err(|_| io::ErrorKind::InvalidInput)?,
                // CAST: Less than a page.
                offset: offset as u16,
                domain: self.domain,
            };
            let part = local.subslice(done, len).map_err(io::Error::other)?;
            self.push(way, foreign, part)?;
            done += len;
        }
        Ok(())
    }

    /// Adds a copy inside one page.
    fn push(
        &mut self,
        way: Way,
        foreign: sys::Foreign,
        local: VolatileSlice<'a>,
    ) -> io::Result<()> {
        if self.count == BATCH {
            self.flush()?;
        }
        let local_pointer = sys::CopyPointer {
            virt: local.ptr_guard_mut().as_ptr().cast(),
        };
        let foreign = sys::CopyPointer { foreign };
        let (source, dest, flags) = match way {
            Way::ToUs => (foreign, local_pointer, sys::GNTCOPY_SOURCE_GREF),
            Way::ToThem => (local_pointer, foreign, sys::GNTCOPY_DEST_GREF),
        };
        if let Some(segment) = self.segments.get_mut(self.count) {
            *segment = sys::GrantCopySegment {
                source,
                dest,
                // CAST: At most a page.
                len: local.len() as u16,
                flags,
                status: 0,
            };
            self.count += 1;
        }
        Ok(())
    }

    /// Does the copies that are left.
    ///
    /// # Errors
    ///
    /// Xen refuses one of them; it is undefined which others have been done.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        let segments = self.segments.get_mut(..self.count).unwrap_or_default();
        self.count = 0;
        if segments.is_empty() {
            return Ok(());
        }
        // CAST: At most `BATCH`.
        let count = segments.len() as u32;
        // SAFETY: The handle is open. The kernel reads and writes `count` segments, and the
        // memory of `VolatileSlice<'a>`s, which `'a` keeps as they are.
        let result = unsafe {
            sys::xengnttab_grant_copy(self.table.handle.as_ptr(), count, segments.as_mut_ptr())
        };
        if result != 0 {
            return Err(last_error());
        }
        match segments.iter().find(|segment| segment.status != 0) {
            None => Ok(()),
            Some(segment) => Err(io::Error::other(format!(
                "Xen refuses to copy grant {}: status {}",
                segment.reference(),
                segment.status
            ))),
        }
    }
}
