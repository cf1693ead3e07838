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

#[test]
fn another_backend_does_not_guess() {
    let mut frontend = Frontend::new();
    let mut backend = frontend.backend();
    frontend.start(&mut backend);
    drop(backend);
    // A request that was made available and not used: only an ordered queue can tell which.
    let available = |base: u64| vm_memory::GuestAddress(good_queue(base).driver + 2);
    frontend.pool.write_obj(1u16.to_le(), available(0)).unwrap();
    drop(frontend.backend());
    assert_eq!(frontend.device_status(), RUNNING);
    frontend
        .pool
        .write_obj(1u16.to_le(), available(0x4000))
        .unwrap();
    let _backend = frontend.backend();
    assert_eq!(frontend.device_status() & NEEDS_RESET, NEEDS_RESET);
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
