// SPDX-License-Identifier: GPL-2.0-or-later
//! The file or block device behind a disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::aio::{DirectAlignment, direct_alignment};
use super::{SECTOR, SERIAL_SIZE, Settings, claim};

/// Bytes that are copied at once where the guest's memory cannot be used as it is.
pub const CHUNK: usize = 64 << 10;

/// What the bounce buffer and its parts are aligned to, enough for every disk.
const CHUNK_ALIGNMENT: usize = 4096;

/// An open disk.
pub struct Disk {
    path: PathBuf,
    file: File,
    sectors: u64,
    readonly: bool,
    block_size: u32,
    physical_block_size: u32,
    discard: bool,
    serial: [u8; SERIAL_SIZE],
    /// How buffers must be aligned, if the file is open for direct I/O.
    direct: Option<DirectAlignment>,
    in_memory: bool,
    poll: Duration,
    /// A completed write may be lost until the next flush.
    pub writeback: AtomicBool,
}

impl Disk {
    /// Opens what `settings` say, for the one device whose number is `user`.
    ///
    /// # Errors
    ///
    /// The message names the path and what is wrong with it.
    pub fn open(settings: &Settings, serial: [u8; SERIAL_SIZE], user: u64) -> Result<Self> {
        let path = settings.path.clone().context("no path is given")?;
        Self::open_path(&path, settings, serial, user)
            .with_context(|| format!("disk {}", path.display()))
    }

    fn open_path(
        path: &Path,
        settings: &Settings,
        serial: [u8; SERIAL_SIZE],
        user: u64,
    ) -> Result<Self> {
        ensure!(path.is_absolute(), "the path must begin with /");
        let readonly = settings.readonly.unwrap_or(false);
        let block_size = settings.logical_block_size.map_or(512, |size| size.0);

        // Look first: opening a pipe would wait.
        let metadata = fs::metadata(path).map_err(io_error)?;
        let kind = metadata.file_type();
        ensure!(
            !kind.is_dir(),
            "it is a directory; a disk is a file or a block device"
        );
        ensure!(
            kind.is_file() || kind.is_block_device(),
            "it is no file and no block device"
        );

        let (mut file, direct) = open_file(path, readonly, block_size, settings.direct)?;
        claim::claim(&file, user)?;
        let size = file.seek(SeekFrom::End(0)).map_err(io_error)?;
        let blocks = size / u64::from(block_size);
        ensure!(
            blocks > 0,
            "its size of {size} bytes is less than a block of {block_size}"
        );
        let tail = size % u64::from(block_size);
        if tail != 0 {
            log::warn!(
                "disk {}: the last {tail} bytes are no full block and are left out",
                path.display()
            );
        }
        // Of a block device that would be the file system of its node.
        let in_memory = kind.is_file() && is_in_memory(&file)?;
        let physical = u32::try_from(metadata.blksize()).unwrap_or(0);
        Ok(Self {
            path: path.into(),
            file,
            sectors: blocks * (u64::from(block_size) / SECTOR),
            readonly,
            block_size,
            physical_block_size: if physical.is_power_of_two() {
                physical
            } else {
                block_size
            },
            discard: settings.discard.unwrap_or(true) && !readonly,
            serial,
            direct,
            in_memory,
            poll: Duration::from_micros(settings.poll_us.map_or(0, |time| time.0)),
            writeback: AtomicBool::new(true),
        })
    }

    /// One line for the log.
    pub fn describe(&self) -> String {
        format!(
            "disk {}, {} sectors, {}, {}",
            self.path.display(),
            self.sectors,
            if self.readonly {
                "read-only"
            } else {
                "read-write"
            },
            if self.direct.is_some() {
                "direct"
            } else {
                "through the page cache"
            }
        )
    }

    /// Capacity in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether writes are refused.
    pub fn readonly(&self) -> bool {
        self.readonly
    }

    /// Whether discarded ranges are given back to the file system.
    pub fn can_discard(&self) -> bool {
        self.discard
    }

    /// Bytes of a logical block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Bytes of what the file system works with.
    pub fn physical_block_size(&self) -> u32 {
        self.physical_block_size
    }

    /// The serial number, filled up with zeroes.
    pub fn serial(&self) -> &[u8; SERIAL_SIZE] {
        &self.serial
    }

