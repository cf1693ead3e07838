// SPDX-License-Identifier: GPL-2.0-or-later
//! The thread of one device: its xenbus state and its control page.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use virtioif::bindings::{
    VIRTIO_XENBUS_KEY_MAX_POOL, VIRTIO_XENBUS_KEY_MAX_QUEUES, VIRTIO_XENBUS_KEY_MODES,
    VIRTIO_XENBUS_KEY_VERSIONS, VIRTIO_XENBUS_VERSION,
};
use xen::Store;

use crate::blk::Busy;
use crate::config::Config;
use crate::connection::{Connection, Mapped, Offer};
use crate::keys::{Node, key, printable};
use crate::open::{self, Opened};
use crate::record;
use crate::registry::{Registry, Status};
use crate::throttle::Throttle;
use crate::vhost::user::{Nobody, RETRY};
use crate::worker::Alarm;
use crate::xenbus::{self, Action, Held, State, View};

/// What the main thread tells a device's thread.
#[derive(Debug)]
pub struct Orders {
    config: Mutex<Arc<Config>>,
    reloaded: AtomicBool,
    quit: AtomicBool,
    alarm: Alarm,
}

impl Orders {
    /// Orders to work with `config`.
    pub fn new(config: Arc<Config>) -> Result<Self> {
        Ok(Self {
            config: Mutex::new(config),
            reloaded: AtomicBool::new(false),
            quit: AtomicBool::new(false),
            alarm: Alarm::new()?,
        })
    }

    /// Use another configuration from the next opening on, and try again what was refused.
    pub fn reload(&self, config: Arc<Config>) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        self.reloaded.store(true, Ordering::Release);
        self.alarm.ring();
    }

    /// Give up everything and end; the states stay as they are, for the next daemon.
    pub fn quit(&self) {
        self.quit.store(true, Ordering::Release);
        self.alarm.ring();
    }

    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is held of the device.
enum Holding {
    Nothing,
    Refused,
    Waiting,
    Repaired,
    Opened(Opened),
    Connected(Box<Connection>),
}

impl Holding {
    fn held(&self) -> Held {
        match self {
            Self::Nothing => Held::Nothing,
            Self::Refused => Held::Refused,
            Self::Waiting => Held::Waiting,
            Self::Repaired => Held::Repaired,
            Self::Opened(_) => Held::Opened,
            Self::Connected(_) => Held::Connected,
        }
    }
}

/// A device in xenstore.
pub struct Backend<'a> {
    node: Node,
    guest: String,
    /// The frontend's directory.
    frontend: String,
    store: Store,
    orders: &'a Orders,
    registry: &'a Registry,
    holding: Holding,
    /// Why the device is refused, if it is.
    error: Option<String>,
    /// The frontend's state when last seen.
    theirs: State,
    throttle: Throttle,
}

impl<'a> Backend<'a> {
    /// Serves `node` until its directory is removed or [`Orders::quit`].
    pub fn run(node: Node, orders: &'a Orders, registry: &'a Registry) -> Result<()> {
        let store = Store::open().context("cannot connect to xenstore")?;
        let Some(frontend) = store.read(&format!("{}/frontend", node.path()))? else {
            return Ok(());
        };
        store.watch(&node.path(), "")?;
        store.watch(&format!("{frontend}/state"), "")?;
        // A driver domain may not watch it; there the frontend's directory tells.
        if let Err(error) = store.watch("@releaseDomain", "") {
            log::debug!("@releaseDomain: {error}");
        }
        Self {
            guest: open::guest_name(&store, node),
            node,
            frontend,
            store,
            orders,
            registry,
            holding: Holding::Nothing,
            error: None,
            theirs: State::Unknown,
            throttle: Throttle::new(),
        }
        .serve()
    }

