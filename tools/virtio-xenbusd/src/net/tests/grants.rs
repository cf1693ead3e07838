// SPDX-License-Identifier: GPL-2.0-or-later
//! Packets in granted buffers.

use super::*;
use crate::testing::NEXT;
use crate::testing::sharing::FakeGrants;

const LEN: u32 = 2000;

/// The first page that may only be read.
const READONLY: u64 = 64 * 4096;

fn driver() -> (Driver, Arc<FakeGrants>) {
    let grants = FakeGrants::new(128);
    let mut driver = Driver::new(64);
    driver.sharing = grants.sharing();
    (driver, grants)
}

/// Where buffer `index` is: every third one is in the pool, one is in both.
fn buffer(index: u16) -> Vec<(u64, u32)> {
    let offset = u64::from(index) * u64::from(LEN);
    let pool = Driver::at(DATA + offset).0;
    let grant = FakeGrants::at(offset);
    match index % 3 {
        0 => vec![(pool, LEN)],
        1 => vec![(grant, LEN)],
        _ => vec![(pool, 5), (grant + 5, LEN - 5)],
    }
}

fn offer(driver: &mut Driver, index: u16) {
    let parts = buffer(index);
    let (address, len) = parts[0];
    match parts.get(1) {
        None => driver.descriptor(0, index, address, len, WRITE, 0),
        Some(&(address, len)) => {
            let rest = 63 - index;
            driver.descriptor(0, index, parts[0].0, parts[0].1, WRITE | NEXT, rest);
            driver.descriptor(0, rest, address, len, WRITE, 0);
        }
    }
    driver.submit(index);
}

fn content(driver: &Driver, grants: &FakeGrants, index: u16) -> Vec<u8> {
    let offset = u64::from(index) * u64::from(LEN);
    let mut all = bytes(driver, DATA + offset, LEN as usize);
    let granted = grants.bytes(offset as usize, LEN as usize);
    match index % 3 {
        0 => (),
        1 => all = granted,
        _ => all[5..].copy_from_slice(&granted[5..]),
    }
    all
}

#[test]
fn packets_arrive_in_buffers_of_both_kinds() {
    let host = Host::new();
    let mut net = card("mtu = 9000", 1);
    net.set_features(MERGEABLE.into()).unwrap();
    let (mut driver, grants) = driver();
    for index in 0..30 {
        offer(&mut driver, index);
    }
    let _worker = start(&mut net, &driver, 0);
    let mut used = 0;
    for len in [60, 100, 1514, 1988, 1989, 9000, 61, 9000, 8000, 62, 63] {
        let packet = from_host(len);
        host.send(&packet);
        let first = used;
        used += packet.len().div_ceil(LEN as usize) as u16;
        driver.wait_used(used);
        let got = (first..used).flat_map(|index| content(&driver, &grants, index));
        let got: Vec<_> = got.take(packet.len()).collect();
        let mut expected = packet.clone();
        expected[10] = (used - first) as u8;
        assert!(got == expected, "{len} bytes: {:?}", &got[..HEADER]);
    }
    let stats = &driver.stats;
    assert_eq!((stats.requests.get(), stats.drops.get()), (11, 0));
    assert!(stats.grant_copied.get() > 0 && stats.grant_buffers.get() > 0);
}

#[test]
fn packets_for_bad_grants_are_dropped() {
    let host = Host::new();
    let mut net = card("", 1);
    net.set_features(MERGEABLE.into()).unwrap();
    let (mut driver, grants) = driver();
    let good = FakeGrants::at(0);
    for (index, address) in (0..).zip([FakeGrants::at(READONLY), good, 1 << 63, good + 4096]) {
        driver.descriptor(0, index, address, LEN, WRITE, 0);
        driver.submit(index);
    }
    let _worker = start(&mut net, &driver, 0);
    for (len, head, written) in [(60, 0, 0), (61, 1, 73), (62, 2, 0), (63, 3, 75)] {
        host.send(&from_host(len));
        assert_eq!(driver.wait_used(head as u16 + 1), (head, written));
    }
    assert_eq!(grants.bytes(4096 + HEADER, 63), from_host(63)[HEADER..]);
    let stats = &driver.stats;
    assert_eq!((stats.requests.get(), stats.drops.get()), (2, 2));
}

#[test]
fn granted_packets_are_sent() {
    let host = Host::new();
    let mut net = card("mtu = 9000", 1);
    net.set_features(MERGEABLE.into()).unwrap();
    let (mut driver, grants) = driver();
    let _worker = start(&mut net, &driver, 1);

    // What is sent need not be writable.
    let packet = from_guest(9000);
    grants.write(READONLY as usize + 100, &packet[HEADER..]);
    let header = Driver::at(DATA).0;
    driver.descriptor(0, 0, header, HEADER as u32, NEXT, 1);
    driver.descriptor(0, 1, FakeGrants::at(READONLY + 100), 9000, 0, 0);
    driver.submit(0);
    assert!(host.receive() == packet);
    assert_eq!(driver.wait_used(1), (0, 0));

    // Not granted, and none of the mode's addresses that there are.
    driver.descriptor(0, 1, FakeGrants::at(128 * 4096 - 1000), 9000, 0, 0);
    driver.submit(0);
    assert_eq!(driver.wait_used(2), (0, 0));
    driver.descriptor(0, 1, FakeGrants::at(READONLY + 100), 9000, 0, 0);
    driver.submit(0);
    assert!(host.receive() == packet);
    assert_eq!(driver.wait_used(3), (0, 0));
    let stats = &driver.stats;
    assert_eq!((stats.requests.get(), stats.drops.get()), (2, 1));
    assert_eq!(stats.from_guest.get(), 18000);
    assert_eq!(
        (stats.pool_buffers.get(), stats.grant_buffers.get()),
        (3, 3)
    );
}
