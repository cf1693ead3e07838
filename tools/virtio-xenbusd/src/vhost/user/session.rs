// SPDX-License-Identifier: GPL-2.0-or-later
//! A connection to a program.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{
    Frontend, VhostUserFrontend, VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::link::UserVring;
use super::shadow::Rings;
use crate::device::SharedPool;
use crate::memory::POOL_START;
use crate::vhost::vring::Vring;
use crate::vhost::watchdog;

/// How long a program may take to answer a request.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 10_000 });

/// How long a program may take to let go of a guest's memory.
const LINGER: u16 = if cfg!(test) { 100 } else { 5000 };

/// How long between two looks whether a stopped queue's buffers are finished. There is no event
/// for that: a program need not announce what it finishes after it has stopped the queue.
const LOOK: Duration = Duration::from_millis(2);

/// What of the protocol is used, if the program has it.
const PROTOCOL: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
    .union(Protocol::CONFIG)
    .union(Protocol::BACKEND_REQ)
    .union(Protocol::INFLIGHT_SHMFD);

/// The program's message that its configuration has changed: number, version and flags, no body.
const CONFIG_CHANGE: [u8; 4] = 2u32.to_le_bytes();
const REPLY: u8 = 4;
const NEED_REPLY: u8 = 8;

/// Where the requests of a device are recorded while a program works on them, for the next one.
pub struct Inflight {
    description: VhostUserInflight,
    file: File,
}

/// A connection to a program, which is this device's while there is one.
pub struct Session {
    frontend: Frontend,
    socket: UnixStream,
    /// The features that the program has, of device, rings and vhost.
    pub features: u64,
    protocol: Protocol,
    /// Where the program says that its configuration has changed.
    notices: Option<UnixStream>,
    /// The program has the guest's memory.
    has_memory: bool,
    /// The queues that the program has been told of.
    started: BTreeSet<u16>,
    /// The program knows the features that the driver has accepted.
    ready: bool,
}

/// Nobody listens on a program's socket.
#[derive(Debug)]
pub struct Nobody {
    path: String,
    why: io::Error,
}

impl fmt::Display for Nobody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, why } = self;
        write!(
            f,
            "no vhost-user program listens on socket {path}: {why}; waiting for one"
        )
    }
}

impl std::error::Error for Nobody {}

impl Session {
    /// Connects to the program that listens at `path` and asks what it can do.
    ///
    /// # Errors
    ///
    /// [`Nobody`], or the program does not say what it should.
    pub fn connect(path: &Path) -> Result<Self> {
        let socket = connect_to(path).map_err(|errno| Nobody {
            path: path.display().to_string(),
            why: errno.into(),
        })?;
        let frontend = Frontend::from_stream(socket.try_clone()?, u64::from(u16::MAX));
        let mut session = Self {
            frontend,
            socket,
            features: 0,
            protocol: Protocol::empty(),
            notices: None,
            has_memory: false,
            started: BTreeSet::new(),
            ready: false,
        };
        session.features = session.call("GET_FEATURES", |f| f.get_features())?;
        if session.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
            let has = session.call("GET_PROTOCOL_FEATURES", |f| f.get_protocol_features())?;
            session.protocol = has & PROTOCOL;
            let protocol = session.protocol;
            session.call("SET_PROTOCOL_FEATURES", |f| {
                f.set_protocol_features(protocol)
            })?;
            if protocol.contains(Protocol::REPLY_ACK) {
                session
                    .frontend
                    .set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
        }
        session.call("SET_OWNER", |f| f.set_owner())?;
        if session.protocol.contains(Protocol::BACKEND_REQ) {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            session.call("SET_BACKEND_REQ_FD", |f| f.set_backend_request_fd(&theirs))?;
            session.notices = Some(ours);
        }
        Ok(session)
    }

