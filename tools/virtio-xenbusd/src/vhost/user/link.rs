// SPDX-License-Identifier: GPL-2.0-or-later
//! Keeps a device connected to the program that serves it, or to the next one.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::kinds::Kind;
use super::relay::lock;
use super::session::{Inflight, Nobody, Session};
use super::settings::Settings;
use super::shadow::{Rings, Shadow};
use crate::config_space::ConfigSpace;
use crate::device::{Ring, SharedPool};
use crate::throttle::Throttle;
use crate::vhost::vring::Vring;
use crate::worker::Alarm;

/// Milliseconds between two tries to connect: there is no event for somebody who listens.
pub const RETRY: u16 = if cfg!(test) { 10 } else { 1000 };

/// Bytes of the thread's stack.
const STACK_SIZE: usize = 128 << 10;

/// A device's program, which may end and be started again.
pub struct Link {
    name: String,
    socket: PathBuf,
    kind: &'static Kind,
    config: ConfigSpace,
    /// For a program that keeps no record where one is needed.
    rings: Option<Rings>,
    /// Largest size of each queue.
    sizes: Vec<u16>,
    state: Mutex<State>,
    /// Rung when the connection has been given up, and at the end.
    alarm: Alarm,
    closed: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct State {
    session: Option<Session>,
    memory: Option<SharedPool>,
    /// What the driver has accepted.
    features: u64,
    /// The queues that run.
    vrings: BTreeMap<u16, Arc<UserVring>>,
    inflight: Option<Inflight>,
    /// No program that was given up may still use the guest's memory.
    quiet: bool,
    /// Why the device cannot go on with another program.
    failure: Option<String>,
    /// The last thing that was said about connecting.
    said: String,
    throttle: Throttle,
}

/// A queue that the program serves.
pub struct UserVring {
    /// As the program knows it.
    pub vring: Vring,
    /// The rings that the program has instead of the guest's.
    pub shadow: Option<Mutex<Shadow>>,
}

impl UserVring {
    /// How far buffers have been used in the program's ring.
    pub fn used(&self) -> Result<u16> {
        match &self.shadow {
            Some(shadow) => lock(shadow).used(),
            None => self.vring.used(),
        }
    }
}

impl Link {
    /// For the device `name`, whose program `session` is.
    pub fn new(
        name: String,
        settings: &Settings,
        session: Session,
        config: ConfigSpace,
        sizes: Vec<u16>,
    ) -> Result<Arc<Self>> {
        let kind = settings.r#type.0;
        let rings = match kind.in_order || session.has_inflight() {
            true => None,
            false => Some(Rings::new(sizes.len())?),
        };
        let link = Arc::new(Self {
            name,
            socket: settings.socket.0.clone(),
            kind,
            config,
            rings,
            sizes,
            state: Mutex::new(State {
                session: Some(session),
                memory: None,
                features: 0,
                vrings: BTreeMap::new(),
                inflight: None,
                quiet: true,
                failure: None,
                said: String::new(),
                throttle: Throttle::new(),
            }),
            alarm: Alarm::new()?,
            closed: AtomicBool::new(false),
            thread: Mutex::default(),
        });
        let theirs = Arc::clone(&link);
        let thread = thread::Builder::new()
            .name("vhost-user".to_owned())
            .stack_size(STACK_SIZE)
            .spawn(move || theirs.run())
            .context("cannot start a thread")?;
        *link.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(link)
    }

