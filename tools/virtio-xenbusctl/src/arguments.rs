// SPDX-License-Identifier: GPL-2.0-or-later
//! The command line.

use std::io;
use std::path::{self, Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use control_socket::{MAX_TIMEOUT, Settings};
use serde::Serialize;
use serde_json::{Map, Value};

/// Shows, attaches and detaches the virtio devices of Xen guests that virtio-xenbusd serves.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Arguments {
    /// The daemon's control socket
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = control_socket::DEFAULT_PATH
    )]
    pub socket: PathBuf,

    /// Write JSON
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List all devices
    List,

    /// Show all that is known of a domain's devices
    Show {
        /// The domain's name or number
        domain: String,

        /// One device, by type and number as `list` shows them, for example virtio/0
        device: Option<String>,
    },

    /// Attach a device to a running guest
    ///
    /// It is there when the command has succeeded, and is not when it has failed. It goes with
    /// the domain: a reboot ends it.
    Attach {
        /// The domain's name or number
        domain: String,

        /// Seconds that the guest's driver may take to connect; with 0 nobody waits for it
        #[arg(
            long,
            global = true,
            value_name = "SECONDS",
            default_value_t = 30,
            value_parser = timeout
        )]
        timeout: u32,

        #[command(subcommand)]
        device: New,
    },

    /// Detach a device from a running guest
    ///
    /// The guest loses it, whatever it is used for there: unmount file systems before.
    Detach {
        /// The domain's name or number
        domain: String,

        /// The device, by type and number as `list` shows them, for example virtio/0
        device: String,

        /// Seconds that the guest's driver may take to let go of it
        #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = timeout)]
        timeout: u32,

        /// Take the device away then, even if the driver has not let go of it
        #[arg(long)]
        force: bool,
    },

    /// Write a script that completes this program's arguments
    Completion {
        /// The shell that it is for
        shell: Shell,
    },
}

/// A new device.
#[derive(Debug, Subcommand)]
pub enum New {
    /// A disk
    Disk(Disk),

    /// A network card
    Net(Net),

    /// A device that a vhost-user program serves
    VhostUser(VhostUser),

    /// Sockets, which the kernel's vhost-vsock serves
    Vsock(Vsock),
}

/// A disk, with the keys of the daemon's configuration.
#[derive(Args, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Disk {
    /// The file or block device in the daemon's domain
    path: PathBuf,

    /// The guest may not write
    #[arg(long)]
    readonly: bool,

    /// Bytes of a block: 512 or 4096
    #[arg(long, value_name = "BYTES")]
    logical_block_size: Option<u32>,

    /// Serial number, up to 20 characters
    #[arg(long, value_name = "TEXT")]
    serial: Option<String>,

    /// Whether discards are offered
    #[arg(long, value_name = "true|false")]
    discard: Option<bool>,

    /// Whether I/O goes past the page cache
    #[arg(long, value_name = "true|false")]
    direct: Option<bool>,

    #[command(flatten)]
    #[serde(flatten)]
    limits: Limits,
}

/// A network card, with the keys of the daemon's configuration.
#[derive(Args, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Net {
    /// The bridge in the daemon's domain to plug it into
    #[arg(long, value_name = "NAME")]
    bridge: String,

    /// Its address, for example 00:16:3e:12:34:56; made from the domain's name by default
    #[arg(long, value_name = "ADDRESS")]
    mac: Option<String>,

    /// Its MTU; the bridge's by default
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,

    /// Whether checksums are left out between guest and backend
    #[arg(long, value_name = "true|false")]
    checksum_offload: Option<bool>,

    /// Whether segments go in one piece between guest and backend
    #[arg(long, value_name = "true|false")]
    segmentation_offload: Option<bool>,

    /// Whether a received packet may take several buffers
    #[arg(long, value_name = "true|false")]
    mergeable_buffers: Option<bool>,

    /// Whether the kernel's vhost-net passes packets on
    #[arg(long, value_name = "true|false")]
    vhost: Option<bool>,

    #[command(flatten)]
    #[serde(flatten)]
    limits: Limits,
}

/// A device that a vhost-user program serves, with the keys of the daemon's configuration.
#[derive(Args, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VhostUser {
    /// The socket in the daemon's domain where the program listens
    #[serde(rename = "socket")]
    path: PathBuf,

    /// What kind of device it is, for example blk or fs
    #[arg(long, value_name = "NAME")]
    r#type: String,

    /// The name by which the guest mounts a file system, if the program does not tell it
    #[arg(long, value_name = "TEXT")]
    tag: Option<String>,

    #[command(flatten)]
    #[serde(flatten)]
    limits: Limits,
}

/// Sockets, with the keys of the daemon's configuration.
#[derive(Args, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Vsock {
    /// The guest's address, from 3 on
    cid: u32,

    #[command(flatten)]
    #[serde(flatten)]
    limits: Limits,
}

/// What every kind of device has.
#[derive(Args, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Limits {
    /// Queues of a disk, pairs of queues of a card, 1 to 16
    #[arg(long, value_name = "NUMBER")]
    queues: Option<u32>,

    /// Descriptors of each queue, a power of two from 4 to 1024
    #[arg(long, value_name = "NUMBER")]
    queue_size: Option<u32>,

    /// The largest pool in pages of 4 KiB, 64 to 32768
    #[arg(long, value_name = "NUMBER")]
    max_pool_pages: Option<u32>,

    /// Address modes to offer, best first: pool, grant, machine
    #[arg(long, value_name = "MODE,...", value_delimiter = ',')]
    address_modes: Option<Vec<String>>,
}

