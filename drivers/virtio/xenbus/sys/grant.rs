// SPDX-License-Identifier: GPL-2.0

//! Memory that another domain may access.
//!
//! C header: [`include/xen/grant_table.h`](srctree/include/xen/grant_table.h)

use super::{
    bindings,
    compat::smp_rmb, //
};
use core::ptr::NonNull;
use kernel::{
    page::{
        self,
        Page, //
    },
    prelude::*,
    sync::atomic::{
        ordering,
        Atomic, //
    },
    transmute::{
        AsBytes,
        FromBytes, //
    },
};
use pin_init::Zeroable;

/// The size of the pages that grants are about, in bytes.
pub(crate) const PAGE_SIZE: usize = 4096;

/// A reference to one granted page, as the other domain is told it.
#[repr(transparent)]
struct Grant(bindings::grant_ref_t);

impl Grant {
    /// Lets `domain` read and write `page`. Callable in any context.
    ///
    /// # Safety
    ///
    /// The memory of `page` must only be accessed in ways that bear changes by others, and must
    /// not be used for anything else while the grant exists.
    unsafe fn new(domain: u16, page: &Page) -> Result<Self> {
        // SAFETY: `page` is a valid page.
        let frame = unsafe { bindings::vxb_page_to_gfn(page.as_ptr()) };

        // SAFETY: The caller answers for the page.
        let gref = unsafe { bindings::gnttab_grant_foreign_access(domain, frame, 0) };

        u32::try_from(gref)
            .map(Self)
            .map_err(|_| Error::from_errno(gref))
    }

    /// Lets `domain` read and write `page`, under the same reference, after the grant table has
    /// been lost with the machine that it was of. Callable in any context.
    ///
    /// # Errors
    ///
    /// `EBUSY` if the grant is in use: nothing has been lost then.
    ///
    /// # Safety
    ///
    /// As for [`new`](Self::new).
    unsafe fn renew(&self, domain: u16, page: &Page) -> Result {
        // SAFETY: The reference is ours. If it grants something this ends it, as the caller may.
        if unsafe { bindings::gnttab_end_foreign_access_ref(self.0) } == 0 {
            return Err(EBUSY);
        }

        // SAFETY: `page` is a valid page; the reference is ours and grants nothing; the caller
        // answers for the page, whose frame may be another one than it was.
        unsafe {
            let frame = bindings::vxb_page_to_gfn(page.as_ptr());
            bindings::gnttab_grant_foreign_access_ref(self.0, domain, frame, 0);
        }
        Ok(())
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        // If the other domain still has the page mapped, the grant and a reference to the page
        // stay with the grant table until it is not (XSA-396).
        //
        // SAFETY: The grant is ours, and is ended once.
        unsafe { bindings::gnttab_end_foreign_access(self.0, core::ptr::null_mut()) };
    }
}

/// A range of whole pages, contiguous here, that another domain may read and write.
///
/// Its content may change at any time. It is therefore only accessed by copying, in single words
/// or as a whole, never by reference.
///
/// # Invariants
///
/// `base` is a mapping of all pages one behind the other, and lives as long as `self`.
pub(crate) struct SharedPages {
    base: NonNull<u8>,
    /// The grant of the one page has been ended.
    ended: Atomic<bool>,
    /// Dropped first, before the pages that they are about.
    grants: KVVec<Grant>,
    pages: KVVec<Page>,
}

// SAFETY: `SharedPages` owns its pages and grants, which belong to no thread.
unsafe impl Send for SharedPages {}

// SAFETY: Shared access is by copying only, and the content has to be distrusted anyway.
unsafe impl Sync for SharedPages {}

impl SharedPages {
    /// Allocates `count` zeroed pages and grants them to `domain`. Sleeps.
    pub(crate) fn new(domain: u16, count: usize) -> Result<Self> {
        let mut pages = KVVec::with_capacity(count, GFP_KERNEL)?;
        let mut raw = KVVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            // A pool that cannot be had is no reason to call the OOM killer.
            let page = Page::alloc_page(GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN)?;
            raw.push(page.as_ptr(), GFP_KERNEL)?;
            pages.push(page, GFP_KERNEL)?;
        }

        let grants = KVVec::with_capacity(count, GFP_KERNEL)?;

        // SAFETY: `raw` holds `count` valid pages, which outlive the mapping.
        let base = unsafe { bindings::vxb_vmap(raw.as_mut_ptr(), u32::try_from(count)?) };

        // INVARIANT: The mapping exists until `drop()`.
        let mut this = Self {
            base: NonNull::new(base.cast()).ok_or(ENOMEM)?,
            ended: Atomic::new(false),
            grants,
            pages,
        };

