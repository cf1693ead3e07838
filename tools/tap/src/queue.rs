// SPDX-License-Identifier: GPL-2.0-or-later
//! The queues of a tap.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::c_int;

use crate::ioctl::{self, Value};
use crate::{IoVec, Name};

/// The most parts that one packet can be read or written in (`UIO_MAXIOV`).
pub const MAX_PARTS: usize = 1024;

/// One queue of a tap, attached to it or not.
///
/// Packets come with a virtio network header in front and leave so. No call blocks. The tap is
/// removed when the last of its queues is dropped.
#[derive(Debug)]
pub struct Queue {
    file: File,
    name: Name,
}

/// Creates the tap `name` with `queues` queues, all attached.
///
/// The virtio network headers are little-endian and `header` bytes long.
///
/// # Errors
///
/// `EBUSY` when somebody has a tap of that name, `EPERM` without `CAP_NET_ADMIN`, `ENOENT` when
/// the kernel has no taps.
pub fn create(name: &Name, queues: u16, header: u16) -> io::Result<Vec<Queue>> {
    (0..queues).map(|_| Queue::create(name, header)).collect()
}

impl Queue {
    fn create(name: &Name, header: u16) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        let flags = Value::Flags(flags as libc::c_short);

        ioctl::interface(file.as_fd(), libc::TUNSETIFF, name, flags)?;
        ioctl::pointer_to_int(file.as_fd(), libc::TUNSETVNETLE, 1)?;
        ioctl::pointer_to_int(file.as_fd(), libc::TUNSETVNETHDRSZ, c_int::from(header))?;
        Ok(Queue {
            file,
            name: name.clone(),
        })
    }

    /// The tap's name when it was created.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Sets what the tap may leave to the reader (`TUN_F_*`), for all its queues.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the kernel does not know one of them.
    pub fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        ioctl::by_value(self.file.as_fd(), libc::TUNSETOFFLOAD, offloads.into())
    }

    /// Sets whether the tap has a carrier.
    pub fn set_carrier(&self, on: bool) -> io::Result<()> {
        ioctl::pointer_to_int(self.file.as_fd(), libc::TUNSETCARRIER, on.into())
    }

    /// Attaches the queue to its tap.
    ///
    /// Queues are numbered in the order in which they are attached; the tap sends a flow to the
    /// queue with the number on which it has come.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it is attached.
    pub fn attach(&self) -> io::Result<()> {
        self.set_queue(libc::IFF_ATTACH_QUEUE)
    }

    /// Detaches the queue, which drops what has come and lets nothing more come.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it is detached.
    pub fn detach(&self) -> io::Result<()> {
        self.set_queue(libc::IFF_DETACH_QUEUE)
    }

    fn set_queue(&self, flag: c_int) -> io::Result<()> {
        let flag = Value::Flags(flag as libc::c_short);
        ioctl::interface(self.file.as_fd(), libc::TUNSETQUEUE, &self.name, flag)?;
        Ok(())
    }

    /// Takes a packet; the length of header and packet, or of `parts` if that is less.
    ///
    /// # Errors
    ///
    /// `EAGAIN` when there is none, `EBADFD` when the tap was removed.
    pub fn receive(&self, parts: &[IoVec<'_>]) -> io::Result<usize> {
        // SAFETY: The parts can be written while they are borrowed, and `IoVec` is a transparent
        // `struct iovec`.
        let ret =
            unsafe { libc::readv(self.file.as_raw_fd(), parts.as_ptr().cast(), count(parts)) };
        usize::try_from(ret).map_err(|_| io::Error::last_os_error())
    }

    /// Sends a header and packet.
    ///
    /// # Errors
    ///
    /// `EAGAIN` when the tap's send buffer is full, `EINVAL` when the header is none that fits
    /// the packet, `EIO` when the tap is down, `EBADFD` when it was removed.
    pub fn send(&self, parts: &[IoVec<'_>]) -> io::Result<usize> {
        // SAFETY: The parts can be read while they are borrowed, and `IoVec` is a transparent
        // `struct iovec`.
        let ret =
            unsafe { libc::writev(self.file.as_raw_fd(), parts.as_ptr().cast(), count(parts)) };
        usize::try_from(ret).map_err(|_| io::Error::last_os_error())
    }
}

/// The number of parts, one too large if it fits in no `int`.
fn count(parts: &[IoVec<'_>]) -> c_int {
    c_int::try_from(parts.len()).unwrap_or(c_int::MAX)
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
