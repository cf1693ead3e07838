// SPDX-License-Identifier: GPL-2.0-or-later
//! Cards on real taps and bridges, with the test as their driver. They need root.

mod control;
mod frames;
mod grants;
mod receive;
mod removed;
mod transmit;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use tap::{IoVec, Links, Name};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::features::*;
use super::{HEADER, HOLD, Net, Role, Settings, role, wait};
use crate::config::Tuning;
use crate::device::Device;
use crate::testing::{DATA, Driver, WRITE};
use crate::worker::Worker;

const BRIDGE: &str = "testbr0";
/// Long enough for anything that happens at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// A namespace with a bridge, and a host on the bridge: a tap of the test.
struct Host {
    links: Links,
    tap: tap::Queue,
}

impl Host {
    fn new() -> Self {
        let bridge = Name::new(BRIDGE).unwrap();
        let links = tap::testing::namespace_with_bridge(&bridge).unwrap();
        let name = Name::new("host").unwrap();
        let tap = tap::create(&name, 1, HEADER as u16).unwrap().pop().unwrap();
        links.set_mtu(&name, 9000).unwrap();
        links
            .add_port(&bridge, links.index(&name).unwrap())
            .unwrap();
        links.set_up(&name).unwrap();
        Self { links, tap }
    }

    fn send(&self, packet: &[u8]) {
        let mut bytes = packet.to_vec();
        let part = IoVec::from(VolatileSlice::from(bytes.as_mut_slice()));
        assert_eq!(self.tap.send(&[part]).unwrap(), packet.len());
    }

    /// The next packet that a card of ours has sent, header included.
    fn receive(&self) -> Vec<u8> {
        let mut bytes = vec![0; 70_000];
        loop {
            let part = IoVec::from(VolatileSlice::from(bytes.as_mut_slice()));
            match self.tap.receive(&[part]) {
                Ok(len) if bytes[HEADER + 6..HEADER + 9] == [0, 0x16, 0x3e] => {
                    bytes.truncate(len);
                    return bytes;
                }
                Ok(_) => (),
                Err(_) => {
                    let fds = [(self.tap.as_fd(), PollFlags::POLLIN)];
                    assert_eq!(wait(fds, Some(PATIENCE)).unwrap(), [true], "no packet came");
                }
            }
        }
    }
}

fn settings(more: &str) -> Settings {
    toml::from_str(&format!("bridge = \"{BRIDGE}\"\n{more}")).unwrap()
}

fn tuning(queues: u16) -> Tuning {
    let name = "test virtio/3".to_owned();
    Tuning {
        name,
        domain: 7,
        device: 3,
        id: 3,
        queues,
        address_modes: None,
        queue_size: 64,
    }
}

fn card(more: &str, queues: u16) -> Net {
    Net::new(&settings(more), &tuning(queues)).unwrap()
}

fn error(settings: &Settings, tuning: &Tuning) -> String {
    format!("{:#}", Net::new(settings, tuning).err().unwrap())
}

/// Starts queue `index` of `net` on the ring of `driver`; after queue 0, waits until packets pass.
fn start(net: &mut Net, driver: &Driver, index: u16) -> Worker {
    let mut ring = driver.ring();
    ring.index = index;
    let worker = net.start_queue(ring).unwrap();
    if index == 0 {
        let links = Links::new().unwrap();
        let tap = net.card.tap_name().unwrap();
        eventually("a carrier", || {
            tap::testing::is_running(&links, tap).unwrap()
        });
    }
    worker
}

/// Makes `count` buffers of `len` bytes available, from descriptor `first` on.
fn post(driver: &mut Driver, first: u16, count: u16, len: u32) {
    for index in first..first + count {
        driver.chain(
            index,
            &[(DATA + u64::from(index) * u64::from(len), len, WRITE)],
        );
        driver.submit(index);
    }
}

fn bytes(driver: &Driver, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    driver
        .pool
        .read_slice(&mut bytes, Driver::at(offset))
        .unwrap();
    bytes
}

/// Waits until `done`, which others make true.
fn eventually(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what} does not happen");
        std::thread::yield_now();
    }
}

/// A broadcast frame of `len` bytes from `source`, which is no packet of a known protocol.
fn frame(source: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(source);
    frame.extend([0x88, 0xb5]);
    frame.extend((frame.len()..len).map(|n| (n * 7 + n / 251) as u8));
    frame
}

fn from_host(len: usize) -> Vec<u8> {
    [vec![0; HEADER], frame([2, 0, 0, 0, 0, 1], len)].concat()
}

fn from_guest(len: usize) -> Vec<u8> {
    [vec![0; HEADER], frame([0, 0x16, 0x3e, 0, 0, 1], len)].concat()
}

const MERGEABLE: u64 = MRG_RXBUF | CSUM | GUEST_CSUM | GUEST_TSO4 | CTRL_VQ;