    /// Whether buffers go through rings of ours, and so are recorded.
    pub fn is_recorded(&self) -> bool {
        self.rings.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is behind the device.
    pub fn describe(&self) -> String {
        format!("the vhost-user program at {}", self.socket.display())
    }

    /// The guest's memory has been mapped.
    pub fn connect(&self, memory: SharedPool) {
        self.lock().memory = Some(memory);
    }

    /// The driver has accepted `features`.
    pub fn accept(&self, features: u64) {
        self.lock().features = features;
    }

    /// The driver has reset the device; all queues have been stopped.
    pub fn reset(&self) {
        let mut state = self.lock();
        match &mut state.session {
            Some(session) => session.reset(),
            // What was under way does not concern the next program.
            None => state.inflight = None,
        }
        state.failure = None;
    }

    /// Whether nothing but what serves the queues that run can use the guest's memory.
    pub fn is_quiet(&self) -> bool {
        self.lock().quiet
    }

    /// Writes to the configuration space.
    pub fn write_config(&self, offset: usize, data: &[u8]) -> Result<(), Errno> {
        let mut state = self.lock();
        let Some(session) = &mut state.session else {
            return Err(Errno::EIO);
        };
        let result = session
            .write_config(offset, data)
            .and_then(|()| session.config(self.kind.config));
        match result {
            Ok(config) => self.update(&config.ok_or(Errno::EINVAL)?),
            Err(error) => {
                self.lose(&mut state, &format!("{error:#}"));
                return Err(Errno::EIO);
            }
        }
        Ok(())
    }

    /// The program's configuration space is `config`: all of it counts but the number of request
    /// queues, which stays as it was offered.
    fn update(&self, config: &[u8]) {
        let (offset, len) = self.kind.requests.unwrap_or_default();
        for (from, to) in [(0, offset), (offset + len, self.kind.config)] {
            self.config
                .write(from, config.get(from..to).unwrap_or_default());
        }
    }

    /// Starts a queue: now, or when there is a program again.
    pub fn start(&self, ring: &Ring) -> Result<Arc<UserVring>> {
        let mut vring = Vring::new(ring)?;
        let shadow = match &self.rings {
            Some(rings) => {
                let shadow = rings.queue(vring.index, vring.size())?;
                vring.set_rings(shadow.addresses());
                Some(Mutex::new(shadow))
            }
            None => None,
        };
        let queue = Arc::new(UserVring { vring, shadow });
        let vring = &queue.vring;
        let mut state = self.lock();
        if let Some(mut session) = state.session.take() {
            let result = self
                .prepare(&mut state, &mut session)
                .and_then(|()| session.start(vring, vring.first()));
            state.session = Some(session);
            if let Err(error) = result {
                self.lose(&mut state, &format!("{error:#}"));
                return Err(error);
            }
        }
        state.vrings.insert(vring.index, Arc::clone(&queue));
        Ok(queue)
    }

    /// Stops a queue, if it runs.
    ///
    /// # Errors
    ///
    /// The program has not stopped it, or not let go of its buffers: the memory may be in use.
    pub fn stop(&self, vring: &UserVring) -> Result<()> {
        let mut state = self.lock();
        if state.vrings.remove(&vring.vring.index).is_none() {
            return Ok(());
        }
        if let Some(session) = &mut state.session {
            if let Err(error) = session.stop(vring) {
                self.lose(&mut state, &format!("{error:#}"));
            }
        }
        ensure!(
            state.quiet,
            "the vhost-user program may still use the guest's memory"
        );
        Ok(())
    }

    /// Why a queue cannot run, if that is known.
    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// Ends the connection for good.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.alarm.ring();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // It does not panic.
        let _ = thread.map(JoinHandle::join);
        if let Some(session) = self.lock().session.take() {
            if !session.close() {
                log::warn!(
                    "{}: {} still has the guest's memory: the guest gets it back when the program ends",
                    self.name,
                    self.describe()
                );
            }
        }
    }

    fn prepare(&self, state: &mut State, session: &mut Session) -> Result<()> {
        let memory = state.memory.as_ref().context("no memory is mapped")?;
        session.prepare(
            memory,
            state.features,
            &mut state.inflight,
            &self.sizes,
            self.rings.as_ref(),
        )
    }

    /// Gives the connection up.
    fn lose(&self, state: &mut State, why: &str) {
        let Some(session) = state.session.take() else {
            return;
        };
        state.quiet &= session.close();
        state.said = why.into();
        state.throttle.warn(format_args!(
            "{}: {why}; waiting for a program at {}",
            self.name,
            self.socket.display()
        ));
        self.alarm.ring();
    }

