// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory for scatter and gather I/O that somebody else may change at any time.

use std::marker::PhantomData;

use vm_memory::VolatileSlice;

/// A piece of memory in the form that readv(2) and writev(2) take.
///
/// # Invariants
///
/// It is a `VolatileSlice<'a>`, so that the memory can be read and written throughout `'a`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct IoVec<'a>(libc::iovec, PhantomData<VolatileSlice<'a>>);

impl<'a> IoVec<'a> {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory, to be accessed by this process.
    pub fn slice(&self) -> VolatileSlice<'a> {
        // SAFETY: By the type invariant this is the slice that `self` was made from.
        unsafe { VolatileSlice::new(self.0.iov_base.cast(), self.0.iov_len) }
    }
}

impl<'a> From<VolatileSlice<'a>> for IoVec<'a> {
    fn from(slice: VolatileSlice<'a>) -> Self {
        let iovec = libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        };
        IoVec(iovec, PhantomData)
    }
}

/// Writes `from` at byte `offset` of `parts`, taken as one piece; how many bytes fitted.
pub fn copy_in(parts: &[IoVec<'_>], mut offset: usize, from: VolatileSlice<'_>) -> usize {
    let mut done = 0;

    for part in parts {
        // Each fails when there is nothing to write, or nothing to write it to.
        let (Ok(rest), Ok(to)) = (from.offset(done), part.slice().offset(offset)) else {
            offset = offset.saturating_sub(part.len());
            continue;
        };
        rest.copy_to_volatile_slice(to);
        done += rest.len().min(to.len());
        offset = 0;
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_across_parts() {
        let mut memory = [0u8; 8];
        let (a, b) = memory.split_at_mut(3);
        let parts = [a, b].map(|part| IoVec::from(VolatileSlice::from(part)));
        let put = |parts: &[IoVec<'_>], offset, bytes: &mut [u8]| {
            copy_in(parts, offset, VolatileSlice::from(bytes))
        };

        assert_eq!(put(&parts, 2, &mut [1, 2, 3]), 3);
        assert_eq!(put(&parts, 3, &mut [9]), 1);
        assert_eq!(put(&parts, 6, &mut [7, 8, 9]), 2);
        assert_eq!(put(&parts, 8, &mut [5]), 0);
        assert_eq!(put(&parts, 90, &mut [5]), 0);
        assert_eq!(put(&[], 0, &mut [5]), 0);
        assert_eq!(memory, [0, 0, 1, 9, 3, 0, 7, 8]);
    }
}
