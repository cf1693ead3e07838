// SPDX-License-Identifier: GPL-2.0-or-later
//! Xenstore.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use libc::{c_char, c_uint};

use crate::{DomainId, sys};

/// A change under a watched path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// What has changed.
    pub path: String,
    /// What [`Store::watch`] was given for it.
    pub token: String,
}

/// A connection to xenstore.
///
/// Paths that do not begin with `/` are relative to the domain's own directory.
#[derive(Debug)]
pub struct Store {
    handle: NonNull<sys::XsHandle>,
}

// SAFETY: libxenstore serializes the users of a handle itself.
unsafe impl Send for Store {}

/// Accesses that others see all at once or not at all.
#[derive(Debug)]
pub struct Transaction<'a> {
    store: &'a Store,
    id: u32,
}

impl Store {
    /// Connects to xenstore.
    pub fn open() -> io::Result<Self> {
        // SAFETY: Takes flags only.
        let handle = unsafe { sys::xs_open(0) };
        let handle = NonNull::new(handle).ok_or_else(crate::last_error)?;
        Ok(Self { handle })
    }

    /// Reads a node; `None` if there is none.
    pub fn read(&self, path: &str) -> io::Result<Option<String>> {
        self.immediate().read(path)
    }

    /// The names in a directory; none if there is no such directory.
    pub fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.immediate().list(path)
    }

    /// Writes a node, and makes those above it.
    pub fn write(&self, path: &str, value: &str) -> io::Result<()> {
        self.immediate().write(path, value)
    }

    /// Removes a node and those below it, if it is there.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        self.immediate().remove(path)
    }

    /// Carries out `body` in a transaction, again as long as others interfere.
    ///
    /// # Errors
    ///
    /// The error of `body`, which ends the transaction without effect, or of xenstore.
    pub fn transaction<T>(
        &self,
        mut body: impl FnMut(&Transaction<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            // SAFETY: `handle` is open.
            let id = unsafe { sys::xs_transaction_start(self.handle.as_ptr()) };
            if id == sys::XBT_NULL {
                return Err(last_error());
            }
            let result = body(&Transaction { store: self, id });
            let abort = result.is_err();
            // SAFETY: `handle` is open, and `id` is a transaction that is not used after.
            let ended = unsafe { sys::xs_transaction_end(self.handle.as_ptr(), id, abort) };
            if ended || abort {
                return result;
            }
            match last_error() {
                error if error.raw_os_error() == Some(libc::EAGAIN) => (),
                error => return Err(error),
            }
        }
    }

    /// Reports changes of `path` and below through [`Store::next_watch`], beginning with one at
    /// once.
    pub fn watch(&self, path: &str, token: &str) -> io::Result<()> {
        let (path, token) = (c_string(path)?, c_string(token)?);
        // SAFETY: `handle` is open, and both are C strings.
        match unsafe { sys::xs_watch(self.handle.as_ptr(), path.as_ptr(), token.as_ptr()) } {
            true => Ok(()),
            false => Err(last_error()),
        }
    }

    /// The next change; `None` if there is none now.
    pub fn next_watch(&self) -> io::Result<Option<Watch>> {
        // SAFETY: `handle` is open.
        let Some(strings) = NonNull::new(unsafe { sys::xs_check_watch(self.handle.as_ptr()) })
        else {
            return match last_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                // Xenstored is not asked: its answer is no other.
                _ => Err(lost()),
            };
        };
        // SAFETY: The library returned one block that begins with two pointers to C strings in
        // it: path and token.
        let watch = unsafe {
            let path = text(*strings.as_ptr());
            let token = text(*strings.as_ptr().add(1));
            Watch { path, token }
        };
        // SAFETY: The block is ours to free, and not used after.
        unsafe { libc::free(strings.as_ptr().cast()) };
        Ok(Some(watch))
    }

    /// Waits until xenstored has closed this connection, which nothing else may be done with.
    ///
    /// [`Store::as_fd`] is not readable then: others are not told before they ask for something.
    ///
    /// # Errors
    ///
    /// It cannot be waited for.
    pub fn wait_lost(&self) -> io::Result<()> {
        // The library reads what xenstored sends from the first watch on. This node is there and
        // stays as it is.
        self.watch("domid", "")?;
        loop {
            let mut count: c_uint = 0;
            // SAFETY: `handle` is open, and `count` outlives the call.
            let strings = unsafe { sys::xs_read_watch(self.handle.as_ptr(), &mut count) };
            if strings.is_null() {
                return Ok(());
            }
            // SAFETY: The library returned a block that is ours to free, and not used after.
            unsafe { libc::free(strings.cast()) };
        }
    }

    /// Whether xenstore knows the domain: it exists and has not been destroyed. Where only dom0
    /// is told that, in a driver domain, it is said of every domain.
    pub fn domain_exists(&self, domain: DomainId) -> bool {
        const DOM0: DomainId = 0;

        // Who hears that there is no dom0 may not ask.
        self.introduced(domain) || !self.introduced(DOM0)
    }

    fn introduced(&self, domain: DomainId) -> bool {
        // SAFETY: `handle` is open.
        unsafe { sys::xs_is_domain_introduced(self.handle.as_ptr(), c_uint::from(domain)) }
    }

    fn immediate(&self) -> Transaction<'_> {
        Transaction {
            store: self,
            id: sys::XBT_NULL,
        }
    }
}

