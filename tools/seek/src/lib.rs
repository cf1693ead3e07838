// SPDX-License-Identifier: GPL-2.0-or-later
//! A library to preload (`LD_PRELOAD`) into vhost-user programs that seek to the end of a file to
//! learn its size before they map it: those made with vm-memory before 0.17, virtiofsd 1.13 among
//! them. The grant device, whose descriptor virtio-xenbusd gives them, can be mapped but has no
//! place to seek to. Here it has: its end is beyond every size. What cannot be mapped fails when
//! it is.

use std::ffi::CStr;
use std::sync::OnceLock;

use libc::{c_int, dev_t, off64_t, stat};

const DEVICE: &CStr = c"/dev/xen/gntdev";

/// Where the grant device ends.
const END: off64_t = off64_t::MAX;

/// The number of the grant device. It is looked for when the library is loaded: later the program
/// may have changed its root.
static NUMBER: OnceLock<Option<dev_t>> = OnceLock::new();

/// The loader calls this.
// SAFETY: What is in this section is a pointer to a function that the loader may call.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    NUMBER.get_or_init(|| {
        // SAFETY: `struct stat` is integers.
        let mut status: stat = unsafe { std::mem::zeroed() };
        // SAFETY: The path is a C string, and there is room for a `struct stat`.
        let found = unsafe { libc::stat(DEVICE.as_ptr(), &raw mut status) } == 0;
        found.then_some(status.st_rdev)
    });
}

/// Whether `fd` is the grant device.
fn is_grant_device(fd: c_int) -> bool {
    // SAFETY: `struct stat` is integers.
    let mut status: stat = unsafe { std::mem::zeroed() };
    // SAFETY: There is room for a `struct stat`.
    let known = unsafe { libc::fstat(fd, &raw mut status) } == 0;
    known
        && status.st_mode & libc::S_IFMT == libc::S_IFCHR
        && NUMBER.get().copied().flatten() == Some(status.st_rdev)
}

/// lseek(2), and for the grant device what a very long file says.
fn seek(fd: c_int, offset: off64_t, whence: c_int) -> off64_t {
    // SAFETY: The system call uses no memory of ours.
    let place = unsafe { libc::syscall(libc::SYS_lseek, fd, offset, whence) };
    if place != -1 || !is_grant_device(fd) {
        return place;
    }
    match whence {
        libc::SEEK_END => END,
        _ => offset,
    }
}

/// The C library's function of this name.
// SAFETY: It has that function's arguments and meaning.
#[unsafe(no_mangle)]
pub extern "C" fn lseek(fd: c_int, offset: off64_t, whence: c_int) -> off64_t {
    seek(fd, offset, whence)
}

/// The C library's function of this name.
// SAFETY: It has that function's arguments and meaning.
#[unsafe(no_mangle)]
pub extern "C" fn lseek64(fd: c_int, offset: off64_t, whence: c_int) -> off64_t {
    seek(fd, offset, whence)
}
