// SPDX-License-Identifier: GPL-2.0-or-later
//! Packets from the guest to the bridge.

use super::*;

#[test]
fn packets_leave_as_they_were_given() {
    let host = Host::new();
    let mut net = card("mtu = 9000", 1);
    net.set_features(MERGEABLE.into()).unwrap();
    let mut driver = Driver::new(64);
    let _receive = start(&mut net, &Driver::new(64), 0);
    let _worker = start(&mut net, &driver, 1);

    for (n, len) in [60, 1514, 9014].into_iter().enumerate() {
        let packet = from_guest(len);
        driver.pool.write_slice(&packet, Driver::at(DATA)).unwrap();
        // Split at odd places.
        let rest = packet.len() as u32 - 17;
        driver.chain(
            0,
            &[
                (DATA, 5, 0),
                (DATA + 5, 12, 0),
                (DATA + 17, 0, 0),
                (DATA + 17, rest, 0),
            ],
        );
        driver.submit(0);
        driver.wait_used(n as u16 + 1);
        assert!(host.receive()[HEADER..] == packet[HEADER..]);
    }
    let stats = &driver.stats;
    let sent = 60 + 1514 + 9014;
    assert_eq!((stats.requests.get(), stats.from_guest.get()), (3, sent));
    // One that comes before the device waits for it is seen later, maybe with the next.
    eventually("a kick", || stats.kicks.get() >= 1);
    assert!(stats.kicks.get() <= 3, "{stats:?}");
}

#[test]
fn bad_packets_are_dropped_and_others_go_on() {
    let host = Host::new();
    let mut net = card("", 1);
    net.set_features(MERGEABLE.into()).unwrap();
    let mut driver = Driver::new(64);
    let _receive = start(&mut net, &Driver::new(64), 0);
    let _worker = start(&mut net, &driver, 1);
    let absurd = |at: usize, value: u8| {
        let mut packet = from_guest(1000);
        packet[at] = value;
        packet
    };
    let bad = [
        from_guest(1000)[..HEADER - 1].to_vec(),
        from_guest(1000)[..HEADER].to_vec(),
        from_guest(1000)[..HEADER + 13].to_vec(),
        // A kind of segment that there is not, a segment of pieces of no length.
        absurd(1, 0x7f),
        absurd(1, 1),
        vec![0; 70_000],
    ];
    for (n, packet) in bad.iter().enumerate() {
        driver.pool.write_slice(packet, Driver::at(DATA)).unwrap();
        driver.chain(0, &[(DATA, packet.len() as u32, 0)]);
        driver.submit(0);
        driver.wait_used(n as u16 + 1);
    }
    let good = from_guest(500);
    driver.pool.write_slice(&good, Driver::at(DATA)).unwrap();
    driver.chain(0, &[(DATA, good.len() as u32, 0)]);
    driver.submit(0);
    driver.wait_used(bad.len() as u16 + 1);
    assert!(host.receive()[HEADER..] == good[HEADER..]);
    let stats = &driver.stats;
    assert_eq!(
        (stats.drops.get(), stats.requests.get()),
        (bad.len() as u64, 1)
    );
}
