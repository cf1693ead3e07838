// SPDX-License-Identifier: GPL-2.0-or-later
//! A device and a program that ends, hangs or lies.

mod program;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, VolatileMemory};
use xen::Mapping;

use self::program::*;
use super::*;
use crate::memory::POOL_START;
use crate::testing::Driver;

const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const MQ: u64 = 1;
const BACKEND_REQ: u64 = 1 << 5;
const CONFIG: u64 = 1 << 9;
const INFLIGHT: u64 = 1 << 12;

/// A directory for a test's socket, removed in the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vhost-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }

    fn program(&self, answers: Answers) -> Program {
        Program::start(&self.socket(), answers)
    }

    fn open(&self, more: &str) -> Result<Box<dyn Device>> {
        let text = format!("socket = {:?}\n{more}", self.socket());
        let settings: Settings = toml::from_str(&text).unwrap();
        let tuning = Tuning {
            name: "test".into(),
            domain: 1,
            device: 0,
            id: 0,
            queues: 4,
            queue_size: 16,
            address_modes: None,
        };
        open(&settings, &tuning)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A disk's configuration space, after what the protocol puts before it.
fn config(capacity: u64) -> Vec<u8> {
    let mut config = [0, 60, 0].map(u32::to_le_bytes).concat();
    config.extend(capacity.to_le_bytes());
    config.resize(12 + 60, 0);
    config[12 + 34] = 2;
    config
}

/// A program that has taken `taken` buffers when its queue is stopped.
fn answers(protocol: u64, taken: u32) -> Answers {
    let word = |value: u64| value.to_le_bytes().to_vec();
    Answers::from([
        (GET_FEATURES, word(VERSION_1 | PROTOCOL_FEATURES | (1 << 6))),
        (GET_PROTOCOL_FEATURES, word(protocol)),
        (GET_QUEUE_NUM, word(2)),
        (GET_CONFIG, config(0)),
        (GET_VRING_BASE, [0, taken].map(u32::to_le_bytes).concat()),
        // Size, offset; numbers of queues and entries, with padding, as in C.
        (
            GET_INFLIGHT_FD,
            [0x1000, 0, 0x10_0001].map(u64::to_le_bytes).concat(),
        ),
    ])
}

/// A block device with a queue that runs.
struct Running {
    device: Box<dyn Device>,
    driver: Driver,
    worker: Option<Worker>,
}

impl Running {
    fn new(place: &Place) -> Self {
        let mut device = place.open("type = \"blk\"").unwrap();
        let driver = Driver::new(16);
        let memory = SharedPool {
            pool: driver.pool.clone(),
            share: Arc::new(|| File::open("/dev/null").map(Into::into)),
        };
        device.connect(&memory).unwrap();
        device.set_features(u128::from(VERSION_1)).unwrap();
        let worker = device.start_queue(driver.ring()).unwrap();
        Self {
            device,
            driver,
            worker: Some(worker),
        }
    }

    /// As the program does when it has finished a buffer.
    fn set_used(&self, index: u16) {
        // Where `testing` puts the used ring.
        let at = GuestAddress(POOL_START.0 + 0x5002);
        self.driver.pool.write_obj(index.to_le(), at).unwrap();
    }

    fn stop(&mut self) -> Result<()> {
        self.worker.take().unwrap().stop()
    }
}

#[test]
fn what_the_program_has_is_offered() {
    let place = Place::new("offer");
    let _program = place.program(answers(MQ | CONFIG, 0));
    let device = place.open("type = \"blk\"").unwrap();
    assert_eq!(device.id(), 2);
    // The guest may have four queues, the program has two.
    assert_eq!(device.queue_sizes(), [16, 16]);
    assert_eq!(device.config().bytes().len(), 60);
    assert_eq!(device.features(), 1 << 6);
    assert_eq!(device.ring_features(), 0);
}

#[test]
fn what_needs_more_queues_is_not_offered() {
    let place = Place::new("withheld");
    let mut answers = answers(MQ | CONFIG, 0);
    // SIZE and MULTIPORT.
    let features: u64 = VERSION_1 | PROTOCOL_FEATURES | 0b11;
    answers.insert(GET_FEATURES, features.to_le_bytes().to_vec());
    answers.insert(
        GET_CONFIG,
        [0u32, 12, 0, 0, 0, 0].map(u32::to_le_bytes).concat(),
    );
    let _program = place.program(answers);
    let device = place.open("type = \"console\"").unwrap();
    assert_eq!(device.features(), 0b01);
    assert_eq!(device.queue_sizes(), [16, 16]);
}

#[test]
fn sizes_of_a_scsi_host_stay_and_its_program_is_not_asked() {
    let place = Place::new("sizes");
    let mut answers = answers(MQ | CONFIG, 0);
    let mut config = vec![0u32; 3 + 9];
    (config[1], config[3], config[3 + 5]) = (36, 1, 96);
    answers.insert(
        GET_CONFIG,
        config.into_iter().flat_map(u32::to_le_bytes).collect(),
    );
    answers.insert(GET_QUEUE_NUM, 3u64.to_le_bytes().to_vec());
    let program = place.program(answers);
    let mut device = place.open("type = \"scsi\"").unwrap();
    assert_eq!(device.write_config(20, &96u32.to_le_bytes()), Ok(()));
    assert_eq!(
        device.write_config(20, &97u32.to_le_bytes()),
        Err(Errno::EINVAL)
    );
    drop(device);
    assert!(program.all().iter().all(|&request| request != SET_CONFIG));
}

#[test]
fn program_and_settings_must_fit() {
    let place = Place::new("fit");
    let error = |protocol, more| {
        let _program = place.program(answers(protocol, 0));
        format!("{:#}", place.open(more).err().unwrap())
    };
    let text = error(MQ | CONFIG, "type = \"blk\"\nqueues = 3");
    assert!(text.contains("`queues = 3`"), "{text}");
    let text = error(MQ, "type = \"blk\"");
    assert!(text.contains("CONFIG"), "{text}");
    let text = error(MQ, "type = \"fs\"");
    assert!(text.contains("`tag`"), "{text}");
    let text = error(MQ, "type = \"vsock\"");
    assert!(text.contains("CONFIG"), "{text}");
}

#[test]
fn nobody_and_somebody_silent_are_told_apart() {
    let place = Place::new("silent");
    let error = place.open("type = \"rng\"").err().unwrap();
    assert!(error.downcast_ref::<Nobody>().is_some());
    assert!(error.to_string().contains("socket"), "{error}");

    let _program = place.program(Answers::new());
    let begin = Instant::now();
    let error = place.open("type = \"rng\"").err().unwrap();
    assert!(error.downcast_ref::<Nobody>().is_none());
    assert!(
        error.to_string().contains("not answered GET_FEATURES"),
        "{error}"
    );
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn events_pass_both_ways() {
    let place = Place::new("events");
    let program = place.program(answers(MQ | CONFIG | INFLIGHT, 1));
    let mut running = Running::new(&place);
    let call = program.expect(SET_VRING_CALL);
    let kick = program.expect(SET_VRING_KICK);
    running.driver.chain(0, &[(0x10000, 16, 0)]);
    running.driver.submit(0);
    wait(&kick);
    running.set_used(1);
    signal(&call);
    running.driver.wait_call();
    running.stop().unwrap();
    assert!(running.device.is_quiet());
}

#[test]
fn queue_is_enabled_before_its_first_kick() {
    let place = Place::new("enable");
    let program = place.program(answers(MQ | CONFIG | INFLIGHT, 0));
    let running = Running::new(&place);
    drop(running);
    let all = program.all();
    let at = |wanted| all.iter().position(|&request| request == wanted).unwrap();
    assert!(at(SET_VRING_ENABLE) < at(SET_VRING_KICK), "{all:?}");
}

/// Waits for the eventfd that came with a message, and takes the event.
fn wait(message: &Message) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let event = message.fds[0].try_clone().unwrap();
    let mut fds = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)), Ok(1));
    File::from(event).read_exact(&mut [0; 8]).unwrap();
}

