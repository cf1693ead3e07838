// SPDX-License-Identifier: GPL-2.0

//! Pages that hold buffers of others.
//!
//! C headers: [`include/linux/mm.h`](srctree/include/linux/mm.h),
//! [`include/xen/page.h`](srctree/include/xen/page.h)

use super::{
    bindings,
    grant::PAGE_SIZE, //
};

/// Whether the frame numbers of this guest are its own, and Xen translates them; otherwise they
/// are the machine's.
pub(crate) fn is_translated() -> bool {
    // SAFETY: Reads what does not change.
    unsafe { bindings::vxb_is_translated() }
}

/// What the p2m has for the page that is `index` pages behind `page`; see
/// [`crate::frame::machine_address`]. Callable in any context.
///
/// # Safety
///
/// There must be a valid page there.
pub(super) unsafe fn p2m_entry(page: *mut bindings::page, index: usize) -> u64 {
    // SAFETY: By the requirement of this function.
    unsafe { bindings::vxb_page_entry(page, index) as u64 }
}

/// Has the `size` bytes at machine address `address` count as written to by this domain; they do
/// not change. Callable in any context.
///
/// While a guest is migrated Xen sees what it writes itself, and what is written through grants,
/// but not what another domain writes to a frame that it maps by its own right.
pub(super) fn mark_written(address: u64, size: usize) {
    // SAFETY: Frames that are not this domain's are left alone. Of others a word is written to as
    // it is, at once.
    unsafe { bindings::vxb_mark_written(address, size) };
}

/// Whether `kmalloc()` may have given out what is in the page that is `index` pages behind `page`.
///
/// # Safety
///
/// There must be a valid page there.
pub(super) unsafe fn is_kmalloc(page: *mut bindings::page, index: usize) -> bool {
    // SAFETY: By the requirement of this function.
    unsafe { bindings::vxb_page_is_kmalloc(page, index) }
}

/// The pages of a buffer that is contiguous in the direct map.
///
/// # Invariants
///
/// `first` is a valid page, and so are the `count` from it on.
pub(super) struct Pages {
    first: *mut bindings::page,
    count: usize,
}

impl Pages {
    /// The pages that a buffer fills from the first byte to the last: [`None`] if there are others
    /// or none at all.
    ///
    /// # Safety
    ///
    /// There must be `len` bytes at `offset` from the beginning of the valid page `page`,
    /// contiguous in the direct map.
    pub(super) unsafe fn filled(
        page: *mut bindings::page,
        offset: usize,
        len: usize,
    ) -> Option<Self> {
        if len == 0 || offset % PAGE_SIZE != 0 || len % PAGE_SIZE != 0 {
            return None;
        }
        // INVARIANT: By the requirement of this function.
        Some(Self {
            first: page.wrapping_add(offset / PAGE_SIZE),
            count: len / PAGE_SIZE,
        })
    }

    /// How many they are, at least 1.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Whether each is memory of this domain, and whoever has a reference to it can keep it from
    /// being used for something else.
    pub(super) fn can_be_kept(&self) -> bool {
        (0..self.count).all(|page| {
            let page = self.first.wrapping_add(page);
            // SAFETY: By the type invariant the page is valid.
            unsafe { bindings::vxb_page_can_be_kept(page) }
        })
    }

    /// The frame number that a grant of page number `page` carries.
    ///
    /// That of the last page, if there is no such page.
    pub(super) fn gfn(&self, page: usize) -> usize {
        let page = self.first.wrapping_add(page.min(self.count - 1));
        // SAFETY: By the type invariant the page is valid.
        unsafe { bindings::vxb_page_to_gfn(page) }
    }
}
