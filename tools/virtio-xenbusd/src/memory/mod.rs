// SPDX-License-Identifier: GPL-2.0-or-later
//! The memory that a guest's descriptors point to, and how the daemon gets at it.
//!
//! [`Pool`] is mapped throughout. What else the address mode allows is lent for a request:
//! [`Memory::lend`] puts local memory for buffers of any kind into [`Parts`], [`Memory::settle`]
//! brings what was written there to the guest, and clearing the parts ends the loan.

mod bounce;
mod frames;
mod grants;
mod parts;
mod pool;
mod segment;

use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::VolatileSlice;

use self::bounce::Bounce;
use self::frames::Cache;
pub use self::frames::{DomainFrames, Frames};
pub use self::grants::{DomainGrants, Grants};
pub use self::parts::Parts;
pub use self::pool::{POOL_START, Pool};
pub use self::segment::{Kind, Segment, parts, total};
use crate::stats::Stats;

/// What a device does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads it.
    Read,
    /// It writes it.
    Write,
}

/// What a frontend shares beside the pool: its address mode.
#[derive(Clone)]
pub enum Sharing {
    /// Nothing.
    Pool,
    /// What it has granted.
    Grants(Arc<dyn Grants>),
    /// All of its memory.
    Frames(Arc<dyn Frames>),
}

/// Why a buffer cannot be used.
#[derive(Debug)]
pub enum Fault {
    /// Its address is none of the mode's: the driver has broken its ring.
    Outside(Segment),
    /// The guest has not shared it.
    Refused(io::Error),
}

impl Fault {
    /// An error that cannot happen.
    pub fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Refused(io::Error::other(error))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside(Segment { address, len }) => {
                write!(f, "{len} bytes at {:#x} are outside ", address.0)?;
                match Kind::of(*address) {
                    Kind::Pool => f.write_str("the pool"),
                    Kind::Grant => f.write_str("the pool, and no grants of this address mode"),
                    Kind::Machine => f.write_str("the pool, and no frames of this address mode"),
                }
            }
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(error) => error,
            fault => Self::other(fault),
        }
    }
}

/// Whether buffers have been lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lent {
    /// They have.
    Yes,
    /// Others have what there is: when they are done.
    Later,
    /// They are more than there is: [`Memory::gather`] and [`Memory::scatter`] do it step by step.
    Never,
}

/// What a device needs of the memory that it is lent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    /// The most bytes that are lent as copies at a time.
    pub copies: usize,
    /// It must consist of pages that the kernel can do direct I/O on.
    pub pages: bool,
}

/// The way of one queue to its buffers.
pub struct Memory {
    pool: Pool,
    other: Other,
    /// Which buffers are lent as copies.
    copied: Copied,
    bounce: Bounce,
    /// Empty between calls.
    scratch: Parts,
    stats: Arc<Stats>,
}

/// What there is beside the pool.
enum Other {
    Nothing,
    Grants(Arc<dyn Grants>),
    Frames(Cache),
}

/// The kinds of buffers that are lent as copies.
#[derive(Clone, Copy)]
struct Copied {
    frames: bool,
}

impl Copied {
    fn has(self, segment: &Segment) -> bool {
        match segment.kind() {
            Kind::Pool => false,
            Kind::Grant => true,
            Kind::Machine => self.frames,
        }
    }
}

impl Memory {
    /// Buffers in `pool` and what else the frontend shares, for a device with these `needs`.
    pub fn new(
        pool: &Pool,
        sharing: &Sharing,
        needs: Needs,
        stats: &Arc<Stats>,
    ) -> io::Result<Self> {
        let (other, copies) = match sharing {
            Sharing::Pool => (Other::Nothing, 0),
            Sharing::Grants(grants) => (Other::Grants(Arc::clone(grants)), needs.copies),
            Sharing::Frames(frames) => (
                Other::Frames(Cache::new(frames, stats)),
                // Nobody can do direct I/O on another domain's memory that is not granted.
                if needs.pages { needs.copies } else { 0 },
            ),
        };
        Ok(Self {
            pool: pool.clone(),
            other,
            copied: Copied {
                frames: needs.pages,
            },
            bounce: Bounce::new(copies)?,
            scratch: Parts::new(pool),
            stats: Arc::clone(stats),
        })
    }

    /// What [`Memory::lend`] can add to.
    pub fn parts(&self) -> Parts {
        Parts::new(&self.pool)
    }

    /// Checks and counts a buffer of a descriptor, which is not empty.
    ///
    /// # Errors
    ///
    /// [`Fault::Outside`].
    pub fn check(&self, segment: Segment) -> Result<(), Fault> {
        let (inside, count) = match (segment.kind(), &self.other) {
            (Kind::Pool, _) => {
                let inside = self.pool.slice(segment).is_some();
                (inside, &self.stats.pool_buffers)
            }
            (Kind::Grant, Other::Grants(_)) => {
                (segment.has_references(), &self.stats.grant_buffers)
            }
            (Kind::Machine, Other::Frames(_)) => {
                (segment.has_frames(), &self.stats.machine_buffers)
            }
            _ => return Err(Fault::Outside(segment)),
        };
        if !inside {
            return Err(Fault::Outside(segment));
        }
        count.add(1);
        Ok(())
    }

    /// Adds local memory for `segments`, which have been checked and which the device accesses as
    /// `access` says, to `parts`.
    ///
    /// What the device reads must not be written; in what it writes there is anything before.
    /// Nothing has been added unless the answer is [`Lent::Yes`].
    pub fn lend(
        &mut self,
        segments: &[Segment],
        access: Access,
        parts: &mut Parts,
    ) -> Result<Lent, Fault> {
        let len = parts.len();
        let lent = self.try_lend(segments, access, parts);
        if !matches!(lent, Ok(Lent::Yes)) {
            parts.truncate(len);
        }
        lent
    }