        for page in &this.pages {
            // SAFETY: `SharedPages` only copies from and to its pages, and keeps them as long as
            // their grants.
            let grant = unsafe { Grant::new(domain, page) }?;
            this.grants.push(grant, GFP_KERNEL)?;
        }
        Ok(this)
    }

    /// Grants all pages anew, to `domain` and under the references that they have, after the system
    /// has been restored. Callable in any context.
    ///
    /// # Errors
    ///
    /// `EBUSY` if another domain still uses one of them.
    pub(crate) fn grant_anew(&self, domain: u16) -> Result {
        for (grant, page) in self.grants.iter().zip(&self.pages) {
            // SAFETY: As in `new()`.
            unsafe { grant.renew(domain, page) }?;
        }
        Ok(())
    }

    /// Ends the grant of a single page for good if the other domain has not mapped it; returns
    /// whether that has been done. Not to be called twice at a time.
    pub(crate) fn end(&self) -> bool {
        if self.ended.load(ordering::Relaxed) {
            return true;
        }
        let [grant] = &*self.grants else {
            return false;
        };
        // SAFETY: The grant is ours, and if this ends it nobody else does: see `drop()`.
        let ended = unsafe { bindings::gnttab_try_end_foreign_access(grant.0) } != 0;
        self.ended.store(ended, ordering::Relaxed);
        ended
    }

    /// The size in bytes.
    pub(crate) fn size(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }

    /// The grant references of the pages, in their order.
    pub(crate) fn references(&self) -> impl Iterator<Item = u32> + '_ {
        self.grants.iter().map(|grant| grant.0)
    }

    /// The address of `len` bytes at `offset`, if the range has them.
    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        if offset.checked_add(len)? > self.size() {
            return None;
        }
        // SAFETY: By the check and the type invariant this is inside of the mapping.
        Some(unsafe { self.base.as_ptr().add(offset) })
    }

    /// The mapped memory at `offset`, for C code that shares it with the other domain.
    ///
    /// The pointer may be used as long as `self` lives.
    pub(super) fn as_ptr(&self, offset: usize, len: usize) -> Option<*mut c_void> {
        self.at(offset, len).map(<*mut u8>::cast)
    }

    /// Fills `len` bytes at `offset`, if the range has them.
    pub(crate) fn fill(&self, offset: usize, value: u8, len: usize) {
        if let Some(to) = self.at(offset, len) {
            // SAFETY: The range is inside of the mapping.
            unsafe { to.write_bytes(value, len) };
        }
    }

    /// Copies `from` to `offset`; returns whether there was room.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> bool {
        // SAFETY: A slice is valid for reads.
        unsafe { self.copy_in(offset, from.as_ptr(), from.len()) }
    }

    /// Copies from `offset` to `to`; returns whether the range had it all.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) -> bool {
        // SAFETY: A mutable slice is valid for writes.
        unsafe { self.copy_out(offset, to.as_mut_ptr(), to.len()) }
    }

    /// A copy of the plain data at `offset`, if the range has it all.
    pub(crate) fn read_plain<T: FromBytes + Zeroable>(&self, offset: usize) -> Option<T> {
        let mut copy = T::zeroed();

        // SAFETY: `copy` has the size of a `T`, and any bytes make one.
        unsafe { self.copy_out(offset, (&raw mut copy).cast(), size_of::<T>()) }.then_some(copy)
    }

    /// Copies plain data to `offset`; returns whether there was room.
    pub(crate) fn write_plain<T: AsBytes>(&self, offset: usize, data: &T) -> bool {
        // SAFETY: A reference is valid for reads, and all bytes of a `T` are initialised.
        unsafe { self.copy_in(offset, core::ptr::from_ref(data).cast(), size_of::<T>()) }
    }

    /// Copies `len` bytes from `from` to `offset`; returns whether there was room.
    ///
    /// # Safety
    ///
    /// `from` must be valid for reads of `len` bytes.
    pub(super) unsafe fn copy_in(&self, offset: usize, from: *const u8, len: usize) -> bool {
        let Some(to) = self.at(offset, len) else {
            return false;
        };
        // SAFETY: By the requirement of this function and the check; nobody else has memory that
        // overlaps ours.
        unsafe { copy(from, to, len) };
        true
    }

    /// Copies `len` bytes from `offset` to `to`; returns whether the range had it all.
    ///
    /// # Safety
    ///
    /// `to` must be valid for writes of `len` bytes.
    pub(super) unsafe fn copy_out(&self, offset: usize, to: *mut u8, len: usize) -> bool {
        let Some(from) = self.at(offset, len) else {
            return false;
        };
        // SAFETY: By the requirement of this function and the check; nobody else has memory that
        // overlaps ours.
        unsafe { copy(from, to, len) };

        // The compiler must not read the other domain's memory again for what is checked in the
        // copy (XSA-155).
        smp_rmb();
        true
    }

    /// The little-endian 32-bit word at `offset`, to be read or written at once.
    ///
    /// Returns `None` if it is not inside of the range or not aligned.
    pub(crate) fn word(&self, offset: usize) -> Option<&Atomic<u32>> {
        let word = self.at(offset, size_of::<u32>())?.cast::<u32>();

        // SAFETY: The word is inside of the mapping, which lives as long as the reference. What
        // the other domain does to it is atomic to this one.
        word.is_aligned().then(|| unsafe { Atomic::from_ptr(word) })
    }

    /// Reads the word at `offset` once; what was written before it by the other domain, and what
    /// it was released after, is seen by what follows. 0 if there is no such word.
    pub(crate) fn load_acquire(&self, offset: usize) -> u32 {
        self.word(offset)
            .map_or(0, |word| u32::from_le(word.load(ordering::Acquire)))
    }

    /// Writes the word at `offset` once, after all that was written before.
    pub(crate) fn store_release(&self, offset: usize, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value.to_le(), ordering::Release);
        }
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        if self.ended.load(ordering::Relaxed) {
            self.grants.drain_all().for_each(core::mem::forget);
        }
        // SAFETY: By the type invariant `base` is a mapping made by `vmap()`, and nothing refers
        // to it any more.
        unsafe { bindings::vunmap(self.base.as_ptr().cast()) };
    }
}

/// Copies `len` bytes, whole pages in the way that the machine has for them.
///
/// # Safety
///
/// `from` must be valid for reads and `to` for writes of `len` bytes, and they must not overlap.
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    if (from.addr() | to.addr() | len) % page::PAGE_SIZE != 0 {
        // SAFETY: By the requirement of this function.
        return unsafe { to.copy_from_nonoverlapping(from, len) };
    }
    for at in (0..len).step_by(page::PAGE_SIZE) {
        // SAFETY: As above; both are whole pages.
        unsafe { bindings::vxb_copy_page(to.add(at).cast(), from.add(at).cast()) };
    }
}
