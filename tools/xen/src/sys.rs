// SPDX-License-Identifier: GPL-2.0-or-later
//! What is used of `xenstore.h`, `xenevtchn.h`, `xengnttab.h` and `xenforeignmemory.h`.

use std::{fmt, ptr};

use libc::{c_char, c_int, c_uint, c_ulong, c_void};

#[repr(C)]
pub struct XsHandle {
    _opaque: [u8; 0],
}

#[repr(C)]
pub struct EvtchnHandle {
    _opaque: [u8; 0],
}

#[repr(C)]
pub struct GnttabHandle {
    _opaque: [u8; 0],
}

#[repr(C)]
pub struct ForeignMemoryHandle {
    _opaque: [u8; 0],
}

/// `struct xentoollog_logger`.
#[repr(C)]
pub struct Logger {
    vmessage: extern "C" fn(*mut Self, c_int, c_int, *const c_char, *const c_char, *mut c_void),
    progress: extern "C" fn(*mut Self, *const c_char, *const c_char, c_int, c_ulong, c_ulong),
    destroy: extern "C" fn(*mut Self),
}

extern "C" fn ignore_message(
    _logger: *mut Logger,
    _level: c_int,
    _errno: c_int,
    _context: *const c_char,
    _format: *const c_char,
    // A `va_list`, which is passed by address.
    _arguments: *mut c_void,
) {
}

extern "C" fn ignore_progress(
    _logger: *mut Logger,
    _context: *const c_char,
    _what: *const c_char,
    _percent: c_int,
    _done: c_ulong,
    _total: c_ulong,
) {
}

extern "C" fn ignore_destroy(_logger: *mut Logger) {}

/// Keeps the libraries from logging what a guest does wrong, without limit and beside the error
/// that they return.
static SILENT: Logger = Logger {
    vmessage: ignore_message,
    progress: ignore_progress,
    destroy: ignore_destroy,
};

/// A logger that logs nothing. It is not written to.
pub fn silent() -> *mut Logger {
    (&raw const SILENT).cast_mut()
}

/// The member `foreign` of `union xengnttab_copy_ptr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Foreign {
    pub reference: u32,
    pub offset: u16,
    pub domain: u16,
}

/// `union xengnttab_copy_ptr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub union CopyPointer {
    pub virt: *mut c_void,
    pub foreign: Foreign,
}

/// `struct xengnttab_grant_copy_segment`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GrantCopySegment {
    pub source: CopyPointer,
    pub dest: CopyPointer,
    pub len: u16,
    pub flags: u16,
    pub status: i16,
}

pub const GNTCOPY_SOURCE_GREF: u16 = 1 << 0;
pub const GNTCOPY_DEST_GREF: u16 = 1 << 1;

impl GrantCopySegment {
    /// A copy of no bytes.
    pub const NOTHING: Self = Self {
        source: CopyPointer {
            virt: ptr::null_mut(),
        },
        dest: CopyPointer {
            virt: ptr::null_mut(),
        },
        len: 0,
        flags: 0,
        status: 0,
    };

    /// The reference of the granted side.
    pub fn reference(&self) -> u32 {
        let foreign = match self.flags {
            GNTCOPY_SOURCE_GREF => self.source,
            _ => self.dest,
        };
        // SAFETY: Whatever is there, it is as long as `foreign`, of which all bits are values.
        unsafe { foreign.foreign.reference }
    }
}

impl fmt::Debug for GrantCopySegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, grant {}", self.len, self.reference())
    }
}

/// `struct xs_permissions`. The first of an array names the node's owner, and what all others may
/// do; each of the rest names another domain.
#[repr(C)]
pub struct XsPermissions {
    pub id: c_uint,
    pub perms: c_uint,
}

pub const XS_PERM_NONE: c_uint = 0;
pub const XS_PERM_READ: c_uint = 1;

/// The transaction of accesses outside any transaction.
pub const XBT_NULL: u32 = 0;

