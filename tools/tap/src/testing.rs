// SPDX-License-Identifier: GPL-2.0-or-later
//! What tests with real taps need besides them. They run as root.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use crate::ioctl::{self, Value};
use crate::link::socket;
use crate::{Links, Name};

/// Moves the calling thread, and those it starts, to a network namespace of its own, with
/// nothing but its bridge `name` and the loopback interface.
pub fn namespace_with_bridge(name: &Name) -> io::Result<Links> {
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
    bridge(&links, SIOCBRADDBR, name)?;
    links.set_up(name)?;
    Ok(links)
}

/// Requests of `linux/sockios.h`.
const SIOCBRADDBR: libc::Ioctl = 0x89a0;
const SIOCBRDELBR: libc::Ioctl = 0x89a1;
const SIOCBRDELIF: libc::Ioctl = 0x89a3;

/// Makes or removes a bridge.
fn bridge(links: &Links, op: libc::Ioctl, name: &Name) -> io::Result<()> {
    let text = name.to_ifreq();
    // SAFETY: the request takes a pointer to IFNAMSIZ bytes and only reads them.
    ioctl::check(unsafe { libc::ioctl(links.as_fd().as_raw_fd(), op, &raw const text) })
}

/// Removes a bridge, and makes another one of its name.
pub fn replace_bridge(links: &Links, name: &Name) -> io::Result<()> {
    set_down(links, name)?;
    bridge(links, SIOCBRDELBR, name)?;
    bridge(links, SIOCBRADDBR, name)?;
    links.set_up(name)
}

/// Takes a port out of its bridge, in which it must be.
pub fn remove_port(links: &Links, bridge: &Name, port: i32) -> io::Result<()> {
    ioctl::interface(links.as_fd(), SIOCBRDELIF, bridge, Value::Int(port)).map(|_| ())
}

/// Removes an interface.
pub fn remove(links: &Links, name: &Name) -> io::Result<()> {
    /// A message of rtnetlink that names an interface.
    #[repr(C)]
    struct Request {
        header: libc::nlmsghdr,
        family: u8,
        kind: u16,
        index: i32,
        flags: u32,
        change: u32,
    }
    let mut request = Request {
        header: libc::nlmsghdr {
            nlmsg_len: size_of::<Request>() as u32,
            nlmsg_type: libc::RTM_DELLINK,
            nlmsg_flags: (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16,
            nlmsg_seq: 0,
            nlmsg_pid: 0,
        },
        family: libc::AF_UNSPEC as u8,
        kind: 0,
        index: links.index(name)?,
        flags: 0,
        change: 0,
    };
    let socket = socket(libc::AF_NETLINK, libc::NETLINK_ROUTE)?;
    // SAFETY: the message is as long as its type.
    let sent = unsafe {
        libc::send(
            socket.as_raw_fd(),
            (&raw mut request).cast(),
            size_of::<Request>(),
            0,
        )
    };
    // The kernel has carried it out when it has taken it.
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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