    fn try_lend(
        &mut self,
        segments: &[Segment],
        access: Access,
        parts: &mut Parts,
    ) -> Result<Lent, Fault> {
        let is_copied = self.copied;
        let copied = segments.iter().copied();
        let copied = copied.filter(move |segment| is_copied.has(segment));
        let len = copied.clone().map(|segment| segment.len).sum();
        if len == 0 {
            if let Other::Frames(frames) = &mut self.other {
                return frames.lend(segments.iter().copied(), access, true, parts);
            }
            for segment in segments {
                parts.add_pool(*segment)?;
            }
            return Ok(Lent::Yes);
        }
        let run = match self.bounce.take(len) {
            Ok(run) => Rc::new(run),
            Err(lent) => return Ok(lent),
        };
        if access == Access::Read {
            let local = run.slice(0, len).map_err(Fault::internal)?;
            self.copy(access, segment::beside(copied, local))?;
        }
        let mut at = 0;
        for segment in segments {
            if is_copied.has(segment) {
                parts.add_run(&run, at, segment.len)?;
                at += segment.len;
            } else {
                parts.add_pool(*segment)?;
            }
        }
        Ok(Lent::Yes)
    }

    /// Brings the first `len` bytes of what the device has written to the guest: `parts` has been
    /// lent for `segments`, and nothing else.
    pub fn settle(&mut self, segments: &[Segment], parts: &Parts, len: usize) -> Result<(), Fault> {
        let Some(run) = parts.run() else {
            return Ok(());
        };
        let is_copied = self.copied;
        let copied = self::parts(segments, 0, len).filter(move |segment| is_copied.has(segment));
        let len = copied.clone().map(|segment| segment.len).sum();
        let local = run.slice(0, len).map_err(Fault::internal)?;
        self.copy(Access::Write, segment::beside(copied, local))
    }

    /// Fills `buffer` from what `segments`, which have been checked, hold from byte `skip` on.
    pub fn gather(
        &mut self,
        segments: &[Segment],
        skip: usize,
        buffer: VolatileSlice<'_>,
    ) -> Result<(), Fault> {
        let segments = parts(segments, skip, buffer.len());
        self.copy(Access::Read, segment::beside(segments, buffer))
    }

    /// Writes `buffer` to what `segments`, which have been checked, hold from byte `skip` on.
    pub fn scatter(
        &mut self,
        segments: &[Segment],
        skip: usize,
        buffer: VolatileSlice<'_>,
    ) -> Result<(), Fault> {
        let segments = parts(segments, skip, buffer.len());
        self.copy(Access::Write, segment::beside(segments, buffer))
    }

    /// Copies between buffers and local memory beside them.
    fn copy<'a>(
        &mut self,
        access: Access,
        pieces: impl Iterator<Item = (Segment, VolatileSlice<'a>)> + Clone,
    ) -> Result<(), Fault> {
        let near = pieces
            .clone()
            .filter(|(segment, _)| segment.kind() == Kind::Pool);
        for (segment, local) in near {
            let slice = self.pool.slice(segment).ok_or(Fault::Outside(segment))?;
            copy_slice(access, slice, local);
        }
        match &mut self.other {
            Other::Nothing => Ok(()),
            Other::Grants(grants) => {
                let stats = &self.stats;
                let mut pieces = pieces
                    .filter(|(segment, _)| segment.kind() == Kind::Grant)
                    .map(|(segment, local)| {
                        stats.grant_copied.add(segment.len as u64);
                        (segment.grant(), local)
                    });
                grants.copy(access, &mut pieces).map_err(Fault::Refused)
            }
            Other::Frames(frames) => {
                let pieces = pieces.filter(|(segment, _)| segment.is_machine());
                let result = copy_frames(frames, access, pieces, &mut self.scratch);
                self.scratch.clear();
                result
            }
        }
    }

    /// How long until [`Memory::sweep`] has something to do, if it will.
    pub fn until_sweep(&self) -> Option<Duration> {
        match &self.other {
            Other::Frames(frames) => frames.until_sweep(),
            _ => None,
        }
    }

    /// Lets go of what has not been used for some time.
    pub fn sweep(&mut self) {
        if let Other::Frames(frames) = &mut self.other {
            frames.sweep();
        }
    }
}

/// Copies between mapped frames and local memory beside them.
fn copy_frames<'a>(
    frames: &mut Cache,
    access: Access,
    pieces: impl Iterator<Item = (Segment, VolatileSlice<'a>)> + Clone,
    scratch: &mut Parts,
) -> Result<(), Fault> {
    let segments = pieces.clone().map(|(segment, _)| segment);
    // However many there are, they are not more than what is local and a chain's descriptors need.
    frames.lend(segments, access, false, scratch)?;
    let mut vectors = scratch.vectors().iter();
    for (_, local) in pieces {
        let mut at = 0;
        while at < local.len() {
            let Some(vector) = vectors.next() else {
                return Ok(());
            };
            let part = local.subslice(at, vector.len()).map_err(Fault::internal)?;
            copy_slice(access, vector.slice(), part);
            at += vector.len();
        }
    }
    Ok(())
}

/// Copies from `guest` to `local` or back.
fn copy_slice(access: Access, guest: VolatileSlice<'_>, local: VolatileSlice<'_>) {
    match access {
        Access::Read => guest.copy_to_volatile_slice(local),
        Access::Write => local.copy_to_volatile_slice(guest),
    }
}
