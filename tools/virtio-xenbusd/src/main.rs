// SPDX-License-Identifier: GPL-2.0-or-later
//! Backends for virtio over xenbus.
//!
//! The main thread finds devices ([`manager`]); each device has a thread for its xenbus state and
//! control page ([`backend`]), and each queue has one ([`worker`]).
#![deny(unsafe_code)]

mod backend;
mod blk;
mod config;
mod config_space;
mod connection;
mod control;
mod device;
mod features;
mod hotplug;
mod keys;
mod logger;
mod manager;
mod memory;
mod modes;
mod net;
mod open;
mod record;
mod registry;
mod server;
mod stats;
mod status;
mod systemd;
mod throttle;
mod uring;
mod vhost;
mod vring;
mod worker;
mod xenbus;

#[cfg(test)]
mod testing;

use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use log::LevelFilter;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use config::Config;
use manager::Manager;
use registry::Registry;
use server::{Server, SocketPath};

/// Where the configuration is looked for if nothing else is said. It need not exist.
const DEFAULT_CONFIG: &str = "/etc/virtio-xenbus/virtio-xenbusd.toml";

/// Exit status of a bad configuration, as of bad arguments.
const BAD_CONFIG: u8 = 2;

/// Serves virtio block and network devices to Xen guests over xenbus.
///
/// Runs in the foreground in dom0 or in a driver domain. SIGHUP makes it read its configuration
/// again; SIGTERM ends it and leaves the guests' devices for the next daemon to go on with.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file [default: /etc/virtio-xenbus/virtio-xenbusd.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Control socket [default: /run/virtio-xenbusd/control.sock, if the configuration names none]
    #[arg(long, value_name = "FILE")]
    control_socket: Option<SocketPath>,

    /// How much to log: error, warn, info or debug
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = log_level)]
    log_level: LevelFilter,

    /// Check the configuration file and exit
    #[arg(long)]
    check_config: bool,
}

fn log_level(text: &str) -> Result<LevelFilter, &'static str> {
    text.parse()
        .map_err(|_| "it must be error, warn, info or debug")
}

impl Arguments {
    fn load_config(&self) -> Result<Config> {
        match &self.config {
            Some(path) => Config::load(path),
            None if PathBuf::from(DEFAULT_CONFIG).exists() => Config::load(DEFAULT_CONFIG.as_ref()),
            None => Ok(Config::default()),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();

    logger::init(arguments.log_level);
    let config = match arguments.load_config() {
        Ok(config) => config,
        Err(error) => {
            log::error!("{error:#}");
            return ExitCode::from(BAD_CONFIG);
        }
    };
    if arguments.check_config {
        let (devices, disks) = (config.devices.len(), config.disks.len());
        log::info!("the configuration is right: {devices} [[device]], {disks} [[disk]]");
        return ExitCode::SUCCESS;
    }
    match run(&arguments, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, config: Config) -> Result<()> {
    let _only_one = lock()?;
    // Before there are threads, which inherit the mask.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    let path = arguments.control_socket.clone();
    let path = path.or_else(|| config.control_socket.clone());
    let registry = Arc::<Registry>::default();
    let socket = Server::bind(path.unwrap_or_default())?;
    let mut manager = Manager::new(config, Arc::clone(&registry))?;
    manager.serve()?;
    socket.start(registry)?;
    log::info!("version {} is ready", env!("CARGO_PKG_VERSION"));
    systemd::notify("READY=1");

    loop {
        while let Some(signal) = signals.read_signal()? {
            match Signal::try_from(i32::try_from(signal.ssi_signo)?)? {
                Signal::SIGHUP => reload(arguments, &mut manager),
                signal => {
                    log::info!("{signal}: ending; the guests' devices stay for the next daemon");
                    systemd::notify("STOPPING=1");
                    manager.quit();
                    return Ok(());
                }
            }
        }
        if let Err(error) = manager.serve() {
            systemd::notify("STOPPING=1");
            // What is under way is completed, so that the next daemon can go on.
            manager.quit();
            return Err(error.context("ending; the guests' devices stay for the next daemon"));
        }
        wait(&manager, &signals)?;
    }
}

fn wait(manager: &Manager, signals: &SignalFd) -> Result<()> {
    let [store, ended] = manager.fds();
    let mut fds = [store, ended, signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno).context("poll"),
    }
}

fn reload(arguments: &Arguments, manager: &mut Manager) {
    match arguments.load_config() {
        Ok(config) => {
            log::info!("the configuration has been read again");
            manager.reload(config);
        }
        Err(error) => log::error!("{error:#}; the old configuration stays in force"),
    }
}

/// Two daemons in one domain would take each other's devices.
fn lock() -> Result<UnixListener> {
    let address = SocketAddr::from_abstract_name(env!("CARGO_PKG_NAME"))?;
    UnixListener::bind_addr(&address).context("another virtio-xenbusd is running in this domain")
}
