// SPDX-License-Identifier: GPL-2.0

//! How the pool is divided among the virtqueues.

use core::cmp::max;

use super::{
    super::wire::MAX_QUEUES,
    MAX_BUFFER,
    PAGE, //
};

/// Pages for buffers that each queue has at least, beside its ring: as many as the largest buffer
/// takes, which could otherwise never be mapped.
const MIN_BUFFERS: usize = MAX_BUFFER / PAGE;

/// Some pages of the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    /// The first page, counted from the beginning of the pool.
    pub(crate) first_page: usize,
    /// How many they are; 0 for a queue that does not exist.
    pub(crate) pages: usize,
}

/// A division of the pool: all of it, and no page twice.
pub(crate) struct Plan {
    queues: [Span; MAX_QUEUES],
    num_queues: usize,
    shared: Span,
}

impl Plan {
    /// What belongs to each queue, by queue index.
    pub(crate) fn queues(&self) -> &[Span] {
        self.queues.get(..self.num_queues).unwrap_or(&[])
    }

    /// What all queues use when their own pages are taken.
    pub(crate) fn shared(&self) -> Span {
        self.shared
    }
}

/// The pages that a queue of `size` descriptors needs: its ring, in the larger of the two layouts
/// with page-aligned parts, and `MIN_BUFFERS`, all beside the eighth that becomes chunks.
fn least(size: u16) -> usize {
    if size == 0 {
        return 0;
    }
    let size = usize::from(size);
    let driver_part = 16 * size + 2 * size + 6;
    let device_part = 8 * size + 6;
    let pages = driver_part.div_ceil(PAGE) + device_part.div_ceil(PAGE) + MIN_BUFFERS;
    (pages * 8).div_ceil(7)
}

/// The part of a pool that the queues have for themselves, if they can do with it.
fn own(pool_pages: usize) -> usize {
    pool_pages / 4 * 3
}

/// Halves the largest of `sizes` until each queue's own part of a pool of `pool_pages` pages has a
/// page for each descriptor, as far as that can be had.
///
/// A receive queue takes a buffer for each descriptor and keeps it. If the pool is too small for
/// that the driver tries again and again.
pub(crate) fn fit(pool_pages: usize, sizes: &mut [u16]) {
    const LEAST_SIZE: u16 = 16;

    let wanted = |&size: &u16| least(size) + (usize::from(size) * 8).div_ceil(7);

    while sizes.iter().map(wanted).sum::<usize>() > own(pool_pages) {
        match sizes.iter_mut().max() {
            Some(size) if *size > LEAST_SIZE => *size /= 2,
            _ => return,
        }
    }
}

/// Divides a pool of `pool_pages` pages among queues of `sizes` descriptors, 0 for a queue that
/// does not exist.
///
/// Each queue gets what it needs at least. What is left of three quarters of the pool goes to the
/// queues in proportion to their sizes, and the rest is shared. [`None`] if there is too little for
/// that, or if there are more than [`MAX_QUEUES`] queues.
pub(crate) fn plan(pool_pages: usize, sizes: &[u16]) -> Option<Plan> {
    let needed: usize = sizes.iter().map(|&size| least(size)).sum();
    let total: usize = sizes.iter().map(|&size| usize::from(size)).sum();
    let spare = own(pool_pages).saturating_sub(needed);

    let mut plan = Plan {
        queues: [Span::default(); MAX_QUEUES],
        num_queues: sizes.len(),
        shared: Span::default(),
    };
    let mut first_page = 0;
    for (i, &size) in sizes.iter().enumerate() {
        let share = spare.checked_mul(usize::from(size))? / max(total, 1);
        let span = Span {
            first_page,
            pages: least(size) + share,
        };
        first_page += span.pages;
        *plan.queues.get_mut(i)? = span;
    }
    plan.shared = Span {
        first_page,
        pages: pool_pages.checked_sub(first_page)?,
    };
    Some(plan)
}

#[kernel::prelude::kunit_tests(virtio_xenbus_plan)]
mod tests {
    use super::{
        super::Partition,
        *, //
    };
    use kernel::prelude::*;

    /// Whether `plan` covers exactly the pages up to `pool_pages`, each once, in order.
    fn is_exact(plan: &Plan, pool_pages: usize) -> bool {
        let mut next = 0;
        for span in plan.queues() {
            if span.first_page != next {
                return false;
            }
            next += span.pages;
        }
        plan.shared().first_page == next && next + plan.shared().pages == pool_pages
    }

    #[test]
    fn a_disk_shares_a_quarter_of_the_pool() -> Result {
        let plan = plan(2048, &[256]).ok_or(EINVAL)?;
        assert!(is_exact(&plan, 2048));
        assert_eq!(
            plan.queues(),
            [Span {
                first_page: 0,
                pages: 1536
            }]
        );
        assert_eq!(
            plan.shared(),
            Span {
                first_page: 1536,
                pages: 512
            }
        );
        Ok(())
    }

