// SPDX-License-Identifier: GPL-2.0-or-later
//! The three shapes of ioctl that taps and links need.

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

use libc::c_int;
use libc::c_ulong;

use crate::Name;

/// Requests of `linux/sockios.h` that the libc crate lacks.
pub(crate) const SIOCBRADDIF: libc::Ioctl = 0x89a2;

/// What an interface request sends or gets besides the name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value {
    Nothing,
    Flags(libc::c_short),
    Int(c_int),
    Ethernet([u8; 6]),
}

/// Builds a zeroed request for `name` that carries `value`.
fn request(name: &Name, value: Value) -> libc::ifreq {
    // SAFETY: `struct ifreq` is integers, arrays, and pointers for which null is a value.
    let mut ifr: libc::ifreq = unsafe { std::mem::zeroed() };
    ifr.ifr_name = name.to_ifreq();
    match value {
        Value::Nothing => {}
        Value::Flags(flags) => ifr.ifr_ifru.ifru_flags = flags,
        Value::Int(int) => ifr.ifr_ifru.ifru_ifindex = int,
        Value::Ethernet(address) => {
            let mut data = [0; 14];
            for (to, from) in data.iter_mut().zip(address) {
                *to = from as libc::c_char;
            }
            ifr.ifr_ifru.ifru_hwaddr = libc::sockaddr {
                sa_family: libc::ARPHRD_ETHER,
                sa_data: data,
            };
        }
    }
    ifr
}

/// Carries out `op`, which must be one that takes a `struct ifreq`.
pub(crate) fn interface(
    fd: BorrowedFd<'_>,
    op: libc::Ioctl,
    name: &Name,
    value: Value,
) -> io::Result<libc::ifreq> {
    let mut ifr = request(name, value);
    // SAFETY: `ifr` is a valid `struct ifreq` that outlives the call, and `op` reads and writes
    // no more than that (the callers in this crate pass SIOC* and TUNSET{IFF,QUEUE} only).
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), op, &raw mut ifr) };
    check(ret).map(|()| ifr)
}

/// The flags in an answer to `SIOCGIFFLAGS`.
pub(crate) fn flags(ifr: &libc::ifreq) -> c_int {
    // SAFETY: the union was zeroed and holds integers at this offset; every bit pattern is one.
    c_int::from(unsafe { ifr.ifr_ifru.ifru_flags })
}

/// The integer in an answer to `SIOCGIFMTU` or `SIOCGIFINDEX`.
pub(crate) fn int(ifr: &libc::ifreq) -> c_int {
    // SAFETY: as in `flags()`.
    unsafe { ifr.ifr_ifru.ifru_ifindex }
}

/// Carries out `op`, which must be one that takes a pointer to an `int` and only reads it.
pub(crate) fn pointer_to_int(fd: BorrowedFd<'_>, op: libc::Ioctl, value: c_int) -> io::Result<()> {
    // SAFETY: the pointer is to an `int` that outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), op, &raw const value) })
}

/// Carries out `op`, which must be one that takes its argument by value.
pub(crate) fn by_value(fd: BorrowedFd<'_>, op: libc::Ioctl, value: c_ulong) -> io::Result<()> {
    // SAFETY: the kernel takes the argument as a number and follows no pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), op, value) })
}

pub(crate) fn check(ret: c_int) -> io::Result<()> {
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