    fn serve(mut self) -> Result<()> {
        while !self.orders.quit.load(Ordering::Acquire) {
            self.orders.alarm.clear();
            while self.store.next_watch()?.is_some() {}
            if self.orders.reloaded.swap(false, Ordering::AcqRel) {
                self.forgive();
            }
            if let Holding::Connected(connection) = &mut self.holding {
                if let Err(error) = connection.serve() {
                    self.refuse(&error);
                }
            }
            match self.view()? {
                None => {
                    record::remove(self.node);
                    log::info!("{}: removed", self.name());
                    return Ok(());
                }
                Some(view) => {
                    self.publish(view);
                    match xenbus::next(view) {
                        Action::Wait => self.wait()?,
                        Action::Offer => self.offer()?,
                        Action::Connect => self.connect()?,
                        Action::Close => self.close()?,
                    }
                }
            }
        }
        log::debug!("{}: left as it is", self.name());
        Ok(())
    }

    /// What the next step depends on; `None` if the device has been removed.
    fn view(&mut self) -> Result<Option<View>> {
        let path = self.node.path();
        let Some(ours) = self.store.read(&format!("{path}/state"))? else {
            return Ok(None);
        };
        let online = self.store.read(&format!("{path}/online"))?;
        let theirs = match self.store.domain_exists(self.node.domain) {
            true => match self.store.read(&format!("{}/state", self.frontend)) {
                // To a driver domain, nodes that are gone are unreadable.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => None,
                state => state?,
            },
            false => None,
        };
        let theirs = State::parse(theirs.as_deref());

        // The guest's driver begins anew: what was refused may be accepted now.
        if theirs == State::Initialising && self.theirs != theirs {
            self.forgive();
        }
        self.theirs = theirs;
        Ok(Some(View {
            ours: State::parse(Some(&ours)),
            theirs,
            online: online.as_deref() == Some("1"),
            held: self.holding.held(),
        }))
    }

    /// Says how the device is.
    fn publish(&self, view: View) {
        let mut status = Status::new(self.node, &self.guest, view);
        match &self.holding {
            Holding::Opened(opened) => status.opened(opened),
            Holding::Connected(connection) => status.connected(connection),
            Holding::Nothing | Holding::Refused | Holding::Waiting | Holding::Repaired => (),
        }
        if let Some(error) = &self.error {
            status.device.error = Some(error.clone());
        }
        if matches!(view.theirs, State::Closing | State::Closed) {
            let text = self.store.read(&self.node.frontend_error_path());
            // In a driver domain it may not be readable.
            status.device.frontend_error = text.ok().flatten().as_deref().map(printable);
        }
        self.registry.publish(self.node, status);
    }

    fn forgive(&mut self) {
        if matches!(self.holding, Holding::Refused | Holding::Waiting) {
            self.holding = Holding::Repaired;
        }
    }

    fn offer(&mut self) -> Result<()> {
        self.holding = Holding::Nothing;
        let opened = match self.open() {
            Ok(opened) => opened,
            Err(error) => {
                self.refuse(&error);
                return Ok(());
            }
        };
        let path = self.node.path();
        let queues = opened.device.queue_sizes().len();
        let Opened {
            max_pool_pages: pages,
            modes,
            ..
        } = opened;
        self.store.transaction(|t| {
            // The toolstack may have removed the directory: do not make it again.
            if t.read(&format!("{path}/state"))?.is_none() {
                return Ok(());
            }
            for (name, value) in [
                (
                    key(VIRTIO_XENBUS_KEY_VERSIONS),
                    VIRTIO_XENBUS_VERSION.to_string(),
                ),
                (key(VIRTIO_XENBUS_KEY_MODES), modes.to_string()),
                (key(VIRTIO_XENBUS_KEY_MAX_QUEUES), queues.to_string()),
                (key(VIRTIO_XENBUS_KEY_MAX_POOL), pages.to_string()),
                ("state", State::InitWait.number().to_string()),
            ] {
                t.write(&format!("{path}/{name}"), &value)?;
            }
            Ok(())
        })?;
        self.store.remove(&self.node.error_path())?;
        self.error = None;
        let what = opened.device.describe();
        self.throttle.info(format_args!(
            "{}: offered: {what}, {queues} queues",
            self.name()
        ));
        self.holding = Holding::Opened(opened);
        Ok(())
    }

