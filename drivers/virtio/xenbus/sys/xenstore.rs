// SPDX-License-Identifier: GPL-2.0

//! Access to xenstore.
//!
//! C header: [`include/xen/xenbus.h`](srctree/include/xen/xenbus.h)

use super::bindings;
use core::ptr::NonNull;
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*, //
};

/// What was read from xenstore.
///
/// # Invariants
///
/// `text` is a NUL-terminated string that was allocated with `kmalloc()` and belongs to `self`.
pub(crate) struct Value {
    text: NonNull<c_char>,
}

impl Value {
    /// The text up to its first NUL.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        // SAFETY: By the type invariant.
        unsafe { CStr::from_char_ptr(self.text.as_ptr()) }.to_bytes()
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the memory is from `kmalloc()` and ours.
        unsafe { bindings::kfree(self.text.as_ptr().cast()) };
    }
}

/// Reads the node `dir`/`node`. Sleeps.
///
/// Errors: [`ENOENT`] if there is no such node, [`EACCES`] if this domain may not read it.
pub(crate) fn read(dir: &CStr, node: &CStr) -> Result<Value> {
    let none = bindings::xenbus_transaction { id: 0 };

    // SAFETY: Both strings end with a NUL; the length is not asked for.
    let text = from_err_ptr(unsafe {
        bindings::xenbus_read(
            none,
            dir.as_char_ptr(),
            node.as_char_ptr(),
            core::ptr::null_mut(),
        )
    })?;

    // INVARIANT: `xenbus_read()` gives a string of its own, from `kmalloc()`, with a NUL at the
    // end.
    Ok(Value {
        text: NonNull::new(text.cast()).ok_or(ENOMEM)?,
    })
}

/// Several writes to xenstore that are seen at once, or not at all.
pub(crate) struct Transaction {
    id: u32,
}

impl Transaction {
    /// Does `body` in a transaction, again and again while others have interfered. Sleeps.
    pub(crate) fn run(body: impl Fn(&Self) -> Result) -> Result {
        /// Xenstored says EAGAIN at most as often as others write at the same time; a store that
        /// says so for ever must not hang the kernel.
        const TRIES: usize = 100;

        for _ in 0..TRIES {
            let mut raw = bindings::xenbus_transaction { id: 0 };

            // SAFETY: `raw` is valid for writes.
            to_result(unsafe { bindings::xenbus_transaction_start(&mut raw) })?;

            let this = Self { id: raw.id };
            let done = body(&this);

            // SAFETY: The transaction was started above and is ended once.
            let ended = to_result(unsafe { bindings::xenbus_transaction_end(raw, done.is_err()) });

            done?;
            match ended {
                Err(e) if e == EAGAIN => continue,
                ended => return ended,
            }
        }
        Err(EAGAIN)
    }

    /// Writes `text` to the node `dir`/`node`. Sleeps.
    pub(crate) fn write(&self, dir: &CStr, node: &CStr, text: &CStr) -> Result {
        // SAFETY: All strings end with a NUL.
        to_result(unsafe {
            bindings::xenbus_write(
                bindings::xenbus_transaction { id: self.id },
                dir.as_char_ptr(),
                node.as_char_ptr(),
                text.as_char_ptr(),
            )
        })
    }
}
