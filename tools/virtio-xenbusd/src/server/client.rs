// SPDX-License-Identifier: GPL-2.0-or-later
//! A connection of the control socket: lines in and out, in bounded time.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use control_socket::{Answer, Call, MAX_REQUEST, Reply};

use super::service::Service;

/// How long a request may take to arrive, or an answer to be taken.
pub const TIME: Duration = Duration::from_secs(10);

/// Answers the requests of a client until it has no more, or breaks the rules, one of which is
/// `time`.
pub fn serve(stream: &UnixStream, service: &Service, time: Duration) {
    let mut lines = Lines::new(stream);
    let end = loop {
        let line = match lines.next(Instant::now() + time) {
            Ok(Some(line)) => line,
            Ok(None) => return,
            Err(end) => break end,
        };
        let answer = match Call::parse(&line) {
            Ok(call) => service.answer(call.request, stream.as_fd()),
            Err(error) => Answer::Error(error),
        };
        if let Err(error) = send(stream, answer, time) {
            log::debug!("control socket: {error}");
            return;
        }
    };
    let error = match end {
        End::TooLong => format!("the request has more than {MAX_REQUEST} bytes"),
        End::TooSlow => format!("no request has come within {} s", time.as_secs_f32()),
        End::Error(error) => {
            log::debug!("control socket: {error}");
            return;
        }
    };
    refuse(stream, error, time);
}

/// Says why there will be no answers.
pub fn refuse(stream: &UnixStream, error: String, time: Duration) {
    if let Err(error) = send(stream, Answer::Error(error), time) {
        log::debug!("control socket: {error}");
    }
}

fn send(stream: &UnixStream, answer: Answer, time: Duration) -> io::Result<()> {
    let line = control_socket::line(&Reply::new(answer)).map_err(io::Error::other)?;
    write(stream, &line, Instant::now() + time)
}

/// Writes all of `bytes`.
fn write(mut stream: &UnixStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = left(deadline).ok_or(ErrorKind::TimedOut)?;
        stream.set_write_timeout(Some(left))?;
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if again(&error) => (),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Why no more requests are read.
enum End {
    TooLong,
    TooSlow,
    Error(io::Error),
}

/// The lines that come from a client.
struct Lines<'a> {
    stream: &'a UnixStream,
    /// What has come and was not returned.
    buffer: Vec<u8>,
}

impl<'a> Lines<'a> {
    fn new(stream: &'a UnixStream) -> Self {
        Self {
            stream,
            buffer: Vec::with_capacity(MAX_REQUEST),
        }
    }

    /// The next line; `None` after the last one.
    fn next(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, End> {
        loop {
            let newline = self.buffer.iter().position(|&byte| byte == b'\n');
            match newline {
                Some(end) if end < MAX_REQUEST => {
                    return Ok(Some(self.buffer.drain(..=end).collect()));
                }
                None if self.buffer.len() < MAX_REQUEST => (),
                _ => return Err(End::TooLong),
            }
            if !self.read(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Reads something; whether there was something.
    fn read(&mut self, deadline: Instant) -> Result<bool, End> {
        let mut stream = self.stream;
        let mut part = [0; MAX_REQUEST];
        loop {
            let left = left(deadline).ok_or(End::TooSlow)?;
            let set = stream.set_read_timeout(Some(left));
            match set.and_then(|()| stream.read(&mut part)) {
                Ok(count) => {
                    self.buffer.extend(part.iter().take(count));
                    return Ok(count != 0);
                }
                Err(error) if again(&error) => (),
                Err(error) => return Err(End::Error(error)),
            }
        }
    }
}

/// The time until `deadline`, if there is some left.
fn left(deadline: Instant) -> Option<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(left)
}

/// Whether to look at the time and go on.
fn again(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