    fn connect(&mut self) -> Result<()> {
        // The frontend may have connected to an earlier daemon.
        let opened = match std::mem::replace(&mut self.holding, Holding::Nothing) {
            Holding::Opened(opened) => Ok(opened),
            _ => self.open(),
        };
        let result = opened.and_then(
            |Opened {
                 device,
                 max_pool_pages,
                 modes,
             }| {
                let offer = Offer::read(&self.store, &self.frontend, modes)?;
                let mapped = Mapped::new(self.node.domain, &offer, max_pool_pages)?;
                // The references may be those of a frontend that has closed meanwhile, and mean
                // something else by now: do not write before this is known.
                let state = self.store.read(&format!("{}/state", self.frontend))?;
                let state = State::parse(state.as_deref());
                if !matches!(state, State::Initialised | State::Connected) {
                    bail!("the frontend has closed while it was being connected");
                }
                Connection::open(&self.name(), mapped, device, &record::path(self.node))
            },
        );
        match result {
            Err(error) => self.refuse(&error),
            Ok(connection) => {
                self.set_state(State::Connected)?;
                if self.error.take().is_some() {
                    self.store.remove(&self.node.error_path())?;
                }
                let what = connection.controller().device().describe();
                self.throttle
                    .info(format_args!("{}: connected: {what}", self.name()));
                self.holding = Holding::Connected(Box::new(connection));
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.holding, Holding::Nothing) {
            Holding::Nothing | Holding::Repaired => (),
            held @ (Holding::Refused | Holding::Waiting) => self.holding = held,
            Holding::Opened(opened) => {
                drop(opened);
                self.throttle.info(format_args!(
                    "{}: closed before its driver used it",
                    self.name()
                ));
            }
            Holding::Connected(connection) => {
                drop(connection);
                self.throttle.info(format_args!("{}: closed", self.name()));
            }
        }
        record::remove(self.node);
        // Only now: the frontend takes its memory back when it sees this.
        self.set_state(State::Closed)
    }

    /// Gives the device up, with the reason for those who look in the log or in xenstore; for a
    /// while, if what is missing may come by itself.
    fn refuse(&mut self, error: &anyhow::Error) {
        self.holding = match error.is::<Nobody>() || error.is::<Busy>() {
            true => Holding::Waiting,
            false => Holding::Refused,
        };
        let name = self.name();
        let text = format!("{error:#}");
        // Each try ends here: say it once.
        if self.error.as_ref() == Some(&text) {
            return;
        }
        self.throttle.error(format_args!("{name}: {text}"));
        if let Err(error) = self.store.write(&self.node.error_path(), &text) {
            log::debug!("{}: {error}", self.node.error_path());
        }
        self.error = Some(text);
    }

    fn open(&self) -> Result<Opened> {
        open::open(&self.store, self.node, &self.guest, &self.orders.config())
    }

    fn set_state(&self, state: State) -> Result<()> {
        let path = format!("{}/state", self.node.path());
        self.store.transaction(|t| match t.read(&path)? {
            Some(_) => t.write(&path, &state.number().to_string()),
            None => Ok(()),
        })?;
        Ok(())
    }

    /// Waits until something happens.
    fn wait(&mut self) -> Result<()> {
        let mut fds = vec![self.store.as_fd(), self.orders.alarm.as_fd()];
        if let Holding::Connected(connection) = &self.holding {
            fds.push(connection.channel().as_fd());
            fds.push(connection.controller().alarm().as_fd());
            fds.push(connection.controller().device().config().as_fd());
        }
        let mut fds: Vec<_> = fds
            .into_iter()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let timeout = match self.holding {
            Holding::Waiting => PollTimeout::from(RETRY),
            _ => PollTimeout::NONE,
        };
        match poll(&mut fds, timeout) {
            Ok(0) => {
                drop(fds);
                self.forgive();
                Ok(())
            }
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno).context("poll"),
        }
    }

    fn name(&self) -> String {
        format!("{} {}", self.guest, self.node)
    }
}