    #[test]
    fn a_card_is_divided_by_size() -> Result {
        let plan = plan(4096, &[1024, 1024, 64]).ok_or(EINVAL)?;
        assert!(is_exact(&plan, 4096));
        let pages = |i: usize| plan.queues().get(i).map_or(0, |span| span.pages);
        assert_eq!(pages(0), pages(1));
        assert!(pages(0) > 10 * pages(2));
        assert!(pages(2) >= least(64));
        assert!((3070..=3072).contains(&plan.shared().first_page));
        Ok(())
    }

    #[test]
    fn a_queue_that_does_not_exist_has_nothing() -> Result {
        let plan = plan(1024, &[0, 128, 0]).ok_or(EINVAL)?;
        assert!(is_exact(&plan, 1024));
        let [first, second, third] = plan.queues() else {
            return Err(EINVAL);
        };
        assert_eq!((first.pages, second.pages, third.pages), (0, 768, 0));
        Ok(())
    }

    #[test]
    fn no_queues_leave_everything_shared() -> Result {
        for sizes in [&[][..], &[0, 0]] {
            let plan = plan(64, sizes).ok_or(EINVAL)?;
            assert!(is_exact(&plan, 64));
            assert_eq!(plan.shared().pages, 64);
        }
        Ok(())
    }

    #[test]
    fn too_small_a_pool_is_refused() -> Result {
        for size in [1, 2, 128, 256, 1024, 32768] {
            let exact = least(size);
            assert!(plan(exact - 1, &[size]).is_none());
            let plan = plan(exact, &[size]).ok_or(EINVAL)?;
            assert!(is_exact(&plan, exact));
            assert_eq!(plan.shared().pages, 0);
        }
        assert!(plan(0, &[1]).is_none());
        assert!(plan(32768, &[32768; MAX_QUEUES]).is_some());
        assert!(plan(8192, &[32768; MAX_QUEUES]).is_none());
        Ok(())
    }

    #[test]
    fn too_many_queues_are_refused() {
        assert!(plan(32768, &[1; MAX_QUEUES]).is_some());
        assert!(plan(32768, &[1; MAX_QUEUES + 1]).is_none());
    }

    #[test]
    fn a_pool_that_cannot_be_does_not_overflow() {
        assert!(plan(usize::MAX, &[32768; 2]).is_none());
    }

    #[test]
    fn the_least_holds_ring_and_buffers() -> Result {
        for shift in 0..16 {
            let size = 1u16 << shift;
            let mut part = Partition::new(0, least(size))?;
            let n = usize::from(size);
            // As vring_size() has it for a split ring aligned to pages.
            let ring = (18 * n + 6).next_multiple_of(PAGE) + (8 * n + 6);
            assert!(part.alloc(ring, 0).is_some());
            assert!(part.alloc(MAX_BUFFER, PAGE).is_some());
        }
        Ok(())
    }

    #[test]
    fn sizes_are_lowered_until_they_fit() {
        let mut sizes = [256, 256, 64];
        fit(4096, &mut sizes);
        assert_eq!(sizes, [256, 256, 64]);

        let mut sizes = [1024; 9];
        fit(4096, &mut sizes);
        assert!(sizes.iter().all(|size| size.is_power_of_two()));

        let plan = plan(4096, &sizes);
        assert!(plan.is_some_and(|plan| {
            plan.queues()
                .iter()
                .zip(sizes)
                .all(|(span, size)| span.pages >= least(size) + (usize::from(size) * 8).div_ceil(7))
        }));

        // No smaller than makes sense, even if it does not fit.
        let mut sizes = [32768; MAX_QUEUES];
        fit(64, &mut sizes);
        assert_eq!(sizes, [16; MAX_QUEUES]);
    }

    #[test]
    fn every_plan_is_exact() {
        for pool_pages in [64, 100, 1000, 4096, 32768] {
            for queues in 1..=MAX_QUEUES {
                for size in [1, 16, 128, 1024] {
                    let mut sizes = [size; MAX_QUEUES];
                    if let Some(last) = sizes.get_mut(queues - 1) {
                        *last = 4 * size;
                    }
                    let sizes = sizes.get(..queues).unwrap_or(&[]);
                    let needed: usize = sizes.iter().map(|&size| least(size)).sum();
                    match plan(pool_pages, sizes) {
                        Some(plan) => {
                            assert!(is_exact(&plan, pool_pages));
                            assert!(plan.shared().first_page <= max(own(pool_pages), needed));
                        }
                        None => assert!(needed > pool_pages),
                    }
                }
            }
        }
    }
}
