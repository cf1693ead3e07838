// SPDX-License-Identifier: GPL-2.0-or-later
//! Packets from the bridge to the guest.

use super::*;

/// A card with a running receive queue.
fn receiving(more: &str, features: u64, buffers: u16, len: u32) -> (Host, Net, Driver, Worker) {
    let host = Host::new();
    let mut net = card(more, 1);
    net.set_features(features.into()).unwrap();
    let mut driver = Driver::new(64);
    post(&mut driver, 0, buffers, len);
    let worker = start(&mut net, &driver, 0);
    (host, net, driver, worker)
}

/// Whether the device wants to know of new buffers.
fn wants_kicks(driver: &Driver) -> bool {
    let flags = GuestAddress(driver.ring().queue.used_ring());
    driver.pool.load::<u16>(flags, Ordering::Acquire).unwrap() == 0
}

/// A TCP segment of `len` bytes of data, to be sent in pieces of 1400, with its header.
fn segment(len: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER];
    packet[0] = 1; // needs a checksum
    packet[1] = 1; // TCP over IPv4
    packet[2..4].copy_from_slice(&54u16.to_le_bytes());
    packet[4..6].copy_from_slice(&1400u16.to_le_bytes());
    packet[6..8].copy_from_slice(&34u16.to_le_bytes());
    packet[8..10].copy_from_slice(&16u16.to_le_bytes());
    packet.extend([0xff; 6]);
    packet.extend([2, 0, 0, 0, 0, 1, 0x08, 0x00]);
    let total = (40 + len) as u16;
    packet.extend([0x45, 0]);
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum: u32 = packet[HEADER + 14..HEADER + 34]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[HEADER + 24..HEADER + 26].copy_from_slice(&sum.to_be_bytes());
    packet.extend([
        0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    packet.extend((0..len).map(|n| (n * 11 + n / 253) as u8));
    packet
}

#[test]
fn packets_arrive_as_they_were_sent() {
    let (host, _net, mut driver, _worker) = receiving("mtu = 9000", MERGEABLE, 64, 2048);
    let mut used = 0;

    for len in [14, 60, 1514, 2035, 2036, 2037, 9000] {
        let packet = from_host(len);
        host.send(&packet);
        let buffers = packet.len().div_ceil(2048) as u16;
        driver.wait_used(used + buffers);
        let mut expected = packet.clone();
        expected[10] = buffers as u8;
        let got = bytes(&driver, DATA + u64::from(used) * 2048, packet.len());
        assert!(got == expected, "{len} bytes: {:?}", &got[..HEADER]);
        used += buffers;
    }
    let stats = Arc::clone(&driver.stats);
    assert_eq!(
        (stats.requests.get(), stats.drops.get(), stats.copied.get()),
        (7, 0, 0)
    );
    let sent = 14 + 60 + 1514 + 2035 + 2036 + 2037 + 9000;
    assert_eq!((stats.to_guest.get(), stats.from_guest.get()), (sent, 0));
    eventually("interrupts", || stats.interrupts.get() == 7);
    post(&mut driver, 0, 1, 2048);
}

#[test]
fn segment_arrives_whole() {
    let (host, _net, driver, _worker) = receiving("", MERGEABLE, 64, 2048);
    let packet = segment(60_000);
    host.send(&packet);
    let buffers = packet.len().div_ceil(2048) as u16;
    driver.wait_used(buffers);
    let got = bytes(&driver, DATA, packet.len());
    assert_eq!(got[..2], packet[..2]);
    assert_eq!(got[10..12], buffers.to_le_bytes());
    assert!(got[HEADER..] == packet[HEADER..]);
    assert_eq!(driver.stats.requests.get(), 1);
}

#[test]
fn segment_is_cut_for_a_guest_without_offloads() {
    let (host, _net, driver, _worker) = receiving("", MRG_RXBUF, 64, 2048);
    let packet = segment(14_000);
    host.send(&packet);
    driver.wait_used(10);
    for n in 0..10 {
        let got = bytes(&driver, DATA + n * 2048, HEADER + 54 + 1400);
        assert_eq!(got[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let data = HEADER + 54 + n as usize * 1400;
        assert!(got[HEADER + 54..] == packet[data..data + 1400]);
    }
    assert_eq!(driver.stats.requests.get(), 10);
}

#[test]
fn segment_after_frames_is_copied_once_more() {
    let (host, _net, mut driver, _worker) = receiving("", MERGEABLE, 64, 2048);
    let packet = segment(60_000);
    let stats = Arc::clone(&driver.stats);
    let buffers = packet.len().div_ceil(2048) as u16;
    let mut used = 0;
    let mut turn = |packet: &[u8], buffers: u16, spilt| {
        let first = used % 64;
        host.send(packet);
        used += buffers;
        driver.wait_used(used);
        // The test's buffers are one piece of memory from here to the last one.
        if first + buffers <= 64 {
            let got = bytes(&driver, DATA + u64::from(first) * 2048, packet.len());
            assert!(got[HEADER..] == packet[HEADER..]);
        }
        for n in first..first + buffers {
            post(&mut driver, n % 64, 1, 2048);
        }
        assert_eq!(stats.copied.get(), spilt);
    };
    turn(&packet, buffers, 0);
    // Those that make it expect no more segments, and use up the buffers that it has taken.
    for _ in 0..64 + buffers {
        turn(&from_host(100), 1, 0);
    }
    turn(&packet, buffers, 1);
    turn(&packet, buffers, 1);
}

#[test]
fn packet_waits_for_buffers() {
    let (host, _net, mut driver, _worker) = receiving("", MERGEABLE, 4, 2048);
    let packet = segment(60_000);
    let stats = Arc::clone(&driver.stats);
    eventually("reading", || !wants_kicks(&driver));
    host.send(&packet);
    eventually("waiting", || wants_kicks(&driver));
    post(&mut driver, 4, 28, 2048);
    let buffers = packet.len().div_ceil(2048) as u16;
    driver.wait_used(buffers);
    let got = bytes(&driver, DATA, packet.len());
    assert!(got[HEADER..] == packet[HEADER..]);
    assert_eq!(
        (stats.requests.get(), stats.drops.get(), stats.copied.get()),
        (1, 0, 1)
    );
}

#[test]
fn packet_does_not_wait_for_ever() {
    let (host, _net, mut driver, _worker) = receiving("", MERGEABLE, 4, 2048);
    let start = Instant::now();
    host.send(&segment(60_000));
    let stats = Arc::clone(&driver.stats);
    eventually("the drop", || stats.drops.get() == 1);
    assert!(start.elapsed() >= HOLD);
    // The buffers are as good as new.
    host.send(&from_host(100));
    assert_eq!(driver.wait_used(1), (0, 112));
    post(&mut driver, 4, 1, 2048);
}

#[test]
fn packet_too_long_for_its_buffer_is_dropped() {
    let (host, _net, driver, _worker) = receiving("mtu = 9000", 0, 4, 1526);
    host.send(&from_host(1515));
    host.send(&from_host(1514));
    assert_eq!(driver.wait_used(1), (0, 1526));
    let mut expected = from_host(1514);
    expected[10] = 1;
    assert_eq!(bytes(&driver, DATA, 1526), expected);
    assert_eq!(driver.stats.drops.get(), 1);
}

#[test]
fn short_receive_buffer_breaks_the_ring() {
    let (host, _net, _driver, worker) = receiving("", MERGEABLE, 1, 11);
    host.send(&from_host(60));
    eventually("the worker's end", || worker.ended());
    assert!(format!("{:#}", worker.stop().unwrap_err()).contains("11 bytes"));
}
