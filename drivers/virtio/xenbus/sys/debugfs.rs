// SPDX-License-Identifier: GPL-2.0

//! Files in debugfs that may be open when the module is unloaded.
//!
//! `kernel::debugfs` gives each file a `struct file_operations`, which is in the module's memory
//! and does not name the module as its owner. Closing the file reads that structure, also when the
//! module is gone (`full_proxy_release()`). The files here have a `struct debugfs_short_fops`:
//! nothing of the module is used once the file has been removed.
//!
//! C header: [`include/linux/debugfs.h`](srctree/include/linux/debugfs.h)

use super::bindings;
use core::ops::Deref;
use kernel::{
    debugfs::Writer,
    fmt::{
        self,
        Write, //
    },
    prelude::*,
    sync::Arc,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

#[cfg(not(CONFIG_DEBUG_FS))]
use absent::{
    debugfs_create_dir,
    debugfs_create_file_short,
    debugfs_remove, //
};
#[cfg(CONFIG_DEBUG_FS)]
use bindings::{
    debugfs_create_dir,
    debugfs_create_file_short,
    debugfs_remove, //
};

/// Anybody may read a file who gets there: only so can it be read when the kernel is locked down.
const MODE: bindings::umode_t = 0o444;

/// What debugfs has made, or an error, which its functions bear.
///
/// # Invariants
///
/// `dentry` is what `debugfs_create_dir()` or `debugfs_create_file_short()` has returned, and has
/// not been removed.
struct Entry {
    dentry: *mut bindings::dentry,
    /// Removing a directory removes all that is in it, so that comes last.
    _parent: Option<Dir>,
}

// SAFETY: Entries belong to no thread.
unsafe impl Send for Entry {}

// SAFETY: Shared access is only passing the pointer to debugfs, which does its own locking.
unsafe impl Sync for Entry {}

impl Drop for Entry {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { debugfs_remove(self.dentry) };
    }
}

/// A directory. It is removed when all its clones, files and directories have been dropped.
///
/// Nobody's work fails because there is something missing in debugfs: without memory or without
/// debugfs, the directory is not there and nothing is in it. That is the default, too.
#[derive(Clone, Default)]
pub(crate) struct Dir(Option<Arc<Entry>>);

impl Dir {
    /// Makes a directory in the root of debugfs. Sleeps.
    pub(crate) fn new(name: &CStr) -> Self {
        Self::create(name, core::ptr::null_mut(), None)
    }

    /// Makes a directory in this one. Sleeps.
    pub(crate) fn subdir(&self, name: &CStr) -> Self {
        match &self.0 {
            Some(entry) => Self::create(name, entry.dentry, Some(self.clone())),
            None => Self(None),
        }
    }

    fn create(name: &CStr, in_dir: *mut bindings::dentry, parent: Option<Dir>) -> Self {
        // SAFETY: The name ends with a NUL. The directory is NULL or exists as long as `parent`.
        let dentry = unsafe { debugfs_create_dir(name.as_char_ptr(), in_dir) };

        // INVARIANT: Just made.
        let entry = Entry {
            dentry,
            _parent: parent,
        };
        Self(Arc::new(entry, GFP_KERNEL).ok())
    }

    /// Makes a file that shows `data`. Sleeps.
    ///
    /// Each read has the text made anew, so a number should take the same space whatever it is.
    pub(crate) fn file<T>(&self, name: &CStr, data: Pin<KBox<T>>) -> File<T>
    where
        T: Writer + Send + Sync + 'static,
    {
        let entry = self.0.as_ref().map(|entry| {
            let data = core::ptr::from_ref(&*data).cast_mut().cast();

            // SAFETY: The name ends with a NUL, the directory exists as long as `self`, and the
            // operations suit the data.
            let dentry = unsafe {
                debugfs_create_file_short(
                    name.as_char_ptr(),
                    MODE,
                    entry.dentry,
                    data,
                    core::ptr::null(),
                    File::<T>::OPS,
                )
            };

            // INVARIANT: Just made.
            Entry {
                dentry,
                _parent: Some(self.clone()),
            }
        });

        // INVARIANT: The file has been made with a pointer to what is in the box.
        File {
            _entry: entry,
            data,
        }
    }
}

/// A file that shows a `T`, and owns it.
///
/// Dropping it removes the file and waits for those that are reading it before it drops the `T`;
/// who has the file open reads `EIO` from then on.
///
/// # Invariants
///
/// The file of `_entry` refers to `data`, which does not move.
pub(crate) struct File<T> {
    // Dropped first: debugfs_remove() waits for readers, and there are none after it.
    _entry: Option<Entry>,

    data: Pin<KBox<T>>,
}

impl<T> Deref for File<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T: Writer + Send + Sync + 'static> File<T> {
    const OPS: &'static bindings::debugfs_short_fops = &bindings::debugfs_short_fops {
        read: Some(read_callback::<T>),
        write: None,
        llseek: Some(bindings::default_llseek),
    };
}

/// # Safety
///
/// Called by debugfs for a file made by [`Dir::file::<T>`], with a buffer of the caller's.
unsafe extern "C" fn read_callback<T: Writer>(
    file: *mut bindings::file,
    to: *mut c_char,
    count: usize,
    position: *mut bindings::loff_t,
) -> isize {
    // SAFETY: `simple_open()` has put there what `Dir::file()` has given to debugfs. The data
    // lives until this function returns: it is called after `debugfs_file_get()` has found that
    // the file was not removed, and `debugfs_remove()`, which is called before the data is
    // dropped, waits for the `debugfs_file_put()` after it. The position is valid.
    let (data, position) = unsafe { (&*(*file).private_data.cast::<T>(), &mut *position) };

    let mut text = Text(KVVec::new());
    if text.write_fmt(fmt!("{}", Shown(data))).is_err() {
        return ENOMEM.to_errno() as isize;
    }

    let mut user = UserSlice::new(UserPtr::from_ptr(to.cast()), count).writer();
    match user.write_slice_file(&text.0, position) {
        // CAST: It is at most the size of a buffer.
        Ok(written) => written as isize,
        Err(e) => e.to_errno() as isize,
    }
}

/// What a file shows, for `write!`.
struct Shown<'a, T>(&'a T);

impl<T: Writer> fmt::Display for Shown<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(f)
    }
}

/// A text that grows. Appending sleeps.
struct Text(KVVec<u8>);

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0
            .extend_from_slice(text.as_bytes(), GFP_KERNEL)
            .map_err(|_| fmt::Error)
    }
}

/// What the C header has as inline functions for a kernel without debugfs.
#[cfg(not(CONFIG_DEBUG_FS))]
mod absent {
    use super::*;

    pub(super) unsafe fn debugfs_create_dir(
        _name: *const c_char,
        _parent: *mut bindings::dentry,
    ) -> *mut bindings::dentry {
        ENODEV.to_ptr()
    }

    pub(super) unsafe fn debugfs_create_file_short(
        _name: *const c_char,
        _mode: bindings::umode_t,
        _parent: *mut bindings::dentry,
        _data: *mut c_void,
        _aux: *const c_void,
        _ops: *const bindings::debugfs_short_fops,
    ) -> *mut bindings::dentry {
        ENODEV.to_ptr()
    }

    pub(super) unsafe fn debugfs_remove(_dentry: *mut bindings::dentry) {}
}
