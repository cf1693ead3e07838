// SPDX-License-Identifier: GPL-2.0-or-later
//! The control socket.
//!
//! Each client has a thread of its own, so that one that is slow keeps nobody waiting; how many
//! there are, how long a request is and how long it may take to come are limited.

mod client;
mod service;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::stat::{Mode, umask};
use serde::Deserialize;

use crate::registry::Registry;
use service::Service;

/// Clients at a time.
const MAX_CLIENTS: usize = 16;

/// Bytes of a thread's stack.
const STACK_SIZE: usize = 256 << 10;

/// How long to wait when no connection can be accepted: there are no file descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// How long one who is not served may take to be told: a new socket has room for that.
const NO_TIME: Duration = Duration::from_millis(1);

/// Bytes of a socket's path, without the terminating zero.
const MAX_PATH: usize = 107;

/// Where a socket can be.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct SocketPath(PathBuf);

impl FromStr for SocketPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let valid = text.starts_with('/') && text.len() <= MAX_PATH && !text.contains('\0');
        match valid {
            true => Ok(Self(text.into())),
            false => Err(format!(
                "{text:?} cannot be a socket's path: it must begin with / and have at most \
                 {MAX_PATH} bytes"
            )),
        }
    }
}

impl TryFrom<String> for SocketPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl Default for SocketPath {
    fn default() -> Self {
        Self(control_socket::DEFAULT_PATH.into())
    }
}

/// The socket; removed when dropped.
pub struct Server {
    path: PathBuf,
    listener: UnixListener,
}

impl Server {
    /// Makes the socket, for root only.
    ///
    /// Call it before there are threads: it changes the process's file mode creation mask for a
    /// moment.
    ///
    /// # Errors
    ///
    /// The socket cannot be made, or somebody else listens there.
    pub fn bind(SocketPath(path): SocketPath) -> Result<Self> {
        let listener = bind(&path).with_context(|| format!("control socket {}", path.display()))?;
        Ok(Self { path, listener })
    }

    /// Begins to answer requests about the devices in `registry`.
    pub fn start(&self, registry: Arc<Registry>) -> Result<()> {
        let listener = self.listener.try_clone()?;
        let service = Arc::new(Service::new(registry));
        // It ends with the process.
        thread::Builder::new()
            .name("control".into())
            .stack_size(STACK_SIZE)
            .spawn(move || accept(&listener, &service))
            .context("cannot make a thread")?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::debug!("{}: {error}", self.path.display());
        }
    }
}

fn bind(path: &Path) -> Result<UnixListener> {
    // systemd makes it, if there is systemd.
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        let made = DirBuilder::new().mode(0o755).create(directory);
        made.with_context(|| format!("cannot make the directory {}", directory.display()))?;
    }
    remove_stale(path)?;
    let mask = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(mask);
    listener.context("cannot make it")
}

/// Removes the socket of a daemon that has died.
fn remove_stale(path: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    };
    ensure!(
        metadata.file_type().is_socket(),
        "there is a file that is no socket: remove it, or choose another path"
    );
    match UnixStream::connect(path) {
        Ok(_) => bail!("another program listens there: end it, or choose another path"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).context("cannot remove what an earlier daemon has left")
        }
        Err(error) => Err(anyhow!(error).context("cannot tell whether somebody listens there")),
    }
}

/// One of the [`MAX_CLIENTS`].
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(clients: &Arc<AtomicUsize>) -> Option<Self> {
        // Only one thread adds.
        if clients.load(Ordering::Relaxed) >= MAX_CLIENTS {
            return None;
        }
        clients.fetch_add(1, Ordering::Relaxed);
        Some(Self(Arc::clone(clients)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn accept(listener: &UnixListener, service: &Arc<Service>) {
    let clients = Arc::default();
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                log::error!("control socket: {error}");
                thread::sleep(PAUSE);
                continue;
            }
        };
        let Some(place) = Place::take(&clients) else {
            let error = format!("{MAX_CLIENTS} clients are connected already; try again later");
            client::refuse(&stream, error, NO_TIME);
            continue;
        };
        let service = Arc::clone(service);
        let spawned = thread::Builder::new()
            .name("control-client".into())
            .stack_size(STACK_SIZE)
            .spawn(move || {
                let _place = place;
                client::serve(&stream, &service, client::TIME);
            });
        if let Err(error) = spawned {
            log::error!("control socket: cannot make a thread: {error}");
        }
    }
}
