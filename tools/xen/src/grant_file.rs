// SPDX-License-Identifier: GPL-2.0-or-later
//! Granted memory that another process maps.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::DomainId;

/// `IOCTL_GNTDEV_MAP_GRANT_REF`, with the size of a `struct ioctl_gntdev_map_grant_ref` of one
/// reference in it.
const MAP_GRANT_REF: libc::Ioctl = (24 << 16) | ((b'G' as libc::Ioctl) << 8);

/// Makes a file of the pages that `references` of `domain` name, readable and writable, side by
/// side, for a process that gets the descriptor and maps them, from the beginning and all.
///
/// The grant device maps such a file once: to map it here takes the memory from the process that
/// it was made for. The grants are mapped from that process's mmap on until it unmaps them or
/// ends, whatever becomes of the descriptor.
///
/// # Errors
///
/// There is no grant device, or they are too many for it. Whether Xen accepts the references
/// shows when the file is mapped.
pub fn grant_file(domain: DomainId, references: &[u32]) -> io::Result<OwnedFd> {
    let count = u32::try_from(references.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open("/dev/xen/gntdev")?;

    // Number and padding; an index of 64 bits, which comes back; domain and reference of each
    // page.
    let mut request = vec![count, 0, 0, 0];
    request.extend(
        references
            .iter()
            .flat_map(|&reference| [domain.into(), reference]),
    );
    // SAFETY: `request` is a `struct ioctl_gntdev_map_grant_ref` with `count` references; the
    // kernel copies these, wherever they are, and writes only to the fields before them.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), MAP_GRANT_REF, request.as_mut_ptr()) };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    // The first one of a device just opened is at its beginning.
    match request.get(2..4) {
        Some([0, 0]) => Ok(file.into()),
        _ => Err(io::Error::other(
            "the grant device has put the memory elsewhere",
        )),
    }
}
