// SPDX-License-Identifier: GPL-2.0-or-later
//! A backend that goes on where another one has ended.

use super::*;

#[test]
fn another_backend_goes_on() {
    let mut frontend = Frontend::new();
    let mut backend = frontend.backend();
    frontend.start(&mut backend);
    drop(backend);
    assert_eq!(frontend.running.load(Ordering::SeqCst), 0);

    // With a request that the first one has not answered.
    frontend.put32(offset_of!(Page, request.op), STATUS);
    frontend.seq += 1;
    frontend.put32(offset_of!(Page, request.seq), frontend.seq);
    let mut backend = frontend.backend();
    assert_eq!(frontend.running.load(Ordering::SeqCst), 2);
    assert_eq!(frontend.device_status(), RUNNING);
    assert!(backend.serve().unwrap());
    assert_eq!(
        frontend.get32(offset_of!(Page, device.response_seq)),
        frontend.seq
    );
    assert_eq!(frontend.get32(offset_of!(Page, device.response_result)), 0);
}

#[test]
fn another_backend_between_features_and_status() {
    let mut frontend = Frontend::new();
    let mut backend = frontend.backend();
    assert_eq!(frontend.status(&mut backend, ACKNOWLEDGE | DRIVER), 0);
    assert_eq!(frontend.features(&mut backend, VERSION_1), 0);
    let mut backend = frontend.backend();
    assert_eq!(
        frontend.status(&mut backend, ACKNOWLEDGE | DRIVER | FEATURES_OK),
        0
    );
}

/// What a backend of a queue out of order has done: it has taken three of five buffers and
/// finished the second.
fn work(frontend: &Frontend) {
    let setup = good_queue(0x4000);
    let pool = |address, offset| vm_memory::GuestAddress(address + offset);
    frontend
        .pool
        .write_obj(5u16.to_le(), pool(setup.driver, 2))
        .unwrap();
    let taken = frontend.record().taken(2);
    for head in [7, 60, 0] {
        taken.take(head, QUEUE_SIZE).unwrap();
    }
    frontend
        .pool
        .write_obj(60u32.to_le(), pool(setup.device, 4))
        .unwrap();
    frontend
        .pool
        .write_obj(1u16.to_le(), pool(setup.device, 2))
        .unwrap();
}

#[test]
fn another_backend_knows_what_was_under_way() {
    let mut frontend = Frontend::new();
    let mut backend = frontend.backend();
    frontend.start(&mut backend);
    drop(backend);
    work(&frontend);
    let backend = frontend.backend();
    assert_eq!(frontend.device_status(), RUNNING);
    drop(backend);
    let started = frontend.started.lock().unwrap();
    let (avail, used, left) = started.last().unwrap();
    assert_eq!((*avail, *used), (3, 1));
    assert_eq!(left.as_slice(), [0, 7]);
}

#[test]
fn a_reset_ends_what_was_under_way() {
    let mut frontend = Frontend::new();
    let mut backend = frontend.backend();
    frontend.start(&mut backend);
    work(&frontend);
    assert_eq!(frontend.status(&mut backend, 0), 0);
    drop(backend);
    let taken = frontend.record().taken(2);
    assert_eq!(taken.recover(0, QUEUE_SIZE, |_| Ok(0)).unwrap(), [0u16; 0]);
}

#[test]
fn another_backend_does_not_trust_the_ring() {
    // More in the record than in the ring, and elements that are none.
    for (offset, value) in [(2u64, 70u16), (4, 64), (6, 1)] {
        let mut frontend = Frontend::new();
        let mut backend = frontend.backend();
        frontend.start(&mut backend);
        drop(backend);
        work(&frontend);
        let device = good_queue(0x4000).device;
        let place = vm_memory::GuestAddress(device + offset);
        frontend.pool.write_obj(value.to_le(), place).unwrap();
        let _backend = frontend.backend();
        assert_eq!(frontend.device_status() & NEEDS_RESET, NEEDS_RESET);
    }
    let mut frontend = Frontend::new();
    let mut backend = frontend.backend();
    frontend.start(&mut backend);
    drop(backend);
    work(&frontend);
    let driver = vm_memory::GuestAddress(good_queue(0x4000).driver + 2);
    frontend.pool.write_obj(2u16.to_le(), driver).unwrap();
    let _backend = frontend.backend();
    assert_eq!(frontend.device_status() & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn another_backend_does_not_guess() {
    let mut frontend = Frontend::new();
    let mut backend = frontend.backend();
    frontend.start(&mut backend);
    drop(backend);
    // A request that was made available and not used, and no record: only an ordered queue can
    // tell which.
    std::fs::remove_file(&frontend.place).unwrap();
    let available = |base: u64| vm_memory::GuestAddress(good_queue(base).driver + 2);
    frontend.pool.write_obj(1u16.to_le(), available(0)).unwrap();
    drop(frontend.backend());
    assert_eq!(frontend.device_status(), RUNNING);
    frontend
        .pool
        .write_obj(1u16.to_le(), available(0x4000))
        .unwrap();
    std::fs::remove_file(&frontend.place).unwrap();
    for _ in 0..2 {
        let _backend = frontend.backend();
        assert_eq!(frontend.device_status() & NEEDS_RESET, NEEDS_RESET);
    }
    // From its reset on there is one.
    let mut backend = frontend.backend();
    assert_eq!(frontend.status(&mut backend, 0), 0);
    drop(backend);
    assert!(frontend.record().was_found());
}

#[test]
fn another_backend_does_not_trust_the_page() {
    for word in 0..PAGE_SIZE / 4 {
        let mut frontend = Frontend::new();
        let mut backend = frontend.backend();
        frontend.start(&mut backend);
        drop(backend);
        frontend.put32(4 * word, u32::MAX);
        // It may refuse to go on, but answers and can be reset.
        let mut backend = frontend.backend();
        let _ = backend.serve().unwrap();
        frontend.put32(offset_of!(Page, request.seq), 0);
        frontend.put32(offset_of!(Page, device.response_seq), 0);
        frontend.seq = 0;
        assert_eq!(frontend.status(&mut backend, 0), 0);
    }
}
