// SPDX-License-Identifier: GPL-2.0-or-later
//! Waits for the I/O of a daemon that has died.
//!
//! The kernel goes on with I/O of io_uring when the process ends, and nobody waits for it: what an
//! earlier daemon has begun may write to the disk, or to the guest's memory, when the guest has
//! been told that the same request of the next daemon is done. But such I/O holds the open file,
//! and so does the file's lock, which goes only with the file. It is a lock on a byte far behind
//! any disk's end, another one for each device, that many can have: devices may share a file, and
//! it may be open for reading only.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, fcntl};

/// Where the bytes of devices are.
const START: i64 = 1 << 62;

/// How long to wait before others get their turn: I/O takes no longer, mostly.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between two looks. There is no event for that: who would wait for the lock must have the file
/// open for writing.
const LOOK: Duration = Duration::from_millis(5);

/// I/O of an earlier daemon on the disk has not ended.
#[derive(Debug)]
pub struct Busy;

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("still waiting for I/O of an earlier daemon to end")
    }
}

impl std::error::Error for Busy {}

/// Claims `file` for the device with number `user`, when no I/O of an earlier daemon uses it.
///
/// # Errors
///
/// [`Busy`], or the file cannot be locked.
pub fn claim(file: &File, user: u64) -> Result<()> {
    let begin = Instant::now();
    while is_claimed(file, user)? {
        if begin.elapsed() > PATIENCE {
            return Err(Busy.into());
        }
        thread::sleep(LOOK);
    }
    fcntl(
        file.as_fd(),
        FcntlArg::F_OFD_SETLK(&lock(libc::F_RDLCK, user)?),
    )
    .context("cannot lock it, as is done to know when I/O of an earlier daemon has ended")?;
    Ok(())
}

/// Whether another open file has the lock.
fn is_claimed(file: &File, user: u64) -> Result<bool> {
    // That nobody has one is the condition for a lock to write.
    let mut lock = lock(libc::F_WRLCK, user)?;
    fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock)).context("cannot look for its locks")?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

fn lock(kind: libc::c_int, user: u64) -> Result<libc::flock> {
    Ok(libc::flock {
        // CAST: Small constants.
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: START + i64::try_from(user)?,
        l_len: 1,
        l_pid: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_for_each_device() {
        let path = std::env::temp_dir().join(format!("vxb-claim-{}", std::process::id()));
        std::fs::write(&path, "x").unwrap();
        let open = || File::open(&path).unwrap();
        let first = open();
        claim(&first, 1).unwrap();
        // Again, and another device.
        claim(&first, 1).unwrap();
        claim(&open(), 2).unwrap();
        let second = open();
        assert!(is_claimed(&second, 1).unwrap());
        assert!(claim(&second, 1).unwrap_err().is::<Busy>());

        // A copy of the descriptor, as I/O has one.
        let copy = first.try_clone().unwrap();
        drop(first);
        assert!(is_claimed(&second, 1).unwrap());
        let ended = thread::spawn(move || {
            thread::sleep(LOOK * 3);
            drop(copy);
        });
        claim(&second, 1).unwrap();
        ended.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