    /// Waits for the end of the program, and for the next one.
    fn run(&self) {
        while !self.closed.load(Ordering::Acquire) {
            let (socket, notices) = match self.lock().session.as_ref() {
                Some(session) => (clone(Some(session.as_fd())), clone(session.notices())),
                None => (None, None),
            };
            let mut fds = vec![PollFd::new(self.alarm.as_fd(), PollFlags::POLLIN)];
            // Hanging up is always reported.
            fds.extend(poll_fd(&socket, PollFlags::empty()));
            fds.extend(poll_fd(&notices, PollFlags::POLLIN));
            let timeout = match socket {
                Some(_) => PollTimeout::NONE,
                None => PollTimeout::from(RETRY),
            };
            let ready = poll(&mut fds, timeout);
            let is_ready = |index| fds.get(index).and_then(PollFd::any) == Some(true);
            self.alarm.clear();
            if is_ready(1) {
                self.lose(&mut self.lock(), "the vhost-user program has ended");
            } else if is_ready(2) {
                self.take_notice();
            } else if ready == Ok(0) {
                if let Err(error) = self.reconnect() {
                    let mut state = self.lock();
                    let text = format!("{error:#}");
                    if error.downcast_ref::<Nobody>().is_none() && state.said != text {
                        state.throttle.warn(format_args!("{}: {text}", self.name));
                        state.said = text;
                    }
                }
            }
        }
    }

    fn take_notice(&self) {
        let mut state = self.lock();
        let Some(session) = &mut state.session else {
            return;
        };
        if session.take_notice() {
            match session.config(self.kind.config) {
                Ok(config) => self.update(&config.unwrap_or_default()),
                Err(error) => self.lose(&mut state, &format!("{error:#}")),
            }
        }
    }

    /// Goes on with another program, if there is one.
    fn reconnect(&self) -> Result<()> {
        let mut session = Session::connect(&self.socket)?;
        let mut guard = self.lock();
        let state = &mut *guard;
        let lacks = state.features & !session.features;
        if lacks != 0 {
            bail!(
                "the vhost-user program that has come lacks features that the driver uses: {lacks:#x}"
            );
        }
        if let Some(config) = session.config(self.kind.config.max(1))? {
            self.update(&config);
        }
        if !state.vrings.is_empty() {
            self.prepare(state, &mut session)?;
            let vrings: Vec<_> = state.vrings.values().cloned().collect();
            for vring in &vrings {
                match self.resume(vring, &session) {
                    Ok(first) => session.start(&vring.vring, first)?,
                    Err(error) => {
                        state.failure = Some(format!("{error:#}"));
                        vring.vring.events.error.signal()?;
                        continue;
                    }
                }
                // What is there already, and what its predecessor has not announced.
                vring.vring.events.kick.signal()?;
                vring.vring.events.call.signal()?;
            }
        }
        let queues = state.vrings.len();
        state.said.clear();
        state.throttle.info(format_args!(
            "{}: {} is there again; {queues} queues go on",
            self.name,
            self.describe()
        ));
        state.session = Some(session);
        Ok(())
    }

    /// Where a queue goes on with another program.
    fn resume(&self, queue: &UserVring, session: &Session) -> Result<u16> {
        if let Some(shadow) = &queue.shadow {
            lock(shadow).restart()?;
            return Ok(0);
        }
        let used = queue.vring.used()?;
        let left = queue.vring.available()?.wrapping_sub(used);
        ensure!(
            left == 0 || self.kind.in_order || session.has_inflight(),
            "{left} requests were under way when the vhost-user program ended, and it has kept no \
             record of which (protocol feature INFLIGHT_SHMFD)"
        );
        Ok(used)
    }
}

/// Another descriptor of the same file, if there is one.
fn clone(fd: Option<BorrowedFd<'_>>) -> Option<OwnedFd> {
    fd.and_then(|fd| fd.try_clone_to_owned().ok())
}

fn poll_fd(fd: &Option<OwnedFd>, events: PollFlags) -> Option<PollFd<'_>> {
    fd.as_ref().map(|fd| PollFd::new(fd.as_fd(), events))
}