    /// Makes a request, which fails if it is not answered in time.
    fn call<T>(
        &mut self,
        name: &str,
        request: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T> {
        let begin = Instant::now();
        let _guard = watchdog::watch(&self.socket, PATIENCE)?;
        request(&mut self.frontend).map_err(|error| match begin.elapsed() < PATIENCE {
            true => anyhow!("the vhost-user program refuses {name}, or has ended: {error}"),
            false => anyhow!(
                "the vhost-user program has not answered {name} for {} s; it may serve somebody else",
                PATIENCE.as_secs_f32()
            ),
        })
    }

    /// How many queues the program has, if it says so.
    pub fn queues(&mut self) -> Result<Option<u16>> {
        if !self.protocol.contains(Protocol::MQ) {
            return Ok(None);
        }
        let queues = self.call("GET_QUEUE_NUM", |f| f.get_queue_num())?;
        Ok(Some(u16::try_from(queues)?))
    }

    /// The first `len` bytes of the configuration space, if the program has one.
    pub fn config(&mut self, len: usize) -> Result<Option<Vec<u8>>> {
        if !self.protocol.contains(Protocol::CONFIG) {
            return Ok(None);
        }
        let (size, room) = (u32::try_from(len)?, vec![0; len]);
        let flags = VhostUserConfigFlags::empty();
        let (_, bytes) = self.call("GET_CONFIG", |f| f.get_config(0, size, flags, &room))?;
        Ok(Some(bytes))
    }

    /// Writes to the configuration space.
    pub fn write_config(&mut self, offset: usize, data: &[u8]) -> Result<()> {
        let (offset, flags) = (u32::try_from(offset)?, VhostUserConfigFlags::empty());
        self.call("SET_CONFIG", |f| f.set_config(offset, flags, data))
    }

    /// Readable when the program has something to say.
    pub fn notices(&self) -> Option<BorrowedFd<'_>> {
        self.notices.as_ref().map(UnixStream::as_fd)
    }

    /// Takes what the program says; whether that is that its configuration has changed.
    pub fn take_notice(&mut self) -> bool {
        // Nothing else was agreed on: what is anything else ends it.
        let Some(mut notices) = self.notices.take() else {
            return false;
        };
        let mut message = [0; 12];
        if notices.read(&mut message).ok() != Some(message.len())
            || !message.starts_with(&CONFIG_CHANGE)
        {
            return false;
        }
        if message[4] & NEED_REPLY != 0 {
            let mut reply = CONFIG_CHANGE.to_vec();
            reply.extend([1 | REPLY, 0, 0, 0, 8, 0, 0, 0]);
            reply.extend(0u64.to_le_bytes());
            if notices.write(&reply).ok() != Some(reply.len()) {
                return false;
            }
        }
        self.notices = Some(notices);
        true
    }

    /// Whether requests can be recorded for a program that comes after this one.
    pub fn has_inflight(&self) -> bool {
        self.protocol.contains(Protocol::INFLIGHT_SHMFD)
    }

    /// Gives the program what it needs before queues, if it has not got it: the guest's `memory`,
    /// the `features` that the driver has accepted, and the record of its predecessor.
    pub fn prepare(
        &mut self,
        memory: &SharedPool,
        features: u64,
        inflight: &mut Option<Inflight>,
        sizes: &[u16],
        rings: Option<&Rings>,
    ) -> Result<()> {
        if !self.ready {
            let told =
                features | (self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits());
            self.call("SET_FEATURES", |f| f.set_features(told))?;
            self.ready = true;
        }
        if !self.has_memory {
            // From now on it may have it.
            self.has_memory = true;
            self.share(memory, rings)?;
            if self.has_inflight() && rings.is_none() {
                self.record(inflight, sizes)?;
            }
        }
        Ok(())
    }

