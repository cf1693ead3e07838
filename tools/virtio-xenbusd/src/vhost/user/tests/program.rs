// SPDX-License-Identifier: GPL-2.0-or-later
//! A vhost-user program for tests, which leaves what to do to the test. It does not use the crate
//! that the front-end uses.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SET_BACKEND_REQ_FD: u32 = 21;
pub const GET_CONFIG: u32 = 24;
pub const SET_CONFIG: u32 = 25;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;

/// No request: with an answer to it, the program keeps its connection when the front-end ends it.
pub const HANGS: u32 = 0;

/// A message of the front-end.
pub struct Message {
    pub request: u32,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// What the program answers.
pub type Answers = HashMap<u32, Vec<u8>>;

/// A program that serves one connection.
pub struct Program {
    path: PathBuf,
    messages: Receiver<Message>,
    answers: Arc<Mutex<Answers>>,
    stream: Arc<Mutex<Option<UnixStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Program {
    /// One that listens at `path`, and answers when there is an answer.
    pub fn start(path: &Path, answers: Answers) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (send, messages) = channel();
        let stream = Arc::<Mutex<Option<UnixStream>>>::default();
        let theirs = Arc::clone(&stream);
        let answers = Arc::new(Mutex::new(answers));
        let said = Arc::clone(&answers);
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            *theirs.lock().unwrap() = Some(stream.try_clone().unwrap());
            serve(stream, &said, &send);
            // A program that hangs does not close its end.
            if !said.lock().unwrap().contains_key(&HANGS) {
                *theirs.lock().unwrap() = None;
            }
        });
        Self {
            path: path.into(),
            messages,
            answers,
            stream,
            thread: Some(thread),
        }
    }

    /// Answers a request otherwise from now on.
    pub fn answer(&self, request: u32, body: Vec<u8>) {
        self.answers.lock().unwrap().insert(request, body);
    }

    /// All requests until the connection ends.
    pub fn all(&self) -> Vec<u32> {
        self.messages
            .iter()
            .map(|message| message.request)
            .collect()
    }

    /// The next message that is this request.
    pub fn expect(&self, request: u32) -> Message {
        loop {
            match self.messages.recv_timeout(Duration::from_secs(10)) {
                Ok(message) if message.request == request => return message,
                Ok(_) => (),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no request {request}")
                }
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        fs::remove_file(&self.path).unwrap();
        if let Some(stream) = &*self.stream.lock().unwrap() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if !thread::panicking() {
            self.thread.take().unwrap().join().unwrap();
        }
    }
}

fn serve(mut stream: UnixStream, answers: &Mutex<Answers>, send: &Sender<Message>) {
    while let Some(message) = receive(&mut stream) {
        if let Some(body) = answers.lock().unwrap().get(&message.request) {
            let mut reply = message.request.to_le_bytes().to_vec();
            reply.extend(5u32.to_le_bytes());
            reply.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
            reply.extend(body);
            if message.request == GET_INFLIGHT_FD {
                let file = memfd_create(c"inflight", MFdFlags::MFD_CLOEXEC).unwrap();
                let fds = [file.as_raw_fd()];
                let control = [ControlMessage::ScmRights(&fds)];
                let data = [IoSlice::new(&reply)];
                let fd = stream.as_raw_fd();
                sendmsg::<UnixAddr>(fd, &data, &control, MsgFlags::empty(), None).unwrap();
            } else {
                stream.write_all(&reply).unwrap();
            }
        }
        if send.send(message).is_err() {
            break;
        }
    }
}

fn receive(stream: &mut UnixStream) -> Option<Message> {
    let mut header = [0; 12];
    let mut control = cmsg_space!([i32; 2]);
    let mut data = [IoSliceMut::new(&mut header)];
    let fd = stream.as_raw_fd();
    let got = recvmsg::<UnixAddr>(fd, &mut data, Some(&mut control), MsgFlags::empty()).ok()?;
    let fds = got.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::ScmRights(fds) => Some(fds.into_iter().map(owned).collect()),
        _ => None,
    });
    if got.bytes != header.len() {
        return None;
    }
    let [request, _, len] = [0, 4, 8].map(|at| word(&header, at));
    let mut body = vec![0; len as usize];
    stream.read_exact(&mut body).ok()?;
    Some(Message {
        request,
        body,
        fds: fds.unwrap_or_default(),
    })
}

#[allow(unsafe_code)]
fn owned(fd: i32) -> OwnedFd {
    // SAFETY: The kernel has just made the descriptor, for nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The word at `at`.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

/// The address at `at`.
pub fn address(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

/// Signals the eventfd that came with a message.
pub fn signal(message: &Message) {
    let fd = message.fds[0].try_clone().unwrap();
    File::from(fd).write_all(&1u64.to_ne_bytes()).unwrap();
}
