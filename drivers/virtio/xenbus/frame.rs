// SPDX-License-Identifier: GPL-2.0

//! The machine address of a buffer, from what the kernel says of its pages.
//!
//! In a PV guest a page has a machine frame somewhere, which the p2m knows, and the next page has
//! another one somewhere else. In a translated guest the frames are the guest's own.

use super::{
    address::pages_spanned,
    wire::PAGE_SIZE, //
};

/// Bits of a machine address at most.
const ADDRESS_BITS: u32 = 52;

/// Set in a p2m entry: the page is another domain's, mapped here.
const FOREIGN: u64 = 1 << 63;
/// Set in a p2m entry: no memory, but a device's.
const IDENTITY: u64 = 1 << 62;

/// The frame that a p2m entry names, if it is one of this guest's own memory.
///
/// What is ballooned out has all bits set.
fn own_frame(entry: u64) -> Option<u64> {
    (entry & (FOREIGN | IDENTITY) == 0).then_some(entry)
}

/// The machine address of the `len` bytes at `offset` from the beginning of the first page, if
/// they are one behind the other in the machine too, in frames of this guest's own.
///
/// `entry` gives the p2m's entry of a page by its number, counted from the first.
pub(crate) fn machine_address(
    entry: impl Fn(usize) -> u64,
    offset: usize,
    len: usize,
) -> Option<u64> {
    let (first_page, inside) = (offset / PAGE_SIZE, offset % PAGE_SIZE);
    let pages = pages_spanned(inside, len)?;

    let first = own_frame(entry(first_page))?;
    for page in 1..pages {
        let frame = own_frame(entry(first_page.checked_add(page)?))?;
        if Some(frame) != first.checked_add(page as u64) {
            return None;
        }
    }

    let address = first.checked_mul(PAGE_SIZE as u64)? + inside as u64;
    let end = address.checked_add(len as u64)?;
    (end <= 1 << ADDRESS_BITS).then_some(address)
}

#[kernel::prelude::kunit_tests(virtio_xenbus_frame)]
mod tests {
    use super::*;

    /// The entry of a page that is ballooned out, as of one beyond the p2m in a lookup of it.
    const MISSING: u64 = u64::MAX;

    /// Frames as a p2m has them: two in a row, one elsewhere, and each kind that is none.
    const P2M: [u64; 8] = [
        100,
        101,
        7,
        MISSING,
        FOREIGN | 8,
        IDENTITY | 9,
        FOREIGN | IDENTITY | 10,
        11,
    ];

    fn in_p2m(offset: usize, len: usize) -> Option<u64> {
        machine_address(
            |page| P2M.get(page).copied().unwrap_or(IDENTITY | page as u64),
            offset,
            len,
        )
    }

    #[test]
    fn a_buffer_in_one_frame_has_its_address() {
        assert_eq!(in_p2m(0, 1), Some(100 << 12));
        assert_eq!(in_p2m(0, 4096), Some(100 << 12));
        assert_eq!(in_p2m(4095, 1), Some((100 << 12) + 4095));
        assert_eq!(in_p2m(4096 + 512, 512), Some((101 << 12) + 512));
        assert_eq!(in_p2m(2 * 4096 + 5, 4091), Some((7 << 12) + 5));
    }

    #[test]
    fn frames_in_a_row_are_one_range() {
        assert_eq!(in_p2m(0, 8192), Some(100 << 12));
        assert_eq!(in_p2m(4095, 2), Some((100 << 12) + 4095));
    }

    #[test]
    fn what_straddles_other_frames_has_none() {
        assert_eq!(in_p2m(8191, 2), None);
        assert_eq!(in_p2m(4096, 8192), None);
        assert_eq!(in_p2m(0, 3 * 4096), None);
        // The next frame is there, but before.
        let down = |page| 50 - page as u64;
        assert_eq!(machine_address(down, 0, 8192), None);
    }

    #[test]
    fn pages_that_are_not_the_guests_have_none() {
        for page in 3..7 {
            assert_eq!(in_p2m(page * 4096, 1), None);
            assert_eq!(in_p2m(page * 4096, 4096), None);
        }
        // Only the end of it.
        assert_eq!(in_p2m(2 * 4096 + 4000, 97), None);
        // A foreign frame that would be the next one.
        let entries = |page| if page == 0 { 7 } else { FOREIGN | 8 };
        assert_eq!(machine_address(entries, 0, 4097), None);
    }

    #[test]
    fn nothing_is_beyond_the_end_of_the_p2m() {
        assert_eq!(in_p2m(7 * 4096, 4096), Some(11 << 12));
        assert_eq!(in_p2m(7 * 4096, 4097), None);
        assert_eq!(in_p2m(8 * 4096, 1), None);
        assert_eq!(in_p2m(usize::MAX, 1), None);
        assert_eq!(in_p2m(usize::MAX, 2), None);
    }

    #[test]
    fn a_machine_address_has_52_bits() {
        let last = (1 << 40) - 1;
        let at = |frame: u64| move |page| frame + page as u64;
        assert_eq!(machine_address(at(last), 0, 4096), Some(last << 12));
        assert_eq!(machine_address(at(last), 0, 4097), None);
        for frame in [1 << 40, 1 << 50, 1 << 52, (1 << 62) - 2] {
            assert_eq!(machine_address(at(frame), 0, 1), None);
        }
    }

    #[test]
    fn in_a_translated_guest_all_is_one_range() {
        let own = |page| 0x1000 + page as u64;
        assert_eq!(
            machine_address(own, 700, 64 * 4096),
            Some((0x1000 << 12) + 700)
        );
    }

    #[test]
    fn nothing_is_nowhere_in_particular() {
        assert_eq!(in_p2m(4096, 0), Some(101 << 12));
        assert_eq!(in_p2m(3 * 4096, 0), None);
    }
}
