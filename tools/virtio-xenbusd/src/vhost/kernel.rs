// SPDX-License-Identifier: GPL-2.0-or-later
//! The kernel's vhost devices.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::{ioctl_read, ioctl_write_ptr, libc};
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{VHOST, vhost_vring_file};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{POOL_START, Pool};

// Those of linux/vhost.h that the vhost crate needs memory for, or has for one device only.
ioctl_read!(get_features, VHOST, 0x00, u64);
ioctl_write_ptr!(net_set_backend, VHOST, 0x30, vhost_vring_file);
ioctl_write_ptr!(vsock_set_guest_cid, VHOST, 0x60, u64);
ioctl_write_ptr!(vsock_set_running, VHOST, 0x61, libc::c_int);

/// A vhost device that has not been given memory yet.
pub struct Unbound(File);

/// A vhost device of a guest. It works in a kernel thread of its own, with this process's memory,
/// until it is dropped.
pub struct Kernel {
    file: File,
    memory: Arc<Pool>,
}

impl Unbound {
    /// Opens `path`, and with that one more device.
    pub fn open(path: &str) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK);
        Ok(Self(options.open(path)?))
    }

    /// The features that it has.
    pub fn features(&self) -> Result<u64> {
        let mut features = 0;
        // SAFETY: The request writes 64 bits, which there is room for.
        unsafe { get_features(self.0.as_raw_fd(), &raw mut features) }?;
        Ok(features)
    }

    /// Sets the address of the guest whose sockets these are.
    pub fn set_guest_cid(&self, cid: u32) -> io::Result<()> {
        let cid = u64::from(cid);
        // SAFETY: The request reads 64 bits, which these are.
        unsafe { vsock_set_guest_cid(self.0.as_raw_fd(), &raw const cid) }?;
        Ok(())
    }

    /// Gives it the guest's memory.
    pub fn bind(self, memory: &Pool) -> Result<Kernel> {
        let kernel = Kernel {
            file: self.0,
            memory: Arc::new(memory.clone()),
        };
        let len = memory.iter().map(GuestMemoryRegion::len).sum();
        let start = memory.get_host_address(POOL_START)?;
        kernel.set_owner().context("VHOST_SET_OWNER")?;
        kernel
            .set_mem_table(&[VhostUserMemoryRegionInfo {
                guest_phys_addr: POOL_START.0,
                memory_size: len,
                userspace_addr: start.expose_provenance() as u64,
                ..VhostUserMemoryRegionInfo::default()
            }])
            .context("VHOST_SET_MEM_TABLE")?;
        Ok(kernel)
    }
}

impl Kernel {
    /// Has queue `index` work with a queue of a tap, or stop. When it has stopped, nothing of it
    /// touches the guest's memory any more.
    pub fn set_tap(&self, index: u32, tap: Option<&tap::Queue>) -> io::Result<()> {
        let fd = tap.map_or(-1, |tap| tap.as_fd().as_raw_fd());
        let file = vhost_vring_file { index, fd };
        // SAFETY: The request reads a `struct vhost_vring_file`, which this is.
        unsafe { net_set_backend(self.file.as_raw_fd(), &raw const file) }?;
        Ok(())
    }

    /// Has both queues of the sockets work, or stop. When they have stopped, nothing of them
    /// touches the guest's memory any more.
    pub fn set_running(&self, running: bool) -> io::Result<()> {
        let running = libc::c_int::from(running);
        // SAFETY: The request reads an `int`, which this is.
        unsafe { vsock_set_running(self.file.as_raw_fd(), &raw const running) }?;
        Ok(())
    }
}

impl VhostKernBackend for Kernel {
    type AS = Arc<Pool>;

    fn mem(&self) -> &Arc<Pool> {
        &self.memory
    }

    /// They are: the areas of a [`super::vring::Vring`] have been checked. The crate's own check
    /// refuses a ring that ends with the pool.
    fn is_valid(&self, _config: &VringConfigData) -> bool {
        true
    }
}

impl AsRawFd for Kernel {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
