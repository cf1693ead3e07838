// SPDX-License-Identifier: GPL-2.0-or-later
//! Ends the connection to a program that does not answer in time.
//!
//! The vhost crate waits for a program's answer without a limit, and goes on waiting when a
//! receive times out. So one thread, for all devices, shuts the sockets down whose time is over,
//! which ends the wait.

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of the thread's stack.
const STACK_SIZE: usize = 64 << 10;

/// A time, and a number to tell two of the same time apart.
type Key = (Instant, u64);

struct State {
    /// The sockets on which somebody waits, and until when.
    waiting: BTreeMap<Key, UnixStream>,
    /// The number of the next one.
    next: u64,
    /// There is a thread.
    started: bool,
}

static STATE: Mutex<State> = Mutex::new(State {
    waiting: BTreeMap::new(),
    next: 0,
    started: false,
});
static CHANGED: Condvar = Condvar::new();

/// A wait, which ends when this is dropped.
pub struct Guard(Key);

/// Shuts `socket` down in `time`, if the guard is still there.
pub fn watch(socket: &UnixStream, time: Duration) -> io::Result<Guard> {
    let socket = socket.try_clone()?;
    let mut state = lock();
    if !state.started {
        let thread = thread::Builder::new().name("watchdog".to_owned());
        thread.stack_size(STACK_SIZE).spawn(run)?;
        state.started = true;
    }
    let key = (Instant::now() + time, state.next);
    state.next += 1;
    state.waiting.insert(key, socket);
    CHANGED.notify_one();
    Ok(Guard(key))
}

impl Drop for Guard {
    fn drop(&mut self) {
        lock().waiting.remove(&self.0);
    }
}

fn lock() -> MutexGuard<'static, State> {
    // The state is consistent at any time.
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run() {
    let mut state = lock();
    loop {
        let now = Instant::now();
        let first = state.waiting.first_key_value().map(|(&(end, _), _)| end);
        state = match first {
            None => CHANGED.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(end) if end > now => {
                let woken = CHANGED.wait_timeout(state, end - now);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
            Some(_) => {
                if let Some((_, socket)) = state.waiting.pop_first() {
                    // Fails if the other end has closed it, which ends the wait as well.
                    let _ = socket.shutdown(Shutdown::Both);
                }
                state
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn ends_a_wait_that_takes_too_long_and_no_other() {
        let (mut late, _late_peer) = UnixStream::pair().unwrap();
        let (mut early, _early_peer) = UnixStream::pair().unwrap();
        let guard = watch(&early, Duration::from_secs(600)).unwrap();
        let _late = watch(&late, Duration::from_millis(5)).unwrap();
        assert_eq!(late.read(&mut [0]).unwrap(), 0);
        early.set_nonblocking(true).unwrap();
        let error = early.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let key = guard.0;
        drop(guard);
        assert!(!lock().waiting.contains_key(&key));
    }
}
