// SPDX-License-Identifier: GPL-2.0-or-later
//! Eventfds.
#![allow(unsafe_code)]

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// An eventfd that one shares with others. Clones are the same one.
#[derive(Clone)]
pub struct Event(Arc<EventFd>);

impl Event {
    /// One that has not been signalled.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        Ok(Self(Arc::new(event)))
    }

    /// The eventfd.
    pub fn get(&self) -> &EventFd {
        &self.0
    }

    /// Makes it readable.
    pub fn signal(&self) -> io::Result<()> {
        match self.0.write(1) {
            // Somebody has filled it up: it is readable.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }

    /// Makes it unreadable; whether it was readable.
    pub fn take(&self) -> io::Result<bool> {
        match self.0.read() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: The descriptor is open until the `EventFd` is dropped, which the borrow of
        // `self` outlives not.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
