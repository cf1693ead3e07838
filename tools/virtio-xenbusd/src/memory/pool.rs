// SPDX-License-Identifier: GPL-2.0-or-later
//! The pool: where rings are, and buffers in every mode.

use std::sync::Arc;

use virtioif::bindings::VIRTIO_XENBUS_ADDR_POOL;
use vm_memory::bitmap::BS;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestUsize, MemoryRegionAddress, VolatileMemory, VolatileSlice,
};
use xen::Mapping;

use super::Segment;

/// The address of the pool's first byte.
pub const POOL_START: GuestAddress = GuestAddress(VIRTIO_XENBUS_ADDR_POOL);

/// A device's pool.
///
/// An address that is not inside the pool is an error of every access.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Region>);

/// The one region of a [`Pool`].
#[derive(Debug)]
pub struct Region(Mapping);

impl Pool {
    /// Takes mapped memory as a pool.
    pub fn new(mapping: Mapping) -> Self {
        Self(Arc::new(Region(mapping)))
    }

    /// The memory of a buffer, if all of it is inside.
    pub fn slice(&self, segment: Segment) -> Option<VolatileSlice<'_>> {
        let offset = segment.address.0.checked_sub(POOL_START.0)?;
        let offset = usize::try_from(offset).ok()?;
        self.0.0.get_slice(offset, segment.len).ok()
    }
}

impl GuestMemoryBackend for Pool {
    type R = Region;

    fn num_regions(&self) -> usize {
        1
    }

    fn find_region(&self, addr: GuestAddress) -> Option<&Region> {
        self.0.to_region_addr(addr).map(|_| self.0.as_ref())
    }

    fn iter(&self) -> impl Iterator<Item = &Region> {
        std::iter::once(self.0.as_ref())
    }
}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.0.len() as GuestUsize
    }

    fn start_addr(&self) -> GuestAddress {
        POOL_START
    }

    fn bitmap(&self) -> BS<'_, ()> {}

    fn get_host_address(&self, offset: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        Ok(self.get_slice(offset, 1)?.ptr_guard_mut().as_ptr())
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        let offset =
            usize::try_from(offset.0).map_err(|_| GuestMemoryError::GuestAddressOverflow)?;
        Ok(self.0.get_slice(offset, count)?)
    }
}

impl GuestMemoryRegionBytes for Region {}
