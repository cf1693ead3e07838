// SPDX-License-Identifier: GPL-2.0-or-later
//! A device's configuration space.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::worker::Alarm;

/// A device's configuration space. Clones are the same space.
///
/// The device changes it from any thread; the thread that serves the control page copies it
/// there and tells the driver.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    state: Arc<Mutex<State>>,
    changed: Alarm,
}

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    changed: bool,
}

impl ConfigSpace {
    /// A space that holds `bytes`. Its length does not change.
    pub fn new(bytes: &[u8]) -> std::io::Result<Self> {
        let state = State {
            bytes: bytes.to_vec(),
            changed: false,
        };
        Ok(Self {
            state: Arc::new(Mutex::new(state)),
            changed: Alarm::new()?,
        })
    }

    /// The bytes now.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// Changes the bytes, which raises a configuration change interrupt if they differ.
    ///
    /// What does not fit is left out.
    pub fn write(&self, offset: usize, data: &[u8]) {
        let mut state = self.lock();
        let tail = state.bytes.get_mut(offset..).unwrap_or_default();
        let mut changed = false;

        for (old, new) in tail.iter_mut().zip(data) {
            changed |= old != new;
            *old = *new;
        }
        if changed {
            state.changed = true;
            self.changed.ring();
        }
    }

    /// The bytes, if they have changed since the last call.
    pub(crate) fn take_change(&self) -> Option<Vec<u8>> {
        self.changed.clear();
        let mut state = self.lock();
        std::mem::take(&mut state.changed).then(|| state.bytes.clone())
    }

    /// Readable after a change.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent at any time.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
