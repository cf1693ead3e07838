// SPDX-License-Identifier: GPL-2.0-or-later
//! Settings of network interfaces, and news of their changes.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use crate::Name;
use crate::ioctl;
use crate::ioctl::Value;

pub(crate) fn socket(domain: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(domain, kind, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads and changes the interfaces of the calling thread's network namespace.
///
/// Every call names one interface and fails with `ENODEV` when there is none of that name.
#[derive(Debug)]
pub struct Links(OwnedFd);

impl Links {
    /// Opens the socket that interface requests are made on.
    ///
    /// # Errors
    ///
    /// Those of socket(2).
    pub fn new() -> io::Result<Self> {
        socket(libc::AF_UNIX, 0).map(Links)
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn request(&self, op: libc::Ioctl, name: &Name, value: Value) -> io::Result<libc::ifreq> {
        ioctl::interface(self.as_fd(), op, name, value)
    }

    /// The number of the interface.
    pub fn index(&self, name: &Name) -> io::Result<i32> {
        let answer = self.request(libc::SIOCGIFINDEX, name, Value::Nothing)?;
        Ok(ioctl::int(&answer))
    }

    /// Whether the interface was set up by its administrator (`IFF_UP`).
    pub fn is_up(&self, name: &Name) -> io::Result<bool> {
        let answer = self.request(libc::SIOCGIFFLAGS, name, Value::Nothing)?;
        Ok(ioctl::flags(&answer) & libc::IFF_UP != 0)
    }

    /// Sets the interface up.
    pub fn set_up(&self, name: &Name) -> io::Result<()> {
        let answer = self.request(libc::SIOCGIFFLAGS, name, Value::Nothing)?;
        let flags = ioctl::flags(&answer) | libc::IFF_UP;
        // The kernel keeps the flags that one may set in the low 16 bits.
        self.request(
            libc::SIOCSIFFLAGS,
            name,
            Value::Flags(flags as libc::c_short),
        )?;
        Ok(())
    }

    /// The interface's MTU in bytes.
    pub fn mtu(&self, name: &Name) -> io::Result<u32> {
        let answer = self.request(libc::SIOCGIFMTU, name, Value::Nothing)?;
        u32::try_from(ioctl::int(&answer)).map_err(io::Error::other)
    }

    /// Sets the interface's MTU in bytes.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the interface cannot have that MTU.
    pub fn set_mtu(&self, name: &Name, mtu: u16) -> io::Result<()> {
        self.request(libc::SIOCSIFMTU, name, Value::Int(i32::from(mtu)))?;
        Ok(())
    }

    /// Sets the interface's own Ethernet address.
    pub fn set_address(&self, name: &Name, address: [u8; 6]) -> io::Result<()> {
        self.request(libc::SIOCSIFHWADDR, name, Value::Ethernet(address))?;
        Ok(())
    }

    /// Makes the interface with number `port` a port of `bridge`.
    ///
    /// # Errors
    ///
    /// `ENODEV` when there is no interface `bridge`, `EOPNOTSUPP` when it is not a bridge.
    pub fn add_port(&self, bridge: &Name, port: i32) -> io::Result<()> {
        self.request(ioctl::SIOCBRADDIF, bridge, Value::Int(port))?;
        Ok(())
    }
}

/// Tells when any interface of the network namespace changes.
///
/// Readable when there is news; [`Monitor::drain`] takes it. What has changed is not said: ask
/// [`Links`]. So nothing is lost when the kernel drops messages.
#[derive(Debug)]
pub struct Monitor(OwnedFd);

impl Monitor {
    /// Subscribes to the kernel's link messages.
    ///
    /// # Errors
    ///
    /// Those of socket(2) and bind(2).
    pub fn new() -> io::Result<Self> {
        let fd = socket(libc::AF_NETLINK, libc::NETLINK_ROUTE)?;
        // SAFETY: `struct sockaddr_nl` is integers.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = libc::RTMGRP_LINK as u32;
        // SAFETY: the address is a valid `struct sockaddr_nl` of the length that is passed.
        let ret = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        };
        if ret < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Monitor(fd))
    }

    /// Takes the messages that have come, at most `limit` of them; `true` if there were any.
    ///
    /// # Errors
    ///
    /// Those of recv(2), apart from `EAGAIN`, and `ENOBUFS`, which counts as news.
    pub fn drain(&self, limit: usize) -> io::Result<bool> {
        let mut news = false;
        for _ in 0..limit {
            let mut byte = 0u8;
            // SAFETY: one byte is written at most; a longer message is cut.
            let ret = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    (&raw mut byte).cast(),
                    1,
                    libc::MSG_DONTWAIT,
                )
            };
            if ret < 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN) => break,
                    Some(libc::ENOBUFS | libc::EINTR) => {}
                    _ => return Err(error),
                }
            }
            news = true;
        }
        Ok(news)
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