    fn share(&mut self, memory: &SharedPool, rings: Option<&Rings>) -> Result<()> {
        // For this connection only: it can be mapped once. The program keeps it mapped,
        // and the descriptor is not needed any more.
        let file = (memory.share)().context("cannot make a file of the pool")?;
        let pool = VhostUserMemoryRegionInfo {
            guest_phys_addr: POOL_START.0,
            memory_size: memory.pool.iter().map(GuestMemoryRegion::len).sum(),
            // Rings are named by addresses of ours, of which there are none: any will do.
            userspace_addr: POOL_START.0,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        // By address: vm-memory, which most programs in Rust use, takes them in no other order.
        let regions: Vec<_> = rings.map(Rings::region).into_iter().chain([pool]).collect();
        self.call("SET_MEM_TABLE", |f| f.set_mem_table(&regions).map(drop))
    }

    fn record(&mut self, inflight: &mut Option<Inflight>, sizes: &[u16]) -> Result<()> {
        if inflight.is_none() {
            let wanted = VhostUserInflight {
                mmap_size: 0,
                mmap_offset: 0,
                num_queues: u16::try_from(sizes.len())?,
                queue_size: sizes.iter().copied().max().unwrap_or(0),
            };
            let (got, file) = self.call("GET_INFLIGHT_FD", |f| f.get_inflight_fd(&wanted))?;
            *inflight = Some(Inflight {
                description: VhostUserInflight {
                    mmap_size: got.mmap_size,
                    mmap_offset: got.mmap_offset,
                    ..wanted
                },
                file,
            });
        }
        if let Some(Inflight { description, file }) = inflight {
            let fd = file.as_raw_fd();
            self.call("SET_INFLIGHT_FD", |f| f.set_inflight_fd(description, fd))?;
        }
        Ok(())
    }

    /// Starts a queue, which goes on at `first` of its available ring.
    pub fn start(&mut self, vring: &Vring, first: u16) -> Result<()> {
        self.started.insert(vring.index);
        let index = usize::from(vring.index);
        self.call("a queue's setup", |f| vring.set_up(f, index, first))?;
        // Before the kick: vhost-user-backend takes the events of a queue that is not enabled, and
        // forgets them.
        if self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
            self.call("SET_VRING_ENABLE", |f| f.set_vring_enable(index, true))?;
        }
        self.call("SET_VRING_KICK", |f| vring.start(f, index))
    }

    /// Stops a queue. When this returns without an error, the program has finished all buffers
    /// that it has taken.
    pub fn stop(&mut self, vring: &UserVring) -> Result<()> {
        if !self.started.remove(&vring.vring.index) {
            return Ok(());
        }
        let index = usize::from(vring.vring.index);
        let taken = self.call("GET_VRING_BASE", |f| f.get_vring_base(index))?;
        let end = Instant::now() + PATIENCE;
        loop {
            // CAST: Of a split ring it is 16 bits.
            let left = (taken as u16).wrapping_sub(vring.used()?);
            if left == 0 {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "the vhost-user program has stopped queue {index} but not finished {left} buffers"
            );
            std::thread::sleep(LOOK);
        }
    }

    /// The driver has reset the device: it may accept other features.
    pub fn reset(&mut self) {
        self.ready = false;
    }

    /// Ends the connection; whether the program has let go of the guest's memory, as far as it
    /// had it.
    ///
    /// A program closes its end when it has unmapped the memory: libvhost-user does it in this
    /// order, and so does the kernel when a process ends.
    pub fn close(self) -> bool {
        // Fails if the other end is closed.
        let _ = self.socket.shutdown(Shutdown::Write);
        !self.has_memory || hangs_up(&self.socket, LINGER)
    }
}

impl AsFd for Session {
    /// Hangs up when the program does.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether the other end is closed in so many milliseconds.
fn hangs_up(socket: &UnixStream, time: u16) -> bool {
    // Hanging up is always reported.
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    loop {
        match poll(&mut fds, PollTimeout::from(time)) {
            Err(Errno::EINTR) => (),
            result => return result.is_ok_and(|ready| ready > 0),
        }
    }
}

/// Connects, without waiting for a program that does not accept.
fn connect_to(path: &Path) -> Result<UnixStream, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let socket = UnixStream::from(socket);
    socket
        .set_nonblocking(false)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    Ok(socket)
}
