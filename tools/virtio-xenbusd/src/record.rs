// SPDX-License-Identifier: GPL-2.0-or-later
//! What a daemon must know of a connected device when its predecessor has died, and what the
//! memory shared with the frontend does not tell.
//!
//! It is a file in memory, mapped: whatever ends the process, what was stored until then is there.
//! Each is for one connection of one device. The control page has the connection's number, and
//! only the record with that number is believed.
//!
//! One thread writes each part, and what it has stored is seen in the order of its program: a
//! process that ends does not end between a store and an earlier one. All stores are *release*, so
//! that the compiler keeps the order, too.

mod queue;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use nix::fcntl::{FallocateFlags, fallocate};
use vm_memory::{Bytes, VolatileMemory};
use xen::{Mapping, PAGE_SIZE};

pub use self::queue::Taken;
use crate::keys::Node;

/// Where records are: not on a disk, as they are worth nothing after a reboot.
const DIRECTORY: &str = "/run/virtio-xenbusd/connections";

/// What a record begins with: "VXR" and the number of this layout. A daemon of another layout does
/// not believe it.
const MAGIC: u32 = u32::from_le_bytes(*b"VXR\x01");

/// Where in the first page what is.
const MAGIC_AT: usize = 0;
const NUMBER_AT: usize = 4;
const WORDS_AT: usize = 8;

/// Words that a device may keep something in.
const WORDS: usize = 4;

/// A connection's record.
pub struct Record {
    memory: Arc<Mapping>,
    /// There was one.
    found: bool,
}

/// Something that a device keeps for the next daemon: [`WORDS`] numbers, 0 at first.
#[derive(Clone, Debug)]
pub struct Kept(Arc<Mapping>);

/// Where the record of `node` is.
pub fn path(node: Node) -> PathBuf {
    Path::new(DIRECTORY).join(node.short_name())
}

/// Removes the records of those devices that are not `alive`.
pub fn clean(alive: impl Fn(Node) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(DIRECTORY) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let node = name.to_str().and_then(Node::of_short_name);
        if !node.is_some_and(&alive) {
            fs::remove_file(Path::new(DIRECTORY).join(name))?;
        }
    }
    Ok(())
}

/// Removes the record of `node`, which has no connection any more.
pub fn remove(node: Node) {
    let path = path(node);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            log::warn!("{}: {error}", path.display());
        }
        _ => (),
    }
}

impl Record {
    /// The record of connection `number` at `path`, or a new one of another number, which is to be
    /// committed.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn open(path: &Path, number: u32, queues: usize) -> Result<Self> {
        let at = || format!("the connection's record {}", path.display());
        if number != 0 {
            let found = Self::find(path, number, queues).with_context(at)?;
            if let Some(record) = found {
                return Ok(record);
            }
        }
        Self::create(path, queues).with_context(at)
    }

    fn find(path: &Path, number: u32, queues: usize) -> io::Result<Option<Self>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let record = Self {
            memory: map(&file, queues)?,
            found: true,
        };
        let fits = record.load(MAGIC_AT)? == MAGIC && record.load(NUMBER_AT)? == number;
        Ok(fits.then_some(record))
    }

    fn create(path: &Path, queues: usize) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        // A new file: whoever has mapped the former one keeps that.
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        let record = Self {
            memory: map(&options.open(path)?, queues)?,
            found: false,
        };
        let mut number = [0; 4];
        File::open("/dev/urandom")?.read_exact(&mut number)?;
        // 0 is none.
        record.store(u32::from_ne_bytes(number).max(1), NUMBER_AT)?;
        Ok(record)
    }

    /// From now on the next daemon believes it.
    pub fn commit(&self) -> io::Result<()> {
        self.store(MAGIC, MAGIC_AT)
    }

    /// One that ends with this process.
    #[cfg(test)]
    pub fn volatile(queues: usize) -> Self {
        Self {
            memory: Arc::new(Mapping::anonymous(len(queues)).unwrap()),
            found: false,
        }
    }

    /// The connection's number, not 0.
    pub fn number(&self) -> io::Result<u32> {
        self.load(NUMBER_AT)
    }

    /// Whether it is that of a daemon before this one.
    pub fn was_found(&self) -> bool {
        self.found
    }

    /// What the device keeps.
    pub fn kept(&self) -> Kept {
        Kept(Arc::clone(&self.memory))
    }

    /// The buffers that queue `index` works on.
    pub fn taken(&self, index: u16) -> Taken {
        Taken::new(
            Arc::clone(&self.memory),
            PAGE_SIZE + usize::from(index) * queue::STRIDE,
        )
    }

    fn load(&self, at: usize) -> io::Result<u32> {
        self.memory
            .get_slice(at, 4)
            .and_then(|place| place.load(0, Ordering::Acquire))
            .map_err(io::Error::other)
    }

    fn store(&self, value: u32, at: usize) -> io::Result<()> {
        self.memory
            .get_slice(at, 4)
            .and_then(|place| place.store(value, 0, Ordering::Release))
            .map_err(io::Error::other)
    }
}

impl Kept {
    /// Word `index`.
    pub fn get(&self, index: usize) -> u64 {
        let place = self.0.get_slice(WORDS_AT + 8 * index, 8);
        place
            .and_then(|place| place.load(0, Ordering::Acquire))
            .unwrap_or_default()
    }

    /// Sets word `index`.
    pub fn set(&self, index: usize, value: u64) {
        debug_assert!(index < WORDS);
        let place = self.0.get_slice(WORDS_AT + 8 * index, 8);
        // The page is long enough.
        let _ = place.and_then(|place| place.store(value, 0, Ordering::Release));
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for index in 0..WORDS {
            self.set(index, 0);
        }
    }
}

/// Bytes of a record.
fn len(queues: usize) -> usize {
    (PAGE_SIZE + queues * queue::STRIDE).next_multiple_of(PAGE_SIZE)
}

/// Maps a record, which has memory then.
fn map(file: &File, queues: usize) -> io::Result<Arc<Mapping>> {
    let len = len(queues);
    // Now, not when it is stored to: there may be none then.
    let size = i64::try_from(len).map_err(io::Error::other)?;
    fallocate(file, FallocateFlags::empty(), 0, size)?;
    let pages: Vec<u64> = (0..).take(len / PAGE_SIZE).collect();
    Ok(Arc::new(Mapping::of_file(file.as_fd(), &pages, true)?))
}
