// SPDX-License-Identifier: GPL-2.0

//! How a split virtqueue says that buffers have been used.

/// Bytes before the entries of the available and of the used ring: flags and index.
const HEADER: usize = 4;

/// Bytes of an entry of the available ring: the head of a buffer.
const AVAIL_ENTRY: usize = 2;

/// Bytes of an entry of the used ring: the head again, and the bytes written.
const USED_ENTRY: usize = 8;

/// Where the rings of a split virtqueue are, as offsets in the memory of both sides.
#[derive(Clone, Copy)]
pub(crate) struct SplitRings {
    pub(crate) avail: usize,
    pub(crate) used: usize,
    /// The number of entries, a power of two.
    pub(crate) size: u16,
}

impl SplitRings {
    /// Where the heads of `count` buffers stand in the available ring, the first of them at index
    /// `from`, and for each where it is to be in the used ring, if the buffers are used in the same
    /// order.
    pub(crate) fn places(self, from: u16, count: u16) -> impl Iterator<Item = (usize, usize)> {
        (0..count).map(move |i| {
            // Indices run on modulo 65536; the size divides that.
            let slot = usize::from(from.wrapping_add(i) & self.size.wrapping_sub(1));
            (
                self.avail + HEADER + slot * AVAIL_ENTRY,
                self.used + HEADER + slot * USED_ENTRY,
            )
        })
    }

    /// The first word of the used ring, flags and index, with index `index` and no flag, and where
    /// it is.
    pub(crate) fn used_word(self, index: u16) -> (usize, u32) {
        (self.used, u32::from(index) << 16)
    }
}

/// An entry of the used ring: nothing has been written to the buffer with this head.
pub(crate) fn nothing_written(head: [u8; AVAIL_ENTRY]) -> [u8; USED_ENTRY] {
    let [low, high] = head;
    [low, high, 0, 0, 0, 0, 0, 0]
}

#[kernel::prelude::kunit_tests(virtio_xenbus_used)]
mod tests {
    use super::*;

    const RINGS: SplitRings = SplitRings {
        avail: 0x1040,
        used: 0x1080,
        size: 4,
    };

    fn all_are(from: u16, expected: &[(usize, usize)]) -> bool {
        RINGS
            .places(from, expected.len() as u16)
            .eq(expected.iter().copied())
    }

    #[test]
    fn no_buffer_has_no_place() {
        assert!(all_are(0, &[]));
        assert!(all_are(u16::MAX, &[]));
    }

    #[test]
    fn buffers_are_used_in_the_order_of_the_ring() {
        assert!(all_are(
            0,
            &[
                (0x1044, 0x1084),
                (0x1046, 0x108c),
                (0x1048, 0x1094),
                (0x104a, 0x109c),
            ]
        ));
    }

    #[test]
    fn the_ring_goes_round() {
        let round = [(0x104a, 0x109c), (0x1044, 0x1084)];
        assert!(all_are(3, &round));
        assert!(all_are(0x8003, &round));
    }

    #[test]
    fn the_index_goes_round() {
        let round = [(0x1048, 0x1094), (0x104a, 0x109c), (0x1044, 0x1084)];
        assert!(all_are(u16::MAX - 1, &round));
    }

    #[test]
    fn the_index_is_the_upper_half_of_the_word() {
        assert_eq!(RINGS.used_word(0), (0x1080, 0));
        assert_eq!(RINGS.used_word(0x1234), (0x1080, 0x1234_0000));
        assert_eq!(RINGS.used_word(u16::MAX), (0x1080, 0xffff_0000));
    }

    #[test]
    fn an_entry_has_the_head_and_no_bytes() {
        assert_eq!(
            nothing_written([0x34, 0x12]),
            [0x34, 0x12, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            nothing_written([0xff, 0xff]),
            [0xff, 0xff, 0, 0, 0, 0, 0, 0]
        );
    }
}
