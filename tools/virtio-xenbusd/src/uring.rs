// SPDX-License-Identifier: GPL-2.0-or-later
//! The io_uring of a queue's thread: it waits for the doorbell, for the order to stop and for
//! I/O with one system call.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use crate::worker::Stop;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The I/O with this number has completed: bytes or a negative errno value.
    Io(u16, i32),
    /// The driver has rung. It does not ring again before [`Uring::acknowledge`].
    Doorbell,
    /// Stopping was requested.
    Stop,
}

/// What submissions other than I/Os carry, beyond all numbers of these.
const DOORBELL: u64 = 1 << 16;
const ACKNOWLEDGE: u64 = 2 << 16;
const STOP: u64 = 3 << 16;

/// The doorbell, among the files that the kernel keeps open for an io_uring.
const DOORBELL_FILE: types::Fixed = types::Fixed(0);

/// What to poll for. CAST: The flag is small and positive.
const READABLE: u32 = libc::POLLIN as u32;

/// Flags of `io_uring_enter(2)`: wait; and do not count that as waiting for a device, as most of
/// it is waiting for the guest.
const GETEVENTS: u32 = 1;
const NO_IOWAIT: u32 = 1 << 7;

/// Flag of `io_uring_enter(2)`: the argument is an [`Argument`].
const EXT_ARG: u32 = 1 << 3;

/// `struct io_uring_getevents_arg`.
#[repr(C)]
#[derive(Default)]
struct Argument {
    sigmask: u64,
    sigmask_sz: u32,
    min_wait_usec: u32,
    /// The address of a `struct __kernel_timespec`.
    ts: u64,
}

/// An io_uring, used by the thread that has made it.
pub struct Uring {
    ring: IoUring,
    /// Where the kernel puts what the doorbell tells, and takes it from.
    event: Box<[u8; xen::EVENT_SIZE]>,
    /// Whether rings of the doorbell are reported.
    listening: bool,
    no_iowait: u32,
}

/// Whether the kernel lets us use io_uring.
pub fn check() -> io::Result<()> {
    new_ring(1).map(drop)
}

fn new_ring(entries: u32) -> io::Result<IoUring> {
    // The thread that submits is the one that waits: completions need no interrupt.
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(entries)
}

impl Uring {
    /// One with room for `entries` I/Os at a time. It waits for `stop` and `doorbell`.
    pub fn new(entries: u16, stop: &Stop, doorbell: BorrowedFd<'_>) -> io::Result<Self> {
        /// Entries for the doorbell and `stop`.
        const OWN: u32 = 4;
        let mut uring = Self {
            ring: new_ring(u32::from(entries) + OWN)?,
            event: Box::default(),
            listening: false,
            no_iowait: NO_IOWAIT,
        };
        // That spares the kernel to look it up with each event.
        uring
            .ring
            .submitter()
            .register_files(&[doorbell.as_raw_fd()])?;
        let stop = types::Fd(stop.as_fd().as_raw_fd());
        let entry = opcode::PollAdd::new(stop, READABLE).build().user_data(STOP);
        // SAFETY: A poll uses no memory of ours.
        unsafe { uring.push(&entry)? };
        uring.listen()?;
        Ok(uring)
    }

    /// Has each ring of the doorbell reported.
    fn listen(&mut self) -> io::Result<()> {
        let entry = opcode::PollAdd::new(DOORBELL_FILE, READABLE)
            .multi(true)
            .build()
            .user_data(DOORBELL);
        // SAFETY: A poll uses no memory of ours.
        unsafe { self.push(&entry)? };
        self.listening = true;
        Ok(())
    }

    /// Lets the driver ring again, after [`Event::Doorbell`].
    ///
    /// Takes effect with the next [`Uring::wait`]; a ring until then is not lost.
    pub fn acknowledge(&mut self) -> io::Result<()> {
        let (event, len) = (self.event.as_mut_ptr(), xen::EVENT_SIZE as u32);
        let read = opcode::Read::new(DOORBELL_FILE, event, len)
            .build()
            .flags(squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS)
            .user_data(ACKNOWLEDGE);
        let write = opcode::Write::new(DOORBELL_FILE, event, len)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(ACKNOWLEDGE);
        self.make_room(2)?;
        // SAFETY: `event` is on the heap as long as the ring is there. Neither waits, as the file
        // is non-blocking: they are done with it when they have been submitted.
        unsafe { self.ring.submission().push_multiple(&[read, write]) }
            .map_err(|_| io::ErrorKind::WouldBlock)?;
        match self.listening {
            true => Ok(()),
            false => self.listen(),
        }
    }

    /// Begins an I/O. Its user data is its number, of 16 bits.
    ///
    /// # Safety
    ///
    /// What `entry` points to must be valid until it has completed.
    pub unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        self.make_room(1)?;
        // SAFETY: By the requirement above.
        unsafe { self.ring.submission().push(entry) }.map_err(|_| io::ErrorKind::WouldBlock.into())
    }

    /// Submits what has been begun if there is no room for `entries` more.
    fn make_room(&mut self, entries: usize) -> io::Result<()> {
        let queue = self.ring.submission();
        if queue.capacity() - queue.len() < entries {
            drop(queue);
            self.ring.submit()?;
        }
        Ok(())
    }

    /// Submits what has been begun and waits for a completion, or `timeout`.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let entries = self.ring.submission().len() as u32;
        let flags = GETEVENTS | self.no_iowait;
        let submitter = self.ring.submitter();
        let result = match timeout {
            // SAFETY: There is no argument; the entries are valid, see `push`.
            None => unsafe { submitter.enter::<()>(entries, 1, flags, None) },
            Some(time) => {
                let time = types::Timespec::from(time);
                let argument = Argument {
                    ts: (&raw const time).addr() as u64,
                    ..Argument::default()
                };
                // SAFETY: The argument and what it points to are valid, and so are the entries.
                unsafe { submitter.enter(entries, 1, flags | EXT_ARG, Some(&argument)) }
            }
        };
        match result.map_err(|error| (error.raw_os_error(), error)) {
            // Completions first, if the kernel is busy.
            Ok(_) | Err((Some(libc::EINTR | libc::EBUSY | libc::ETIME), _)) => Ok(()),
            Err((Some(libc::EINVAL), _)) if self.no_iowait != 0 => {
                // Linux before 6.15.
                self.no_iowait = 0;
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    /// The next of the things that have happened.
    ///
    /// # Errors
    ///
    /// The doorbell is broken.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        while let Some(completion) = self.ring.completion().next() {
            let result = completion.result();
            match completion.user_data() {
                DOORBELL => {
                    self.listening = cqueue::more(completion.flags());
                    return match u32::try_from(result) {
                        Ok(events) if events & READABLE != 0 => Ok(Some(Event::Doorbell)),
                        Ok(_) => Err(io::ErrorKind::BrokenPipe.into()),
                        Err(_) => Err(io::Error::from_raw_os_error(result.saturating_neg())),
                    };
                }
                // An event may be reported twice. Of others, only failures are.
                ACKNOWLEDGE if result == -libc::EAGAIN => (),
                ACKNOWLEDGE => {
                    return Err(io::Error::from_raw_os_error(result.saturating_neg()));
                }
                STOP => return Ok(Some(Event::Stop)),
                // CAST: The numbers of I/Os have 16 bits.
                number => return Ok(Some(Event::Io(number as u16, result))),
            }
        }
        Ok(None)
    }
}
