// SPDX-License-Identifier: GPL-2.0-or-later
//! Finds the devices and keeps a thread for each.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use xen::Store;

use crate::backend::{Backend, Orders};
use crate::config::Config;
use crate::keys::{Node, Type};
use crate::record;
use crate::registry::Registry;
use crate::worker::{Alarm, panic_text};

/// Bytes of a device thread's stack.
const STACK_SIZE: usize = 256 << 10;

/// The devices that are served.
pub struct Manager {
    store: Store,
    config: Arc<Config>,
    registry: Arc<Registry>,
    threads: HashMap<Node, Thread>,
    ended: Receiver<Node>,
    end: Sender<Node>,
    /// Xenstored has closed its connections.
    lost: Arc<AtomicBool>,
    /// Rung when there is something in `ended`, or the connections are lost.
    alarm: Alarm,
}

struct Thread {
    orders: Arc<Orders>,
    handle: JoinHandle<Result<()>>,
}

impl Manager {
    /// Begins to serve the devices that are in xenstore and those that will be.
    /// What is known of them is told to `registry`.
    pub fn new(config: Config, registry: Arc<Registry>) -> Result<Self> {
        let store = Store::open().context(
            "cannot connect to xenstore; the daemon runs in dom0 or a driver domain with xenstored",
        )?;
        for kind in Type::ALL {
            // The first event comes at once, and makes us look for what is there already.
            store.watch(&kind.backends(), kind.name())?;
        }
        let is_alive = |node: Node| {
            let frontend = store.read(&format!("{}/frontend", node.path()));
            frontend.is_ok_and(|path| path.is_some())
        };
        if let Err(error) = record::clean(is_alive) {
            log::warn!("records of former connections: {error}");
        }
        let (end, ended) = channel();
        let (lost, alarm) = (Arc::default(), Alarm::new()?);
        watch_connection(Arc::clone(&lost), alarm.clone())?;
        Ok(Self {
            store,
            config: Arc::new(config),
            registry,
            threads: HashMap::new(),
            ended,
            end,
            lost,
            alarm,
        })
    }

    /// What to poll before [`Manager::serve`].
    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.store.as_fd(), self.alarm.as_fd()]
    }

    /// Looks for devices that have come or gone.
    ///
    /// # Errors
    ///
    /// There is no connection to xenstore any more: nothing can be served, [`Manager::quit`].
    pub fn serve(&mut self) -> Result<()> {
        self.alarm.clear();
        if self.lost.load(Ordering::Acquire) {
            bail!("the connection to xenstore is lost");
        }
        while let Some(watch) = self.store.next_watch()? {
            match Node::parse(&watch.path) {
                Some(node) => self.begin(node)?,
                None => self.scan(&watch.token)?,
            }
        }
        while let Ok(node) = self.ended.try_recv() {
            // It may have come back meanwhile. After an error, wait until it changes.
            if self.reap(node) {
                self.begin(node)?;
            }
        }
        Ok(())
    }

    /// Makes all devices use another configuration.
    pub fn reload(&mut self, config: Config) {
        self.config = Arc::new(config);
        for thread in self.threads.values() {
            thread.orders.reload(Arc::clone(&self.config));
        }
    }

    /// Gives up all devices; their states stay as they are, for the next daemon.
    pub fn quit(mut self) {
        for thread in self.threads.values() {
            thread.orders.quit();
        }
        let nodes: Vec<_> = self.threads.keys().copied().collect();
        for node in nodes {
            self.reap(node);
        }
    }

    /// Begins to serve the devices of a type.
    fn scan(&mut self, kind: &str) -> Result<()> {
        let backends = format!("backend/{kind}");
        for domain in self.store.list(&backends)? {
            for number in self.store.list(&format!("{backends}/{domain}"))? {
                if let Some(node) = Node::parse(&format!("{backends}/{domain}/{number}")) {
                    self.begin(node)?;
                }
            }
        }
        Ok(())
    }

    /// Begins to serve a device, if it is there and not served yet.
    fn begin(&mut self, node: Node) -> Result<()> {
        let path = format!("{}/frontend", node.path());
        if self.threads.contains_key(&node) || self.store.read(&path)?.is_none() {
            return Ok(());
        }
        match self.spawn(node) {
            Ok(thread) => {
                self.threads.insert(node, thread);
            }
            // The others go on.
            Err(error) => log::error!("{}: cannot make a thread: {error:#}", node.path()),
        }
        Ok(())
    }

    fn spawn(&self, node: Node) -> Result<Thread> {
        let orders = Arc::new(Orders::new(Arc::clone(&self.config))?);
        let theirs = Arc::clone(&orders);
        let registry = Arc::clone(&self.registry);
        let at_end = AtEnd {
            node,
            end: self.end.clone(),
            alarm: self.alarm.clone(),
        };
        let handle = thread::Builder::new()
            .name(node.short_name())
            .stack_size(STACK_SIZE)
            .spawn(move || {
                let _at_end = at_end;
                Backend::run(node, &theirs, &registry)
            })?;
        Ok(Thread { orders, handle })
    }

    /// Waits for a thread that has ended or is about to; whether it ended without an error.
    fn reap(&mut self, node: Node) -> bool {
        let Some(thread) = self.threads.remove(&node) else {
            return false;
        };
        let ended = thread.handle.join();
        self.registry.remove(node);
        match ended {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => log::error!("{}: {error:#}", node.path()),
            Err(panic) => {
                log::error!(
                    "{}: internal error: {}",
                    node.path(),
                    panic_text(panic.as_ref())
                );
            }
        }
        false
    }
}

/// Says when xenstored closes its connections, which it does when it ends. It closes all at once,
/// so one of its own tells of the others.
fn watch_connection(lost: Arc<AtomicBool>, alarm: Alarm) -> Result<()> {
    let store = Store::open().context("cannot connect to xenstore")?;
    let watch = move || {
        match store.wait_lost() {
            Ok(()) => lost.store(true, Ordering::Release),
            Err(error) => log::error!("the connection to xenstore is not watched: {error}"),
        }
        alarm.ring();
    };
    thread::Builder::new()
        .name("xenstore".to_owned())
        .stack_size(STACK_SIZE)
        .spawn(watch)
        .context("cannot start a thread")?;
    Ok(())
}

/// Says that a thread ends, by a panic too.
struct AtEnd {
    node: Node,
    end: Sender<Node>,
    alarm: Alarm,
}

impl Drop for AtEnd {
    fn drop(&mut self) {
        // The receiver lives as long as threads are reaped.
        let _ = self.end.send(self.node);
        self.alarm.ring();
    }
}
