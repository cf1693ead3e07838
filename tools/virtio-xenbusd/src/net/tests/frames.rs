// SPDX-License-Identifier: GPL-2.0-or-later
//! Packets in frames of the guest.

use super::*;
use crate::testing::NEXT;
use crate::testing::sharing::FakeFrames;

const PAGE: u64 = xen::PAGE_SIZE as u64;

fn driver(stay: bool) -> (Driver, Arc<FakeFrames>) {
    let frames = FakeFrames::new(128, stay);
    let mut driver = Driver::new(64);
    driver.sharing = frames.sharing();
    (driver, frames)
}

#[test]
fn packets_arrive_in_frames() {
    let host = Host::new();
    for stay in [false, true] {
        let mut net = card("mtu = 9000", 1);
        net.set_features(MERGEABLE.into()).unwrap();
        let (mut driver, frames) = driver(stay);
        // Two to a page and three pages, and one that is not there.
        driver.descriptor(0, 0, 128 * PAGE, 2048, WRITE, 0);
        driver.submit(0);
        for index in 1..41 {
            let address = u64::from(index) * 1600;
            driver.descriptor(0, index, address, 1600, WRITE, 0);
            driver.submit(index);
        }
        let worker = start(&mut net, &driver, 0);
        host.send(&from_host(60));
        assert_eq!(driver.wait_used(1), (0, 0));
        let mut used = 1;
        for len in [60, 1514, 1588, 1589, 9000, 61, 9000] {
            let packet = from_host(len);
            host.send(&packet);
            let first = used;
            used += packet.len().div_ceil(1600) as u16;
            driver.wait_used(used);
            let mut expected = packet.clone();
            expected[10] = (used - first) as u8;
            let got = frames.bytes(u64::from(first) * 1600, packet.len());
            assert!(got == expected, "{len} bytes: {:?}", &got[..HEADER]);
        }
        let stats = &driver.stats;
        assert_eq!((stats.requests.get(), stats.drops.get()), (7, 1));
        assert_eq!(stats.machine_buffers.get(), 40 + 1);
        // However many buffers a packet takes, they are mapped at once.
        assert_eq!(frames.calls.lock().unwrap().len(), 7);
        worker.stop().unwrap();
        assert_eq!(stats.frames_mapped.get(), stats.frames_unmapped.get());
    }
}

#[test]
fn packets_in_frames_are_sent() {
    let host = Host::new();
    for stay in [false, true] {
        let mut net = card("mtu = 9000", 1);
        net.set_features(MERGEABLE.into()).unwrap();
        let (mut driver, frames) = driver(stay);
        let _worker = start(&mut net, &driver, 1);
        let packet = from_guest(9000);
        frames.write(7 * PAGE + 100, &packet[HEADER..]);
        driver.descriptor(0, 0, Driver::at(DATA).0, HEADER as u32, NEXT, 1);
        for (count, address) in (1..).zip([7 * PAGE + 100, 127 * PAGE, 7 * PAGE + 100]) {
            driver.descriptor(0, 1, address, 9000, 0, 0);
            driver.submit(0);
            assert_eq!(driver.wait_used(count), (0, 0));
            if address != 127 * PAGE {
                assert!(host.receive() == packet);
            }
        }
        let stats = &driver.stats;
        assert_eq!((stats.requests.get(), stats.drops.get()), (2, 1));
        assert_eq!(stats.frames_mapped.get(), if stay { 3 } else { 6 });
        assert_eq!(stats.grant_copied.get(), 0);
    }
}
