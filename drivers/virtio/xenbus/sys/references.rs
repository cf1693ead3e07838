// SPDX-License-Identifier: GPL-2.0

//! Grants for a short time.
//!
//! C header: [`include/xen/grant_table.h`](srctree/include/xen/grant_table.h)

use super::{
    bindings,
    page::Pages, //
};
use crate::free_map::FreeMap;
use core::ops::Range;
use kernel::{
    error::to_result,
    prelude::*, //
};

/// Grant references one behind the other, set aside for pages that are granted as long as a
/// request lasts.
///
/// They are taken from the grant table once, because to find several in a row there is a search
/// of all of it under a lock of all devices.
///
/// # Invariants
///
/// - The references from `first` on, as many as `free` has units, belong to `self`, except those
///   that were handed over by [`end`](Self::end) or [`hand_over`](Self::hand_over).
/// - Those that are free in `free` grant nothing.
pub(crate) struct References {
    domain: u16,
    first: u32,
    count: usize,
    free: FreeMap,
}

impl References {
    /// Sets `count` references aside, at least 1, for pages to be granted to `domain`. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if the grant table has no room for so many.
    pub(crate) fn new(domain: u16, count: usize) -> Result<Self> {
        let free = FreeMap::new(count)?;
        let mut first = 0;

        // SAFETY: `first` is valid for writes.
        to_result(unsafe {
            bindings::gnttab_alloc_grant_reference_seq(u32::try_from(count)?, &mut first)
        })?;

        // INVARIANT: They were just given to us and grant nothing yet.
        Ok(Self {
            domain,
            first,
            count,
            free,
        })
    }

    /// Lets the other domain access whole `pages`; [`None`] if there are not enough references.
    /// Callable in any context.
    ///
    /// Returns the reference of the first page; those of the others follow it.
    ///
    /// # Safety
    ///
    /// The pages must be memory of this domain, and stay what they are until [`end`](Self::end).
    pub(super) unsafe fn grant(&mut self, pages: &Pages, readonly: bool) -> Option<u32> {
        let run = self.free.take_run(pages.count())?;
        let first = self.first.checked_add(u32::try_from(run).ok()?)?;

        for (gref, page) in (first..).zip(0..pages.count()) {
            // SAFETY: By the type invariant the reference is ours and grants nothing. The caller
            // answers for the page.
            unsafe {
                bindings::gnttab_grant_foreign_access_ref(
                    gref,
                    self.domain,
                    pages.gfn(page),
                    readonly.into(),
                )
            };
        }
        Some(first)
    }

    /// Ends what [`grant`](Self::grant) has returned `gref` for, `count` pages. Callable in any
    /// context.
    ///
    /// Returns whether the other domain had them all unmapped. If not, those pages, a reference to
    /// each, and their grants stay with the grant table until it has (XSA-396).
    pub(crate) fn end(&mut self, gref: u32, count: usize) -> bool {
        let Some(run) = self.run(gref, count) else {
            return false;
        };

        let mut ended = true;
        for (gref, unit) in (gref..).zip(run) {
            // SAFETY: By the check it is one of ours.
            if unsafe { bindings::gnttab_end_foreign_access_ref(gref) } != 0 {
                self.free.give(unit, 1);
            } else {
                // INVARIANT: Handed over, and never free again.
                // SAFETY: The grant is ours, and is not touched any more.
                unsafe { bindings::gnttab_end_foreign_access(gref, core::ptr::null_mut()) };
                ended = false;
            }
        }
        ended
    }

    /// Gives up what [`grant`](Self::grant) has returned `gref` for, `count` pages: all of it stays
    /// with the grant table until the other domain lets go. Callable in any context.
    pub(crate) fn hand_over(&mut self, gref: u32, count: usize) {
        for (gref, _) in (gref..).zip(self.run(gref, count).unwrap_or_default()) {
            // INVARIANT: Handed over, and never free again.
            // SAFETY: By the check it is one of ours, and is not touched any more.
            unsafe { bindings::gnttab_end_foreign_access(gref, core::ptr::null_mut()) };
        }
    }

    /// The units of `count` references from `gref` on, if all are ours.
    fn run(&self, gref: u32, count: usize) -> Option<Range<usize>> {
        let run = gref.checked_sub(self.first)? as usize;
        let end = run.checked_add(count)?;
        (end <= self.count).then_some(run..end)
    }
}

impl Drop for References {
    fn drop(&mut self) {
        while let Some(unit) = self.free.take_one() {
            // CAST: There are fewer units than references.
            let gref = self.first.wrapping_add(unit as u32);
            // SAFETY: By the type invariants it is ours and grants nothing.
            unsafe { bindings::gnttab_free_grant_reference(gref) };
        }
    }
}