#[test]
fn queues_have_names() {
    let _host = Host::new();
    let mut net = card("", 2);
    let names = |net: &Net| {
        (0..5)
            .map(|index| net.queue_name(index))
            .collect::<Vec<_>>()
    };
    let all = [
        "receive 0",
        "transmit 0",
        "receive 1",
        "transmit 1",
        "control",
    ];
    assert_eq!(names(&net), all);
    net.set_features(CTRL_VQ.into()).unwrap();
    assert_eq!(
        names(&net)[1..],
        ["transmit 0", "control", "unused", "unused"]
    );
    net.set_features((CTRL_VQ | MQ).into()).unwrap();
    assert_eq!(names(&net), all);
}

#[test]
fn tap_is_made_and_removed() {
    let host = Host::new();
    let tap = Name::new("vx7.3").unwrap();
    let net = card("mtu = 1400", 2);
    assert_eq!(host.links.mtu(&tap).unwrap(), 1400);
    assert!(host.links.is_up(&tap).unwrap());
    let text = net.describe();
    assert!(
        text.contains("vx7.3") && text.contains(BRIDGE) && text.contains("1400"),
        "{text}"
    );
    drop(net);
    assert_eq!(
        host.links.index(&tap).unwrap_err().raw_os_error(),
        Some(libc::ENODEV)
    );
}

#[test]
fn card_shows_its_configuration() {
    let _host = Host::new();
    let net = card("mac = \"00:16:3e:01:02:03\"\nmtu = 9000", 4);
    let expected = [0, 0x16, 0x3e, 1, 2, 3, 1, 0, 4, 0, 0x28, 0x23];
    assert_eq!(net.config().bytes(), expected);
    assert_eq!(net.queue_sizes(), [64, 64, 64, 64, 64, 64, 64, 64, 64]);
}

#[test]
fn bad_bridges_are_named() {
    let _host = Host::new();
    let none = toml::from_str("bridge = \"nowhere\"").unwrap();
    assert!(
        error(&none, &tuning(1)).contains("\"nowhere\""),
        "{}",
        error(&none, &tuning(1))
    );
    let lo = toml::from_str("bridge = \"lo\"").unwrap();
    assert!(
        error(&lo, &tuning(1)).contains("\"lo\" is not a bridge"),
        "{}",
        error(&lo, &tuning(1))
    );
    let _first = card("", 1);
    assert!(
        error(&settings(""), &tuning(1)).contains("vx7.3"),
        "{}",
        error(&settings(""), &tuning(1))
    );
}

#[test]
fn broken_ring_ends_its_worker_only() {
    let host = Host::new();
    let mut net = card("", 1);
    net.set_features(MERGEABLE.into()).unwrap();
    let mut receive = Driver::new(64);
    let transmit = Driver::new(64);
    let _worker = start(&mut net, &receive, 0);
    let broken = start(&mut net, &transmit, 1);
    transmit.set_avail(65);
    eventually("the worker's end", || broken.ended());
    assert!(format!("{:#}", broken.stop().unwrap_err()).contains("available index"));
    post(&mut receive, 0, 1, 2048);
    host.send(&from_host(60));
    assert_eq!(receive.wait_used(1), (0, 72));
}

#[test]
fn link_follows_tap_and_bridge() {
    let host = Host::new();
    let net = card("", 1);
    let up = || net.config().bytes()[6] == 1;
    assert!(up());
    for name in ["vx7.3", BRIDGE] {
        let name = Name::new(name).unwrap();
        tap::testing::set_down(&host.links, &name).unwrap();
        eventually("link down", || !up());
        host.links.set_up(&name).unwrap();
        eventually("link up", up);
    }
}

#[test]
fn nothing_comes_before_the_start_or_after_the_reset() {
    let host = Host::new();
    let mut net = card("", 1);
    let mut driver = Driver::new(64);
    post(&mut driver, 0, 8, 2048);

    host.send(&from_host(61));
    net.set_features(MERGEABLE.into()).unwrap();
    let worker = start(&mut net, &driver, 0);
    host.send(&from_host(62));
    assert_eq!(driver.wait_used(1), (0, 74));
    worker.stop().unwrap();
    host.send(&from_host(63));
    net.reset();
    host.send(&from_host(64));
    let mut driver = Driver::new(64);
    post(&mut driver, 0, 8, 2048);
    net.set_features(MERGEABLE.into()).unwrap();
    let _worker = start(&mut net, &driver, 0);
    host.send(&from_host(65));
    assert_eq!(driver.wait_used(1), (0, 77));
}

#[test]
fn roles_of_queues() {
    let list = |accepted, pairs: u16| -> Vec<_> {
        (0..2 * pairs + 2)
            .map(|index| role(index, accepted, pairs))
            .collect()
    };
    use Role::*;
    let pair = |n| [Some(Receive(n)), Some(Transmit(n))];
    let control = [Some(Control), None];
    assert_eq!(list(CTRL_VQ, 1), [pair(0), control].concat());
    assert_eq!(list(CTRL_VQ | MQ, 2), [pair(0), pair(1), control].concat());
    assert_eq!(list(CTRL_VQ, 2), [pair(0), control, [None; 2]].concat());
    assert_eq!(list(0, 2), [pair(0), [None; 2], [None; 2]].concat());
    assert_eq!(role(u16::MAX, CTRL_VQ | MQ, 16), None);
}
