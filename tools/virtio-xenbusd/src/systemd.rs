// SPDX-License-Identifier: GPL-2.0-or-later
//! `sd_notify(3)`, for units of `Type=notify`.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells systemd `state`, if systemd has started us and wants to know.
pub fn notify(state: &str) {
    if let Err(error) = try_notify(state) {
        log::debug!("cannot notify systemd: {error}");
    }
}

fn try_notify(state: &str) -> io::Result<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}
