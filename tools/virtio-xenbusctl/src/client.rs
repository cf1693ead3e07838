// SPDX-License-Identifier: GPL-2.0-or-later
//! Asks the daemon.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use control_socket::{Answer, Call, MAX_REQUEST, Reply, Request};

/// How much longer the daemon may take than it waits for a guest.
const PATIENCE: Duration = Duration::from_secs(30);

/// Has a request answered by the daemon at `socket`.
///
/// # Errors
///
/// There is no daemon, or it has not answered; or its own error.
pub fn ask(socket: &Path, request: Request) -> Result<Answer> {
    let waits = match &request {
        Request::Attach { timeout, .. } | Request::Detach { timeout, .. } => *timeout,
        Request::List | Request::Show { .. } => 0,
    };
    let line = control_socket::line(&Call::new(request)).map_err(anyhow::Error::msg)?;
    if line.len() > MAX_REQUEST {
        bail!("the arguments are too long: the daemon takes {MAX_REQUEST} bytes");
    }
    let mut stream = connect(socket)?;
    let answer = exchange(
        &mut stream,
        &line,
        Duration::from_secs(waits.into()) + PATIENCE,
    )
    .with_context(|| format!("the daemon at {} has not answered", socket.display()))?;
    match answer {
        Answer::Error(error) => Err(anyhow!(error)),
        answer => Ok(answer),
    }
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let error = match UnixStream::connect(socket) {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    let advice = match error.kind() {
        ErrorKind::NotFound => "start virtio-xenbusd, or name its socket with --socket",
        ErrorKind::ConnectionRefused => "the daemon that made it has ended; start virtio-xenbusd",
        ErrorKind::PermissionDenied => "only root may use it",
        _ => "is it virtio-xenbusd's control socket?",
    };
    Err(anyhow!(
        "cannot reach the daemon at {}: {error}; {advice}",
        socket.display()
    ))
}

fn exchange(stream: &mut UnixStream, line: &[u8], time: Duration) -> Result<Answer> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(time))?;
    // One that does not serve us says so without having read.
    let sent = stream.write_all(line);
    let mut answer = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut answer)?;
    if answer.is_empty() {
        sent?;
        bail!("it has closed the connection");
    }
    Ok(Reply::parse(&answer).map_err(anyhow::Error::msg)?.answer)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::{fs, process, thread};

    use super::*;

    /// What `ask` says when a daemon that takes one request answers with `reply`.
    fn answered(name: &str, reply: &str) -> Result<Answer, String> {
        let path = std::env::temp_dir().join(format!("vxb-ask-{}-{name}", process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let reply = reply.to_owned();
        let daemon = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; MAX_REQUEST];
            let len = stream.read(&mut request).unwrap();
            stream.write_all(reply.as_bytes()).unwrap();
            request[..len].to_vec()
        });
        let answer = ask(&path, Request::List).map_err(|error| format!("{error:#}"));
        assert_eq!(
            daemon.join().unwrap(),
            b"{\"version\":1,\"request\":\"list\"}\n"
        );
        fs::remove_file(path).unwrap();
        answer
    }

    #[test]
    fn answers_and_errors_of_the_daemon() {
        let reply = "{\"version\":1,\"answer\":{\"devices\":[]}}\n";
        assert_eq!(answered("good", reply), Ok(Answer::Devices(Vec::new())));
        let reply = "{\"version\":1,\"answer\":{\"error\":\"no such thing\"}}\n";
        assert_eq!(answered("error", reply), Err("no such thing".into()));
    }

    #[test]
    fn what_is_no_answer_is_named() {
        let error = answered("closed", "").unwrap_err();
        assert!(error.contains("closed the connection"), "{error}");
        let error = answered("other", "220 mail.example.org\n").unwrap_err();
        assert!(error.contains("no JSON"), "{error}");
        let error = answered("newer", "{\"version\":2}\n").unwrap_err();
        assert!(error.contains("version 2"), "{error}");
    }

    #[test]
    fn daemon_that_is_not_there() {
        let missing = PathBuf::from("/nonexistent/control.sock");
        let error = format!("{:#}", ask(&missing, Request::List).unwrap_err());
        assert!(error.contains("/nonexistent/control.sock"), "{error}");
        assert!(error.contains("start virtio-xenbusd"), "{error}");

        let stale = std::env::temp_dir().join(format!("vxb-ask-{}-stale", process::id()));
        drop(UnixListener::bind(&stale).unwrap());
        let error = format!("{:#}", ask(&stale, Request::List).unwrap_err());
        fs::remove_file(stale).unwrap();
        assert!(error.contains("has ended"), "{error}");
    }
}
