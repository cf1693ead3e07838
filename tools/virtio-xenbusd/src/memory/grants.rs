// SPDX-License-Identifier: GPL-2.0-or-later
//! Buffers that the guest has granted.
//!
//! They are copied, never mapped. A mapping costs two hypercalls' worth of page table changes and
//! a flush of the TLB for each page; above all Linux does not say when it has ended. It puts
//! unmapping off while somebody in the kernel uses the page, as direct I/O does for a moment after
//! it is reported complete, and the guest would find its page still mapped.

use std::io;
use std::sync::Arc;

use vm_memory::VolatileSlice;
use xen::{DomainId, GrantAddress, GrantTable};

use super::Access;

/// Memory of one domain that it has granted.
pub trait Grants: Send + Sync {
    /// Reads or writes each of `pieces`: granted memory, and ours beside it.
    ///
    /// # Errors
    ///
    /// Something is not granted, or not for writing. Some may have been copied.
    fn copy<'a>(
        &'a self,
        access: Access,
        pieces: &mut dyn Iterator<Item = (GrantAddress, VolatileSlice<'a>)>,
    ) -> io::Result<()>;
}

/// What a domain has granted to ours.
pub struct DomainGrants {
    /// Whose.
    pub domain: DomainId,
    /// The way to it.
    pub table: Arc<GrantTable>,
}

impl Grants for DomainGrants {
    fn copy<'a>(
        &'a self,
        access: Access,
        pieces: &mut dyn Iterator<Item = (GrantAddress, VolatileSlice<'a>)>,
    ) -> io::Result<()> {
        let mut copies = self.table.copies(self.domain);
        for (remote, local) in pieces {
            match access {
                Access::Read => copies.read(remote, local)?,
                Access::Write => copies.write(remote, local)?,
            }
        }
        copies.finish()
    }
}
