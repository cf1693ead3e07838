// SPDX-License-Identifier: GPL-2.0-or-later
//! Commands on the control queue.

use super::*;

/// Sends a command, as `(readable, writable)` buffers; the answer.
fn command(driver: &mut Driver, count: u16, bytes: &[u8]) -> u8 {
    driver.pool.write_slice(bytes, Driver::at(DATA)).unwrap();
    driver
        .pool
        .write_obj(0xaau8, Driver::at(DATA + 0x8000))
        .unwrap();
    driver.chain(
        0,
        &[(DATA, bytes.len() as u32, 0), (DATA + 0x8000, 1, WRITE)],
    );
    driver.submit(0);
    assert_eq!(driver.wait_used(count), (0, 1));
    driver.pool.read_obj(Driver::at(DATA + 0x8000)).unwrap()
}

#[test]
fn commands_are_carried_out() {
    let _host = Host::new();
    let mut net = card("", 2);
    let features = MERGEABLE | CTRL_RX | CTRL_MAC_ADDR | MQ | CTRL_GUEST_OFFLOADS;
    net.set_features(features.into()).unwrap();
    let mut driver = Driver::new(64);
    let _receive = start(&mut net, &Driver::new(64), 0);
    let _worker = start(&mut net, &driver, 4);

    assert_eq!(command(&mut driver, 1, &[1, 1, 0, 0x16, 0x3e, 9, 9, 9]), 0);
    assert_eq!(net.config().bytes()[..6], [0, 0x16, 0x3e, 9, 9, 9]);
    assert_eq!(command(&mut driver, 2, &[4, 0, 2, 0]), 0);
    // The kernel refuses to attach what is attached.
    assert!(net.card.tap(1).unwrap().attach().is_err());
    assert_eq!(command(&mut driver, 3, &[4, 0, 1, 0]), 0);
    assert!(net.card.tap(1).unwrap().detach().is_err());
    assert_eq!(command(&mut driver, 4, &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0);
    assert_eq!(command(&mut driver, 5, &[0, 0, 1]), 0);
    for (n, bad) in [[4, 0, 3, 0].as_slice(), &[9, 9], &[0], &[0; 20_000]]
        .iter()
        .enumerate()
    {
        assert_eq!(command(&mut driver, 6 + n as u16, bad), 1);
    }
    let stats = &driver.stats;
    assert_eq!((stats.requests.get(), stats.errors.get()), (5, 4));
}

#[test]
fn command_without_room_for_an_answer_is_returned() {
    let _host = Host::new();
    let mut net = card("", 1);
    net.set_features(MERGEABLE.into()).unwrap();
    let mut driver = Driver::new(64);
    let worker = start(&mut net, &driver, 2);
    driver.chain(5, &[(DATA, 3, 0)]);
    driver.submit(5);
    assert_eq!(driver.wait_used(1), (5, 0));
    assert_eq!(command(&mut driver, 2, &[0, 0, 1]), 1);
    // One that cannot be written to breaks the ring.
    driver.descriptor(0, 6, u64::MAX - 8, 64, WRITE, 0);
    driver.submit(6);
    eventually("an end", || worker.ended());
    let error = format!("{:#}", worker.stop().unwrap_err());
    assert!(error.contains("outside the pool"), "{error}");
}
