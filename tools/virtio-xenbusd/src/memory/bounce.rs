// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory for copies of buffers, as much as a queue may have and no more.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use vm_memory::volatile_memory::Result as VolatileResult;
use vm_memory::{VolatileMemory, VolatileSlice};
use xen::{Mapping, PAGE_SIZE};

use super::Lent;

/// The memory of one queue. It takes no space before it is used.
pub struct Bounce(Option<Rc<Pages>>);

struct Pages {
    mapping: Mapping,
    /// Of each page.
    taken: RefCell<Vec<bool>>,
}

/// Pages side by side; given back when dropped.
pub struct Run {
    pages: Rc<Pages>,
    range: Range<usize>,
}

impl Bounce {
    /// `len` bytes, rounded up to pages.
    pub fn new(len: usize) -> io::Result<Self> {
        let count = len.div_ceil(PAGE_SIZE);
        if count == 0 {
            return Ok(Self(None));
        }
        Ok(Self(Some(Rc::new(Pages {
            mapping: Mapping::anonymous(count * PAGE_SIZE)?,
            taken: RefCell::new(vec![false; count]),
        }))))
    }

    /// Takes `len` bytes.
    ///
    /// # Errors
    ///
    /// [`Lent::Later`] or [`Lent::Never`].
    pub fn take(&self, len: usize) -> Result<Run, Lent> {
        let pages = self.0.as_ref().ok_or(Lent::Never)?;
        let count = len.div_ceil(PAGE_SIZE);
        let mut taken = pages.taken.borrow_mut();
        if count > taken.len() {
            return Err(Lent::Never);
        }
        let range = first_fit(&taken, count).ok_or(Lent::Later)?;
        for page in taken.get_mut(range.clone()).unwrap_or_default() {
            *page = true;
        }
        Ok(Run {
            pages: Rc::clone(pages),
            range,
        })
    }
}

/// The first `count` pages side by side that are not taken.
fn first_fit(taken: &[bool], count: usize) -> Option<Range<usize>> {
    let mut start = 0;
    for (index, &taken) in taken.iter().enumerate() {
        if index - start == count {
            break;
        }
        if taken {
            start = index + 1;
        }
    }
    (start + count <= taken.len()).then_some(start..start + count)
}

impl Run {
    /// `len` bytes of it from `offset` on.
    pub fn slice(&self, offset: usize, len: usize) -> VolatileResult<VolatileSlice<'_>> {
        let start = self.range.start * PAGE_SIZE;
        let all = self.range.len() * PAGE_SIZE;
        self.pages
            .mapping
            .get_slice(start, all)?
            .subslice(offset, len)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut taken = self.pages.taken.borrow_mut();
        for page in taken.get_mut(self.range.clone()).unwrap_or_default() {
            *page = false;
        }
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pages {:?}", self.range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_do_not_overlap_and_come_back() {
        let bounce = Bounce::new(4 * PAGE_SIZE - 5).unwrap();
        let first = bounce.take(PAGE_SIZE).unwrap();
        let second = bounce.take(PAGE_SIZE + 1).unwrap();
        assert_eq!((&first.range, &second.range), (&(0..1), &(1..3)));
        assert_eq!(bounce.take(2 * PAGE_SIZE).unwrap_err(), Lent::Later);
        assert_eq!(bounce.take(4 * PAGE_SIZE + 1).unwrap_err(), Lent::Never);
        drop(first);
        // Two are free, but not side by side.
        assert_eq!(bounce.take(2 * PAGE_SIZE).unwrap_err(), Lent::Later);
        let third = bounce.take(PAGE_SIZE).unwrap();
        assert_eq!(third.range, 0..1);
        drop((second, third));
        assert_eq!(bounce.take(4 * PAGE_SIZE).unwrap().range, 0..4);
    }

    #[test]
    fn nothing_is_lent_without_memory() {
        let bounce = Bounce::new(0).unwrap();
        assert_eq!(bounce.take(1).unwrap_err(), Lent::Never);
    }

    #[test]
    fn run_has_its_own_memory() {
        let bounce = Bounce::new(2 * PAGE_SIZE).unwrap();
        let (one, two) = (bounce.take(1).unwrap(), bounce.take(1).unwrap());
        let end = one.slice(PAGE_SIZE - 1, 1).unwrap();
        let start = two.slice(0, 1).unwrap();
        assert_eq!(
            end.ptr_guard().as_ptr().addr() + 1,
            start.ptr_guard().as_ptr().addr()
        );
        assert!(one.slice(PAGE_SIZE, 1).is_err());
    }
}
