// SPDX-License-Identifier: GPL-2.0-or-later
//! Buffers as descriptors name them.

use virtioif::bindings::{VIRTIO_XENBUS_ADDR_GRANT, VIRTIO_XENBUS_ADDR_POOL};
use vm_memory::{Address, GuestAddress, VolatileSlice};
use xen::{GrantAddress, PAGE_SIZE};

/// Bit 63. CAST: bindgen has the largest signed type for it.
const GRANT: u64 = VIRTIO_XENBUS_ADDR_GRANT as u64;

/// Bit 62.
const POOL: u64 = VIRTIO_XENBUS_ADDR_POOL;

/// Bits of a grant's reference and offset.
const GRANT_BITS: u32 = 44;

/// Bits of a frame's number and offset: those of a physical address.
const MACHINE_BITS: u32 = 52;

/// What an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A place in the pool.
    Pool,
    /// Grant reference and offset.
    Grant,
    /// Frame number and offset.
    Machine,
}

impl Kind {
    /// The kind of an address.
    pub fn of(address: GuestAddress) -> Self {
        if address.0 & GRANT != 0 {
            Self::Grant
        } else if address.0 & POOL != 0 {
            Self::Pool
        } else {
            Self::Machine
        }
    }
}

/// A buffer, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub address: GuestAddress,
    /// Bytes.
    pub len: usize,
}

impl Segment {
    /// The kind of its address.
    pub fn kind(&self) -> Kind {
        Kind::of(self.address)
    }

    /// Where it is, if it is granted.
    pub fn grant(&self) -> GrantAddress {
        GrantAddress(self.address.0 & !(GRANT | POOL))
    }

    /// Whether all of it has a grant reference that may exist.
    pub fn has_references(&self) -> bool {
        ends_by(self.grant().0, self.len, 1 << GRANT_BITS)
    }

    /// Whether it is named by frames.
    pub fn is_machine(&self) -> bool {
        self.kind() == Kind::Machine
    }

    /// Whether all of it has a frame number that may exist.
    pub fn has_frames(&self) -> bool {
        ends_by(self.address.0, self.len, 1 << MACHINE_BITS)
    }

    /// Its frames. There are some, and they can be.
    pub fn frames(&self) -> impl Iterator<Item = u64> + Clone + use<> {
        let page = PAGE_SIZE as u64;
        let end = self.address.0.saturating_add(self.len as u64);
        self.address.0 / page..end.div_ceil(page)
    }

    /// Where it begins in its first page.
    pub fn page_offset(&self) -> usize {
        // CAST: Less than a page.
        (self.address.0 % PAGE_SIZE as u64) as usize
    }
}

/// Whether `len` bytes at `start` end at `limit` or before.
fn ends_by(start: u64, len: usize, limit: u64) -> bool {
    let end = start.checked_add(len as u64);
    end.is_some_and(|end| end <= limit)
}

/// Bytes in `segments`.
///
/// Cannot overflow: a chain has at most 2^16 descriptors of less than 2^32 bytes.
pub fn total(segments: &[Segment]) -> usize {
    segments.iter().map(|segment| segment.len).sum()
}

/// What `segments` hold from byte `skip` on, `len` bytes of it.
pub fn parts(
    segments: &[Segment],
    skip: usize,
    len: usize,
) -> impl Iterator<Item = Segment> + Clone {
    let (mut skip, mut left) = (skip, len);

    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.len);
        let len = left.min(segment.len - skipped);
        skip -= skipped;
        left -= len;
        let address = segment.address.unchecked_add(skipped as u64);
        (len > 0).then_some(Segment { address, len })
    })
}

/// Each of `segments` with its part of `local`, which has them one after the other.
pub fn beside(
    segments: impl Iterator<Item = Segment> + Clone,
    local: VolatileSlice<'_>,
) -> impl Iterator<Item = (Segment, VolatileSlice<'_>)> + Clone {
    let mut at = 0;

    segments.map_while(move |segment| {
        let part = local.subslice(at, segment.len).ok()?;
        at += segment.len;
        Some((segment, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(address: u64, len: usize) -> Segment {
        Segment {
            address: GuestAddress(address),
            len,
        }
    }

    #[test]
    fn bits_tell_the_kind() {
        for (address, kind) in [
            (0, Kind::Machine),
            (u64::MAX >> 2, Kind::Machine),
            (1 << 62, Kind::Pool),
            (u64::MAX >> 1, Kind::Pool),
            (1 << 63, Kind::Grant),
            (u64::MAX, Kind::Grant),
        ] {
            assert_eq!(Kind::of(GuestAddress(address)), kind, "{address:#x}");
        }
    }

    #[test]
    fn references_end() {
        const LAST: u64 = (1 << 63) | (0xffff_ffff << 12);
        assert_eq!(
            segment(LAST | 5, 1).grant(),
            GrantAddress((0xffff_ffff << 12) | 5)
        );
        for (address, len, good) in [
            (LAST, 4096, true),
            (LAST, 4097, false),
            (LAST + 4095, 1, true),
            (LAST + 4096, 1, false),
            (LAST - 4096, 8192, true),
            (1 << 63, u32::MAX as usize, true),
            (u64::MAX, 1, false),
            (u64::MAX, usize::MAX, false),
        ] {
            let segment = segment(address, len);
            assert_eq!(segment.has_references(), good, "{segment:x?}");
        }
    }

    #[test]
    fn frames_end() {
        const END: u64 = 1 << 52;
        for (address, len, good) in [
            (END - 1, 1, true),
            (END - 1, 2, false),
            (END, 1, false),
            (0, 1, true),
            (0, u32::MAX as usize, true),
            (END - 4096, usize::MAX, false),
        ] {
            let segment = segment(address, len);
            assert_eq!(segment.has_frames(), good, "{segment:x?}");
        }
        let frames = |address, len| segment(address, len).frames().collect::<Vec<_>>();
        assert_eq!(frames(0x5fff, 1), [5]);
        assert_eq!(frames(0x5fff, 2), [5, 6]);
        assert_eq!(frames(0x5000, 0x2000), [5, 6]);
        assert_eq!(frames(0x5001, 0x2000), [5, 6, 7]);
    }

    #[test]
    fn parts_of_segments() {
        let segments = [segment(100, 10), segment(200, 20), segment(300, 30)];
        let list = |skip, len| parts(&segments, skip, len).collect::<Vec<_>>();
        assert_eq!(list(0, 60), segments);
        assert_eq!(list(10, 20), [segment(200, 20)]);
        assert_eq!(list(9, 2), [segment(109, 1), segment(200, 1)]);
        assert_eq!(list(59, 9), [segment(329, 1)]);
        assert_eq!(list(60, 9), []);
        assert_eq!(list(3, 0), []);
    }
}