impl Transaction<'_> {
    /// As [`Store::read`].
    pub fn read(&self, path: &str) -> io::Result<Option<String>> {
        let path = c_string(path)?;
        let mut len: c_uint = 0;
        // SAFETY: `handle` is open, `path` a C string, and `len` outlives the call.
        let data =
            unsafe { sys::xs_read(self.store.handle.as_ptr(), self.id, path.as_ptr(), &mut len) };
        let Some(data) = NonNull::new(data.cast::<u8>()) else {
            return absent(None);
        };
        // SAFETY: The library returned a block of at least `len` bytes.
        let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr(), len as usize) };
        let value = String::from_utf8_lossy(bytes).into_owned();
        // SAFETY: The block is ours to free, and not used after.
        unsafe { libc::free(data.as_ptr().cast()) };
        Ok(Some(value))
    }

    /// As [`Store::list`].
    pub fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let path = c_string(path)?;
        let mut count: c_uint = 0;
        // SAFETY: `handle` is open, `path` a C string, and `count` outlives the call.
        let names = unsafe {
            sys::xs_directory(
                self.store.handle.as_ptr(),
                self.id,
                path.as_ptr(),
                &mut count,
            )
        };
        let Some(names) = NonNull::new(names) else {
            return absent(Vec::new());
        };
        // SAFETY: The library returned one block that begins with `count` pointers to C strings
        // in it.
        let list = unsafe {
            let pointers = std::slice::from_raw_parts(names.as_ptr(), count as usize);
            pointers.iter().map(|&name| text(name)).collect()
        };
        // SAFETY: The block is ours to free, and not used after.
        unsafe { libc::free(names.as_ptr().cast()) };
        Ok(list)
    }

    /// As [`Store::write`].
    pub fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let path = c_string(path)?;
        let len = c_uint::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `handle` is open, `path` a C string, and `value` has `len` bytes.
        let written = unsafe {
            sys::xs_write(
                self.store.handle.as_ptr(),
                self.id,
                path.as_ptr(),
                value.as_ptr().cast(),
                len,
            )
        };
        match written {
            true => Ok(()),
            false => Err(last_error()),
        }
    }

    /// As [`Store::remove`].
    pub fn remove(&self, path: &str) -> io::Result<()> {
        let path = c_string(path)?;
        // SAFETY: `handle` is open and `path` a C string.
        match unsafe { sys::xs_rm(self.store.handle.as_ptr(), self.id, path.as_ptr()) } {
            true => Ok(()),
            false => absent(()),
        }
    }

    /// Gives a node to `owner`. Beside it and dom0 `readers` may read it, and nobody may write.
    ///
    /// Nodes that are made below get the same permissions.
    pub fn set_owner(&self, path: &str, owner: DomainId, readers: &[DomainId]) -> io::Result<()> {
        let path = c_string(path)?;
        let permissions = |id: DomainId, perms| sys::XsPermissions {
            id: c_uint::from(id),
            perms,
        };
        let mut list = vec![permissions(owner, sys::XS_PERM_NONE)];
        list.extend(readers.iter().map(|&id| permissions(id, sys::XS_PERM_READ)));
        let count = c_uint::try_from(list.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `handle` is open, `path` a C string, and `list` has `count` elements.
        let set = unsafe {
            sys::xs_set_permissions(
                self.store.handle.as_ptr(),
                self.id,
                path.as_ptr(),
                list.as_mut_ptr(),
                count,
            )
        };
        match set {
            true => Ok(()),
            false => Err(last_error()),
        }
    }
}

impl AsFd for Store {
    /// Readable when [`Store::next_watch`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: The descriptor is open until `Drop`, and the borrow ends before.
        unsafe { BorrowedFd::borrow_raw(sys::xs_fileno(self.handle.as_ptr())) }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: `handle` is open and not used after.
        unsafe { sys::xs_close(self.handle.as_ptr()) };
    }
}

/// The error of the last call.
fn last_error() -> io::Error {
    match crate::last_error() {
        // The library has closed its end.
        error if error.raw_os_error() == Some(libc::EBADF) => lost(),
        error => error,
    }
}

fn lost() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "the connection to xenstore is lost",
    )
}

/// `value` if the last call failed because there is no such node, else its error.
fn absent<T>(value: T) -> io::Result<T> {
    match last_error() {
        error if error.kind() == io::ErrorKind::NotFound => Ok(value),
        error => Err(error),
    }
}

fn c_string(text: &str) -> io::Result<CString> {
    Ok(CString::new(text)?)
}

/// # Safety
///
/// `string` is a C string.
unsafe fn text(string: *const c_char) -> String {
    // SAFETY: By the requirement above.
    unsafe { CStr::from_ptr(string) }
        .to_string_lossy()
        .into_owned()
}