#[test]
fn stopping_waits_for_buffers_that_were_taken() {
    let place = Place::new("stop");
    let program = place.program(answers(MQ | CONFIG | INFLIGHT, 1));
    let mut running = Running::new(&place);
    thread::scope(|scope| {
        let stopped = scope.spawn(|| {
            let worker = running.worker.take().unwrap();
            worker.stop().map(|()| Instant::now())
        });
        program.expect(GET_VRING_BASE);
        thread::sleep(Duration::from_millis(20));
        let finished = Instant::now();
        let at = GuestAddress(POOL_START.0 + 0x5002);
        running.driver.pool.write_obj(1u16.to_le(), at).unwrap();
        assert!(stopped.join().unwrap().unwrap() >= finished);
    });
}

#[test]
fn memory_that_may_be_in_use_is_not_given_back() {
    let place = Place::new("quiet");
    // It says that it has taken three, finishes none, and does not let go of the memory.
    let mut answers = answers(MQ | CONFIG | INFLIGHT, 3);
    answers.insert(HANGS, Vec::new());
    let _program = place.program(answers);
    let mut running = Running::new(&place);
    let error = running.stop().unwrap_err();
    assert!(error.to_string().contains("may still use"), "{error}");
    assert!(!running.device.is_quiet());
}

#[test]
fn next_program_goes_on_where_the_ring_says_with_the_same_record() {
    let place = Place::new("again");
    let program = place.program(answers(MQ | CONFIG | INFLIGHT, 0));
    let mut running = Running::new(&place);
    let record = program.expect(SET_INFLIGHT_FD).fds.remove(0);
    assert_eq!(word(&program.expect(SET_VRING_BASE).body, 4), 0);
    program.expect(SET_VRING_KICK);
    running.set_used(5);
    drop(program);

    let program = place.program(answers(MQ | CONFIG | INFLIGHT, 5));
    program.expect(SET_MEM_TABLE);
    let again = program.expect(SET_INFLIGHT_FD).fds.remove(0);
    let inode =
        |fd: OwnedFd| std::os::unix::fs::MetadataExt::ino(&File::from(fd).metadata().unwrap());
    assert_eq!(inode(record), inode(again));
    assert_eq!(word(&program.expect(SET_VRING_BASE).body, 4), 5);
    program.expect(SET_VRING_KICK);
    running.stop().unwrap();
    program.expect(GET_VRING_BASE);
}

