// SPDX-License-Identifier: GPL-2.0-or-later
//! The control tool of `virtio-xenbusd`: a client of its control socket.
#![deny(unsafe_code)]

mod arguments;
mod client;
mod table;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use control_socket::{Answer, Request};

use arguments::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = run(arguments).and_then(|output| write(&output));
    match output {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error:#}", env!("CARGO_PKG_NAME"));
            ExitCode::FAILURE
        }
    }
}

/// Does what was asked for; what is to be written.
fn run(arguments: Arguments) -> Result<Vec<u8>> {
    let request = match arguments.command {
        Command::List => Request::List,
        Command::Show { domain, device } => Request::Show { domain, device },
        Command::Attach {
            domain,
            timeout,
            device,
        } => Request::Attach {
            domain,
            device: device.settings()?,
            timeout,
        },
        Command::Detach {
            domain,
            device,
            timeout,
            force,
        } => Request::Detach {
            domain,
            device,
            timeout,
            force,
        },
        Command::Completion { shell } => {
            let mut script = Vec::new();
            arguments::complete(shell, &mut script);
            return Ok(script);
        }
    };
    let list = request == Request::List;
    let answer = client::ask(&arguments.socket, request)?;
    match arguments.json {
        true => json(&answer),
        false => Ok(text(&answer, list).into_bytes()),
    }
}

fn text(answer: &Answer, list: bool) -> String {
    match answer {
        Answer::Devices(devices) if list => table::list(devices),
        Answer::Devices(devices) => table::show(devices),
        Answer::Attached(target) => table::target(target, "attached"),
        Answer::Detached(target) => table::target(target, "detached"),
        Answer::Error(error) => format!("{error}\n"),
    }
}

/// The answer without what wraps it on the socket.
fn json(answer: &Answer) -> Result<Vec<u8>> {
    let mut json = match answer {
        Answer::Devices(devices) => serde_json::to_vec_pretty(devices),
        Answer::Attached(target) | Answer::Detached(target) => serde_json::to_vec_pretty(target),
        Answer::Error(error) => serde_json::to_vec_pretty(error),
    }?;
    json.push(b'\n');
    Ok(json)
}

fn write(output: &[u8]) -> Result<()> {
    match io::stdout().write_all(output) {
        // A reader that has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("standard output"),
    }
}
