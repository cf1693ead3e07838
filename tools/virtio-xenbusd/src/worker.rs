// SPDX-License-Identifier: GPL-2.0-or-later
//! The threads that serve queues.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::device::Ring;

/// Wakes the thread that polls its descriptor. Clones are the same alarm.
#[derive(Clone, Debug)]
pub struct Alarm(Arc<EventFd>);

impl Alarm {
    /// An alarm that has not been rung.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(Arc::new(EventFd::from_value_and_flags(0, flags)?)))
    }

    /// Makes the descriptor readable.
    pub fn ring(&self) {
        // Fails only when the counter is full, and then the descriptor is readable.
        let _ = self.0.write(1);
    }

    /// Makes the descriptor unreadable.
    pub fn clear(&self) {
        // Fails only when the counter is zero, and then the descriptor is unreadable.
        let _ = self.0.read();
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Tells a worker to stop. Clones are the same signal.
#[derive(Clone, Debug)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    alarm: Alarm,
}

impl Stop {
    fn new() -> io::Result<Self> {
        Ok(Self {
            requested: Arc::default(),
            alarm: Alarm::new()?,
        })
    }

    /// Whether the worker shall stop.
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    fn request(&self) {
        self.requested.store(true, Ordering::Release);
        self.alarm.ring();
    }
}

impl AsFd for Stop {
    /// Readable from the request on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }
}

/// A running queue; stopped when dropped.
#[derive(Debug)]
pub struct Worker {
    name: String,
    stop: Stop,
    alarm: Alarm,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Worker {
    /// Runs `serve` on a thread of its own.
    ///
    /// `serve` returns when [`Stop::requested`] and nothing that it has begun touches
    /// `ring.memory` any more. It returns an error when the ring or the device is broken: the
    /// device then needs a reset by its driver.
    pub fn spawn<F>(ring: Ring, serve: F) -> Result<Self>
    where
        F: FnOnce(Ring, &Stop) -> Result<()> + Send + 'static,
    {
        let stop = Stop::new()?;
        let theirs = stop.clone();
        let ended = Arc::new(AtomicBool::new(false));
        let (name, alarm) = (ring.name.clone(), ring.alarm.clone());
        let at_end = AtEnd {
            ended: Arc::clone(&ended),
            alarm: alarm.clone(),
        };
        let thread = thread::Builder::new()
            .name(thread_name(ring.index))
            .stack_size(STACK_SIZE)
            .spawn(move || {
                let _at_end = at_end;
                serve(ring, &theirs)
            })?;
        Ok(Self {
            name,
            stop,
            alarm,
            ended,
            thread: Some(thread),
        })
    }

    /// Whether the worker has ended, asked to or not. It rings `ring.alarm` then.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Tells the worker to stop, without waiting for it.
    pub fn request_stop(&self) {
        self.stop.request();
    }

    /// Waits until the worker has stopped; how it has ended.
    pub fn stop(mut self) -> Result<()> {
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        self.stop.request();
        self.wait();
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(panic)) => Err(anyhow!("internal error: {}", panic_text(panic.as_ref()))),
        }
    }

    /// Waits for the end, and says so if that takes long.
    fn wait(&self) {
        let mut timeout = PollTimeout::from(PATIENCE);
        while !self.ended() {
            let mut fds = [PollFd::new(self.alarm.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) => {
                    log::warn!("{}: still waiting for I/O to end, to stop it", self.name);
                    timeout = PollTimeout::NONE;
                }
                // Another worker's end may ring, too; its state tells.
                Ok(_) => self.alarm.clear(),
                Err(Errno::EINTR) => (),
                // The thread is joined anyway.
                Err(_) => return,
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Who wants to know the result calls `stop`.
        let _ = self.join();
    }
}

/// The name of the thread for queue `index` of the device whose thread this is.
fn thread_name(index: u16) -> String {
    let device = thread::current();
    format!("{}-q{index}", device.name().unwrap_or_default())
}

/// How long a worker may take to stop before that is worth a message, in milliseconds.
const PATIENCE: u16 = 5000;

/// Bytes of a worker's stack: nothing in it recurses or holds buffers on the stack.
const STACK_SIZE: usize = 256 << 10;

/// Says when a thread ends, by a panic too.
struct AtEnd {
    ended: Arc<AtomicBool>,
    alarm: Alarm,
}

impl Drop for AtEnd {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.alarm.ring();
    }
}

/// The message of a panic.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "panic"
    }
}