#[test]
fn without_a_record_nothing_is_guessed() {
    let place = Place::new("guess");
    let program = place.program(answers(MQ | CONFIG | INFLIGHT, 0));
    let mut running = Running::new(&place);
    program.expect(SET_VRING_KICK);
    running.driver.chain(0, &[(0x10000, 16, 0)]);
    running.driver.submit(0);
    drop(program);

    let program = place.program(answers(MQ | CONFIG, 0));
    program.expect(SET_FEATURES);
    let end = Instant::now() + Duration::from_secs(10);
    while !running.worker.as_ref().unwrap().ended() {
        assert!(Instant::now() < end);
        thread::yield_now();
    }
    let error = running.stop().unwrap_err();
    assert!(
        error.to_string().contains("1 requests were under way"),
        "{error}"
    );
}

#[test]
fn changed_configuration_is_seen() {
    let place = Place::new("change");
    let program = place.program(answers(MQ | CONFIG | BACKEND_REQ, 0));
    let device = place.open("type = \"blk\"\nqueues = 1").unwrap();
    let notices = program.expect(SET_BACKEND_REQ_FD).fds.remove(0);
    program.answer(GET_CONFIG, config(77));
    let change = [2, 1, 0].map(u32::to_le_bytes).concat();
    File::from(notices).write_all(&change).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while device.config().bytes()[0] != 77 {
        assert!(Instant::now() < end);
        thread::yield_now();
    }
    // The number of queues is the one that was offered.
    assert_eq!(device.config().bytes()[34], 1);
}

/// The heads that a program finds in its available ring, and where it has put used buffers.
fn heads(rings: &Mapping) -> Vec<u16> {
    let slice = rings.get_slice(0, 4096).unwrap();
    let index: u16 = slice.load(2, Ordering::Acquire).unwrap();
    (0..index)
        .map(|at| slice.read_obj(4 + 2 * usize::from(at % 16)).unwrap())
        .collect()
}

#[test]
fn requests_survive_a_program_that_keeps_no_record() {
    let place = Place::new("survive");
    let program = place.program(answers(MQ | CONFIG, 0));
    let mut running = Running::new(&place);
    let rings = |message: Message| {
        // Programs that use vm-memory refuse a table that is not sorted by address.
        let [rings, pool] = [8, 40].map(|at| address(&message.body, at));
        assert!(rings < pool, "{rings:#x} {pool:#x}");
        assert_eq!(pool, POOL_START.0);
        Mapping::of_file(message.fds[0].as_fd(), &[0, 1, 2, 3], true).unwrap()
    };
    let memory = rings(program.expect(SET_MEM_TABLE));
    let kick = program.expect(SET_VRING_KICK);
    for head in [5, 0, 3] {
        running.driver.chain(head, &[(0x10000, 16, 0)]);
        running.driver.submit(head);
        while heads(&memory).last() != Some(&head) {
            wait(&kick);
        }
    }
    assert_eq!(heads(&memory), [5, 0, 3]);
    // It finishes one, and ends before it tells.
    let used = memory.get_slice(4096, 4096).unwrap();
    used.write_obj([0u32, 16], 4).unwrap();
    used.store(1u16, 2, Ordering::Release).unwrap();
    drop(program);

    let program = place.program(answers(MQ | CONFIG, 0));
    let memory = rings(program.expect(SET_MEM_TABLE));
    assert_eq!(word(&program.expect(SET_VRING_BASE).body, 4), 0);
    program.expect(SET_VRING_KICK);
    assert_eq!(heads(&memory), [5, 3]);
    assert_eq!(running.driver.wait_used(1), (0, 16));
    running.stop().unwrap();
}
