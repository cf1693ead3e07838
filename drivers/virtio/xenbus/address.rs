// SPDX-License-Identifier: GPL-2.0

//! What the addresses in descriptors and queue registers mean.
//!
//! To the virtio core and its drivers these are DMA addresses and nothing more; the two highest
//! bits tell the backend where to look for the bytes.

use super::wire::{
    ADDR_GRANT,
    ADDR_POOL,
    ADDR_SHIFT,
    PAGE_SIZE, //
};

/// Where the bytes are that an address names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// So many bytes into the pool.
    Pool(usize),
    /// In the page of a grant.
    Grant {
        /// The grant reference of the page.
        gref: u32,
        /// Bytes from the beginning of that page.
        offset: usize,
    },
    /// A machine address, or a guest physical one in a translated guest.
    Machine(u64),
}

/// The address of the pool's byte `offset`.
///
/// It is never `DMA_MAPPING_ERROR`, which has bit 63 set.
pub(crate) fn pool(offset: usize) -> u64 {
    ADDR_POOL | (offset as u64 & (ADDR_POOL - 1))
}

/// The address `offset` bytes from the beginning of the page that `gref` grants.
///
/// An `offset` past the end of that page is in the page of one of the next references, which are
/// consecutive. The address is never `DMA_MAPPING_ERROR`: its bits 62 to 44 are clear.
pub(crate) fn grant(gref: u32, offset: usize) -> u64 {
    const BITS: u64 = (1 << (u32::BITS + ADDR_SHIFT)) - 1;

    let first = u64::from(gref) << ADDR_SHIFT;
    ADDR_GRANT | (first.wrapping_add(offset as u64) & BITS)
}

/// The meaning of `addr`. Every value has one; whether it is live is for others to say.
pub(crate) fn decode(addr: u64) -> Address {
    if addr & ADDR_GRANT != 0 {
        Address::Grant {
            // CAST: keeps the 32 bits of the reference.
            gref: (addr >> ADDR_SHIFT) as u32,
            offset: addr as usize % PAGE_SIZE,
        }
    } else if addr & ADDR_POOL != 0 {
        Address::Pool((addr & (ADDR_POOL - 1)) as usize)
    } else {
        Address::Machine(addr)
    }
}

/// The number of pages that `len` bytes at `offset` touch, or [`None`] if they wrap around.
pub(crate) fn pages_spanned(offset: usize, len: usize) -> Option<usize> {
    let Some(last) = len.checked_sub(1) else {
        return Some(0);
    };
    let last = offset.checked_add(last)?;
    Some(last / PAGE_SIZE - offset / PAGE_SIZE + 1)
}

#[kernel::prelude::kunit_tests(virtio_xenbus_address)]
mod tests {
    use super::*;

    /// What `map_page` returns when it fails: not to be mistaken for an address.
    const MAPPING_ERROR: u64 = u64::MAX;

    const EDGES: [usize; 7] = [0, 1, 255, 4095, 4096, 0x7ff_ffff, (1 << 62) - 1];

    #[test]
    fn pool_offsets_come_back() {
        for offset in EDGES {
            assert_eq!(pool(offset), 1 << 62 | offset as u64);
            assert_eq!(decode(pool(offset)), Address::Pool(offset));
        }
    }

    #[test]
    fn no_offset_leaves_the_pool() {
        for offset in [1 << 62, 1 << 63, usize::MAX, usize::MAX - 4095] {
            assert!(pool(offset) != MAPPING_ERROR);
            assert!(matches!(decode(pool(offset)), Address::Pool(_)));
        }
    }

    #[test]
    fn grants_come_back() {
        for gref in [0, 1, 8, 32767, 0x8000_0000, u32::MAX] {
            for offset in [0, 1, 512, 4095] {
                assert!(grant(gref, offset) != MAPPING_ERROR);
                assert_eq!(decode(grant(gref, offset)), Address::Grant { gref, offset });
            }
        }
    }

    #[test]
    fn grant_layout_is_that_of_the_protocol() {
        assert_eq!(grant(0x1234_5678, 0x9ab), 0x8000_0123_4567_89ab);
    }

    #[test]
    fn a_long_buffer_continues_in_the_next_grant() {
        assert_eq!(
            decode(grant(7, 3 * 4096 + 5)),
            Address::Grant {
                gref: 10,
                offset: 5,
            }
        );
        // Past the last reference: another grant, but still one.
        assert_eq!(grant(u32::MAX, 4096), grant(0, 0));
        assert_eq!(grant(5, 1 << 62), grant(5, 0));
    }

    #[test]
    fn a_grant_has_bit_63_whatever_bit_62_says() {
        let both = 3 << 62 | 5 << 12 | 6;
        assert_eq!(decode(both), Address::Grant { gref: 5, offset: 6 });
        assert_eq!(
            decode(MAPPING_ERROR),
            Address::Grant {
                gref: u32::MAX,
                offset: 4095,
            }
        );
    }

    #[test]
    fn everything_below_bit_62_is_a_machine_address() {
        for addr in [0, 0x1000, (1 << 62) - 1] {
            assert_eq!(decode(addr), Address::Machine(addr));
        }
    }

    #[test]
    fn pages_are_counted_where_they_are_touched() {
        assert_eq!(pages_spanned(0, 0), Some(0));
        assert_eq!(pages_spanned(4095, 0), Some(0));
        assert_eq!(pages_spanned(0, 1), Some(1));
        assert_eq!(pages_spanned(0, 4096), Some(1));
        assert_eq!(pages_spanned(0, 4097), Some(2));
        assert_eq!(pages_spanned(4095, 1), Some(1));
        assert_eq!(pages_spanned(4095, 2), Some(2));
        assert_eq!(pages_spanned(512, 4096), Some(2));
        // In a compound page the offset may be larger than a page.
        assert_eq!(pages_spanned(3 * 4096 + 512, 4096), Some(2));
        assert_eq!(pages_spanned(8192, 8192), Some(2));
    }

    #[test]
    fn a_span_that_wraps_around_is_refused() {
        assert_eq!(pages_spanned(usize::MAX, 1), Some(1));
        assert_eq!(pages_spanned(usize::MAX, 2), None);
        assert_eq!(pages_spanned(1, usize::MAX), Some(1 << 52));
        assert_eq!(pages_spanned(2, usize::MAX), None);
        assert_eq!(pages_spanned(usize::MAX, usize::MAX), None);
    }
}
