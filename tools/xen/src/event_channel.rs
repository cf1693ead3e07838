// SPDX-License-Identifier: GPL-2.0-or-later
//! Event channels.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use crate::{DomainId, last_error, sys};

/// Bytes that the event device tells of an event: the port.
pub const EVENT_SIZE: usize = size_of::<u32>();

/// One end of an event channel, with an event device of its own.
///
/// Nothing else is bound to the device, so that its file descriptor is readable exactly when this
/// channel has an event, and one thread can wait for it without a lock. What is read from the
/// descriptor, [`EVENT_SIZE`] bytes, lets the channel deliver the next event when it is written
/// back; [`EventChannel::acknowledge`] does both. Neither waits. Dropping it closes the channel.
#[derive(Debug)]
pub struct EventChannel {
    handle: NonNull<sys::EvtchnHandle>,
    port: u32,
}

// SAFETY: A libxenevtchn handle is a file descriptor and has no thread of its own; calls on it
// from another thread are allowed as long as they do not overlap, which `&mut` ensures for the
// only call (`acknowledge`) that takes state from the device.
unsafe impl Send for EventChannel {}

impl EventChannel {
    /// Binds to `remote_port`, which domain `domain` has allocated for this domain.
    ///
    /// # Errors
    ///
    /// What Xen says: the port is not free or not meant for us, or the domain is gone.
    pub fn bind(domain: DomainId, remote_port: u32) -> io::Result<Self> {
        // SAFETY: The logger lives for ever.
        let handle = NonNull::new(unsafe { sys::xenevtchn_open(sys::silent(), 0) })
            .ok_or_else(last_error)?;
        // From here on `Drop` closes the handle.
        let mut channel = Self { handle, port: 0 };

        channel.set_nonblocking()?;
        // SAFETY: `handle` is open.
        let port = unsafe {
            sys::xenevtchn_bind_interdomain(handle.as_ptr(), u32::from(domain), remote_port)
        };
        channel.port = u32::try_from(port).map_err(|_| last_error())?;
        Ok(channel)
    }

    /// Takes the pending event, if any, and lets the channel deliver the next one.
    ///
    /// Returns whether there was one.
    pub fn acknowledge(&mut self) -> io::Result<bool> {
        // SAFETY: `handle` is open; its file is non-blocking.
        let port = unsafe { sys::xenevtchn_pending(self.handle.as_ptr()) };

        let Ok(port) = u32::try_from(port) else {
            let error = last_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(false),
                _ => Err(error),
            };
        };
        // SAFETY: `handle` is open and `port` is bound to it.
        match unsafe { sys::xenevtchn_unmask(self.handle.as_ptr(), port) } {
            0 => Ok(true),
            _ => Err(last_error()),
        }
    }

    /// Sends an event to the other end.
    pub fn notify(&self) -> io::Result<()> {
        // SAFETY: `handle` is open and `port` is bound to it.
        match unsafe { sys::xenevtchn_notify(self.handle.as_ptr(), self.port) } {
            0 => Ok(()),
            _ => Err(last_error()),
        }
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        // SAFETY: `handle` is open, and `fcntl` takes any descriptor and these arguments.
        let result = unsafe {
            let fd = sys::xenevtchn_fd(self.handle.as_ptr());
            match libc::fcntl(fd, libc::F_GETFL) {
                -1 => -1,
                flags => libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK),
            }
        };
        match result {
            -1 => Err(last_error()),
            _ => Ok(()),
        }
    }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: The descriptor is open until `Drop`, and the borrow ends before.
        unsafe { BorrowedFd::borrow_raw(sys::xenevtchn_fd(self.handle.as_ptr())) }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // Closing the device would close the channel, but only when nobody polls it any more.
        if self.port != 0 {
            // SAFETY: `handle` is open and `port` is bound to it.
            unsafe { sys::xenevtchn_unbind(self.handle.as_ptr(), self.port) };
        }
        // SAFETY: `handle` is open and not used after.
        unsafe { sys::xenevtchn_close(self.handle.as_ptr()) };
    }
}