impl New {
    /// The settings for the daemon: those that were given.
    pub fn settings(&self) -> Result<Settings> {
        Ok(match self {
            Self::Disk(disk) => {
                let mut keys = keys(disk)?;
                keys.insert("path".into(), absolute(&disk.path)?);
                Settings::Blk(keys)
            }
            Self::Net(net) => Settings::Net(keys(net)?),
            Self::VhostUser(user) => {
                let mut keys = keys(user)?;
                keys.insert("socket".into(), absolute(&user.path)?);
                Settings::VhostUser(keys)
            }
            Self::Vsock(vsock) => Settings::Vsock(keys(vsock)?),
        })
    }
}

/// The whole path: the daemon works in another directory.
fn absolute(path: &Path) -> Result<Value> {
    let absolute = path::absolute(path).with_context(|| path.display().to_string())?;
    Ok(serde_json::to_value(absolute)?)
}

fn keys(settings: &impl Serialize) -> Result<Map<String, Value>> {
    match serde_json::to_value(settings)? {
        Value::Object(mut keys) => {
            keys.retain(|_, value| !value.is_null());
            Ok(keys)
        }
        other => bail!("{other} is not a set of keys"),
    }
}

fn timeout(text: &str) -> Result<u32, String> {
    let range = 0..=MAX_TIMEOUT;
    text.parse()
        .ok()
        .filter(|seconds| range.contains(seconds))
        .ok_or_else(|| format!("it must be from 0 to {MAX_TIMEOUT} seconds"))
}

/// Writes a completion script.
pub fn complete(shell: Shell, out: &mut impl io::Write) {
    use clap::CommandFactory;

    let mut command = Arguments::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, out);
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use serde_json::json;

    use super::*;

    fn parse(words: &str) -> Arguments {
        let words = ["virtio-xenbusctl"].into_iter().chain(words.split(' '));
        Arguments::try_parse_from(words).unwrap()
    }

    fn error(words: &str) -> String {
        let words = ["virtio-xenbusctl"].into_iter().chain(words.split(' '));
        Arguments::try_parse_from(words).unwrap_err().to_string()
    }

    fn settings(words: &str) -> Value {
        match parse(words).command {
            Command::Attach { device, .. } => serde_json::to_value(device.settings().unwrap()),
            other => panic!("{other:?}"),
        }
        .unwrap()
    }

    #[test]
    fn command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn settings_are_those_that_were_given() {
        assert_eq!(
            settings("attach web disk /srv/a.img"),
            json!({"blk": {"path": "/srv/a.img", "readonly": false}})
        );
        assert_eq!(
            settings(
                "attach web disk /srv/a.img --readonly --logical-block-size 4096 --serial s \
                 --discard false --direct true --queues 2 --queue-size 64 --max-pool-pages 128 \
                 --address-modes grant,pool"
            ),
            json!({"blk": {
                "path": "/srv/a.img", "readonly": true, "logical-block-size": 4096,
                "serial": "s", "discard": false, "direct": true, "queues": 2, "queue-size": 64,
                "max-pool-pages": 128, "address-modes": ["grant", "pool"],
            }})
        );
        assert_eq!(
            settings("attach 5 net --bridge br0 --mac 00:16:3e:00:00:01 --mtu 9000"),
            json!({"net": {"bridge": "br0", "mac": "00:16:3e:00:00:01", "mtu": 9000}})
        );
        assert_eq!(
            settings("attach web vhost-user /run/s --type fs --tag t"),
            json!({"vhost-user": {"socket": "/run/s", "type": "fs", "tag": "t"}})
        );
        assert_eq!(
            settings("attach web vsock 42"),
            json!({"vsock": {"cid": 42}})
        );
    }

    #[test]
    fn paths_are_made_absolute() {
        let here = std::env::current_dir().unwrap();
        let path = settings("attach web disk a.img")["blk"]["path"].take();
        assert_eq!(path, json!(here.join("a.img")));
    }

    #[test]
    fn options_of_all_commands_may_come_last() {
        let arguments = parse("attach web net --bridge br0 --timeout 5 --json --socket /x");
        assert!(arguments.json && arguments.socket.as_os_str() == "/x");
        assert!(matches!(
            arguments.command,
            Command::Attach { timeout: 5, .. }
        ));
    }

    #[test]
    fn bad_arguments_are_named() {
        for (words, named) in [
            ("attach web net", "--bridge"),
            ("attach web disk", "<PATH>"),
            ("attach web floppy", "floppy"),
            ("attach web vhost-user /run/s", "--type"),
            ("attach web vsock -1", "-1"),
            ("attach web disk /a --timeout 601", "600"),
            ("attach web disk /a --direct maybe", "maybe"),
            ("attach web disk /a --queues many", "many"),
            ("detach web", "<DEVICE>"),
            ("detach web virtio/0 --timeout -1", "-1"),
            ("completion csh", "csh"),
        ] {
            let error = error(words);
            assert!(error.contains(named), "{words}: {error}");
        }
    }

    #[test]
    fn completions_know_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            complete(shell, &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in ["detach", "logical-block-size", "bridge"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }
}
