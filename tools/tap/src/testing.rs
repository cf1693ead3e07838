// SPDX-License-Identifier: GPL-2.0-or-later
//! What tests with real taps need besides them. They run as root.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use crate::ioctl::{self, Value};
use crate::{Links, Name};

/// Moves the calling thread, and those it starts, to a network namespace of its own, with
/// nothing but its bridge `name` and the loopback interface.
pub fn namespace_with_bridge(name: &Name) -> io::Result<Links> {
    const SIOCBRADDBR: libc::Ioctl = 0x89a0;

    // SAFETY: no memory is shared with the kernel.
    ioctl::check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    // Nobody but the test shall send.
    for (key, value) in [
        ("ipv4/igmp_link_local_mcast_reports", "0"),
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
    ] {
        match fs::write(format!("/proc/sys/net/{key}"), value) {
            // A kernel without IPv6 has no such keys.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
    }
    let links = Links::new()?;
    let text = name.to_ifreq();
    // SAFETY: the request takes a pointer to IFNAMSIZ bytes and only reads them.
    ioctl::check(unsafe { libc::ioctl(links.as_fd().as_raw_fd(), SIOCBRADDBR, &raw const text) })?;
    links.set_up(name)?;
    Ok(links)
}

/// Whether packets pass the interface: the kernel lets them some time after there is a carrier.
pub fn is_running(links: &Links, name: &Name) -> io::Result<bool> {
    let answer = ioctl::interface(links.as_fd(), libc::SIOCGIFFLAGS, name, Value::Nothing)?;
    // Whoever sets the flag holds a lock until packets pass, and so does this.
    links.set_up(name)?;
    Ok(ioctl::flags(&answer) & libc::IFF_RUNNING != 0)
}

/// Sets the interface down.
pub fn set_down(links: &Links, name: &Name) -> io::Result<()> {
    ioctl::interface(links.as_fd(), libc::SIOCSIFFLAGS, name, Value::Flags(0)).map(|_| ())
}
