// SPDX-License-Identifier: GPL-2.0-or-later
//! What a guest shares beside its pool, where there is no Xen.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::VolatileSlice;
use xen::{GrantAddress, Mapping, PAGE_SIZE};

use crate::memory::{Access, Frames, Grants, Sharing};

/// The first reference; those from the middle on are read-only.
pub const FIRST: u64 = 1000;

/// Granted pages.
pub struct FakeGrants {
    pages: Mutex<Vec<u8>>,
}

impl FakeGrants {
    /// `count` pages of zeroes.
    pub fn new(count: usize) -> Arc<Self> {
        let pages = Mutex::new(vec![0; count * PAGE_SIZE]);
        Arc::new(Self { pages })
    }

    pub fn sharing(self: &Arc<Self>) -> Sharing {
        Sharing::Grants(Arc::clone(self) as _)
    }

    /// The address of byte `offset` of the pages, for descriptors.
    pub fn at(offset: u64) -> u64 {
        (1 << 63) | (FIRST * PAGE_SIZE as u64 + offset)
    }

    pub fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        self.pages.lock().unwrap()[offset..offset + len].to_vec()
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.pages.lock().unwrap()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

impl Grants for FakeGrants {
    fn copy<'a>(
        &'a self,
        access: Access,
        pieces: &mut dyn Iterator<Item = (GrantAddress, VolatileSlice<'a>)>,
    ) -> io::Result<()> {
        let mut pages = self.pages.lock().unwrap();
        let writable = pages.len() / 2;
        for (GrantAddress(address), local) in pieces {
            let start = (address as usize).wrapping_sub(FIRST as usize * PAGE_SIZE);
            let end = start.wrapping_add(local.len());
            let range = start..end;
            match access {
                Access::Read => {
                    let bytes = pages.get(range).ok_or(io::ErrorKind::PermissionDenied)?;
                    local.copy_from(bytes);
                }
                Access::Write => {
                    let bytes = pages.get_mut(..writable).and_then(|p| p.get_mut(range));
                    local.copy_to(bytes.ok_or(io::ErrorKind::PermissionDenied)?);
                }
            }
        }
        Ok(())
    }
}

/// All of a guest's memory.
pub struct FakeFrames {
    memory: File,
    count: u64,
    stay: bool,
    /// Pages of each call.
    pub calls: Mutex<Vec<usize>>,
}

impl FakeFrames {
    /// `count` pages of zeroes. With `stay`, frames do not become other pages.
    pub fn new(count: u64, stay: bool) -> Arc<Self> {
        let name = c"guest";
        let memory = memfd_create(name, MFdFlags::MFD_CLOEXEC).unwrap();
        let memory = File::from(memory);
        memory.set_len(count * PAGE_SIZE as u64).unwrap();
        Arc::new(Self {
            memory,
            count,
            stay,
            calls: Mutex::default(),
        })
    }

    pub fn sharing(self: &Arc<Self>) -> Sharing {
        Sharing::Frames(Arc::clone(self) as _)
    }

    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, offset).unwrap();
    }
}

impl Frames for FakeFrames {
    fn map(&self, frames: &[u64], writable: bool) -> io::Result<Mapping> {
        if frames.iter().any(|&frame| frame >= self.count) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.calls.lock().unwrap().push(frames.len());
        Mapping::of_file(self.memory.as_fd(), frames, writable)
    }

    fn stay(&self) -> bool {
        self.stay
    }
}