#[link(name = "xenstore")]
unsafe extern "C" {
    pub fn xs_open(flags: c_ulong) -> *mut XsHandle;
    pub fn xs_close(h: *mut XsHandle);
    pub fn xs_directory(
        h: *mut XsHandle,
        t: u32,
        path: *const c_char,
        num: *mut c_uint,
    ) -> *mut *mut c_char;
    pub fn xs_read(h: *mut XsHandle, t: u32, path: *const c_char, len: *mut c_uint) -> *mut c_void;
    pub fn xs_write(
        h: *mut XsHandle,
        t: u32,
        path: *const c_char,
        data: *const c_void,
        len: c_uint,
    ) -> bool;
    pub fn xs_rm(h: *mut XsHandle, t: u32, path: *const c_char) -> bool;
    pub fn xs_set_permissions(
        h: *mut XsHandle,
        t: u32,
        path: *const c_char,
        perms: *mut XsPermissions,
        num_perms: c_uint,
    ) -> bool;
    pub fn xs_watch(h: *mut XsHandle, path: *const c_char, token: *const c_char) -> bool;
    pub fn xs_fileno(h: *mut XsHandle) -> c_int;
    pub fn xs_check_watch(h: *mut XsHandle) -> *mut *mut c_char;
    pub fn xs_read_watch(h: *mut XsHandle, num: *mut c_uint) -> *mut *mut c_char;
    pub fn xs_transaction_start(h: *mut XsHandle) -> u32;
    pub fn xs_transaction_end(h: *mut XsHandle, t: u32, abort: bool) -> bool;
    pub fn xs_is_domain_introduced(h: *mut XsHandle, domid: c_uint) -> bool;
}

#[link(name = "xenevtchn")]
unsafe extern "C" {
    pub fn xenevtchn_open(logger: *mut Logger, flags: c_uint) -> *mut EvtchnHandle;
    pub fn xenevtchn_close(h: *mut EvtchnHandle) -> c_int;
    pub fn xenevtchn_fd(h: *mut EvtchnHandle) -> c_int;
    pub fn xenevtchn_notify(h: *mut EvtchnHandle, port: u32) -> c_int;
    pub fn xenevtchn_bind_interdomain(h: *mut EvtchnHandle, domid: u32, port: u32) -> c_int;
    pub fn xenevtchn_unbind(h: *mut EvtchnHandle, port: u32) -> c_int;
    pub fn xenevtchn_pending(h: *mut EvtchnHandle) -> c_int;
    pub fn xenevtchn_unmask(h: *mut EvtchnHandle, port: u32) -> c_int;
}

#[link(name = "xengnttab")]
unsafe extern "C" {
    pub fn xengnttab_open(logger: *mut Logger, flags: c_uint) -> *mut GnttabHandle;
    pub fn xengnttab_close(h: *mut GnttabHandle) -> c_int;
    pub fn xengnttab_map_domain_grant_refs(
        h: *mut GnttabHandle,
        count: u32,
        domid: u32,
        refs: *mut u32,
        prot: c_int,
    ) -> *mut c_void;
    pub fn xengnttab_unmap(h: *mut GnttabHandle, start: *mut c_void, count: u32) -> c_int;
    pub fn xengnttab_grant_copy(
        h: *mut GnttabHandle,
        count: u32,
        segs: *mut GrantCopySegment,
    ) -> c_int;
}

/// Of `xen/memory.h`.
pub const XENMEM_RESOURCE_GRANT_TABLE: c_uint = 1;
pub const XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED: c_uint = 0;

#[link(name = "xenforeignmemory")]
unsafe extern "C" {
    pub fn xenforeignmemory_open(
        logger: *mut Logger,
        open_flags: c_uint,
    ) -> *mut ForeignMemoryHandle;
    pub fn xenforeignmemory_close(fmem: *mut ForeignMemoryHandle) -> c_int;
    pub fn xenforeignmemory_map(
        fmem: *mut ForeignMemoryHandle,
        dom: u32,
        prot: c_int,
        pages: usize,
        // `xen_pfn_t`, an `unsigned long` on x86.
        arr: *const u64,
        err: *mut c_int,
    ) -> *mut c_void;
    pub fn xenforeignmemory_unmap(
        fmem: *mut ForeignMemoryHandle,
        addr: *mut c_void,
        pages: usize,
    ) -> c_int;
    pub fn xenforeignmemory_resource_size(
        fmem: *mut ForeignMemoryHandle,
        domid: u16,
        r#type: c_uint,
        id: c_uint,
        size: *mut usize,
    ) -> c_int;
}