    /// The path, for the log.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, open for what the guest may do.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Fills `buffer` from byte `offset` on.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self.file.read_exact_at(buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(io::Error::new(
                error.kind(),
                "the file ends before that: it is shorter than it was when it was opened",
            )),
            result => result,
        }
    }

    /// Whether I/O goes past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Whether I/O may use memory at `address` for `len` bytes.
    pub fn suits(&self, address: usize, len: usize) -> bool {
        match self.direct {
            None => true,
            Some(alignment) => {
                address % alignment.memory == 0 && len % alignment.memory.max(alignment.offset) == 0
            }
        }
    }

    /// Whether reads and writes of the file never wait for a device.
    ///
    /// Such a file system (tmpfs) does not tell the kernel's io_uring so, which would therefore
    /// give each I/O to another thread.
    pub fn in_memory(&self) -> bool {
        self.in_memory
    }

    /// How long to look for a request before sleeping.
    pub fn poll(&self) -> Duration {
        self.poll
    }

    /// Whether a completed write may be lost until the next flush.
    pub fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    /// Sets [`Disk::writeback`].
    pub fn set_writeback(&self, writeback: bool) -> io::Result<()> {
        self.writeback.store(writeback, Ordering::Relaxed);
        match writeback {
            true => Ok(()),
            // What has been written until now is on the disk, too.
            false => self.file.sync_data(),
        }
    }

    /// Writes `len` zeroes at `offset`, for files that cannot do it at once.
    pub fn write_zeroes(&self, bounce: &mut Bounce, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = offset;

        bounce.part(CHUNK).fill(0);
        while at < end {
            let part = bounce.part(usize::try_from(end - at).unwrap_or(CHUNK));
            self.file.write_all_at(part, at)?;
            at += part.len() as u64;
        }
        self.settle()
    }

    /// After writes without the ring: makes them durable if they have to be.
    pub fn settle(&self) -> io::Result<()> {
        match self.writeback() {
            true => Ok(()),
            false => self.file.sync_data(),
        }
    }
}

fn is_in_memory(file: &File) -> Result<bool> {
    let kind = fstatfs(file).map_err(|errno| io_error(errno.into()))?;
    Ok(kind.filesystem_type() == TMPFS_MAGIC)
}

/// Opens the file, for direct I/O if it can be and is not forbidden.
fn open_file(
    path: &Path,
    readonly: bool,
    block_size: u32,
    direct: Option<bool>,
) -> Result<(File, Option<DirectAlignment>)> {
    let open = |flags: i32| {
        OpenOptions::new()
            .read(true)
            .write(!readonly)
            .custom_flags(flags)
            .open(path)
    };

    if direct != Some(false) {
        let reason = match open(libc::O_DIRECT) {
            Ok(file) => {
                let alignment = direct_alignment(&file, block_size)?;
                match alignment {
                    None => "its file system cannot".into(),
                    Some(DirectAlignment { offset, .. }) if offset > block_size as usize => {
                        format!("that needs logical-block-size = {offset}")
                    }
                    Some(DirectAlignment { memory, .. }) if memory > CHUNK_ALIGNMENT => {
                        format!("that needs buffers aligned to {memory} bytes")
                    }
                    Some(alignment) => return Ok((file, Some(alignment))),
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                "its file system cannot".into()
            }
            Err(error) => return Err(io_error(error)),
        };
        if direct == Some(true) {
            bail!("no direct I/O, which `direct = true` asks for: {reason}");
        }
        log::info!(
            "disk {}: goes through the page cache, not direct: {reason}",
            path.display()
        );
    }
    Ok((open(0).map_err(io_error)?, None))
}

/// A buffer for what cannot be done in the guest's memory.
pub struct Bounce {
    memory: Vec<u8>,
    start: usize,
}

impl Bounce {
    /// A buffer of [`CHUNK`] bytes, which direct I/O can use.
    pub fn new() -> Self {
        let memory = vec![0; CHUNK + CHUNK_ALIGNMENT];
        let start = memory.as_ptr().align_offset(CHUNK_ALIGNMENT);
        Self { memory, start }
    }

    /// The buffer, or `len` bytes of it if that is less.
    pub fn part(&mut self, len: usize) -> &mut [u8] {
        let tail = self.memory.get_mut(self.start..).unwrap_or_default();
        tail.get_mut(..len.min(CHUNK)).unwrap_or_default()
    }
}

/// The error in an administrator's words.
fn io_error(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::NotFound => anyhow!("there is no such file"),
        io::ErrorKind::PermissionDenied => anyhow!("the daemon may not open it: {error}"),
        io::ErrorKind::ReadOnlyFilesystem => anyhow!("it can be used read-only only: {error}"),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(path: &str) -> String {
        let settings = Settings {
            path: Some(path.into()),
            ..Settings::default()
        };
        match Disk::open(&settings, [0; SERIAL_SIZE], 0) {
            Ok(_) => panic!("{path} was opened"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn refuses_what_is_no_disk() {
        assert!(error("/").contains("directory"));
        assert!(error("/dev/null").contains("no block device"));
        assert!(error("relative").contains("must begin with /"));
        let missing = error("/nonexistent/disk.img");
        assert!(missing.contains("/nonexistent/disk.img") && missing.contains("no such file"));
    }

    #[test]
    fn bounce_is_aligned() {
        let mut bounce = Bounce::new();
        let chunk = bounce.part(usize::MAX);
        assert_eq!(chunk.len(), CHUNK);
        assert_eq!(chunk.as_ptr().align_offset(CHUNK_ALIGNMENT), 0);
    }
}
