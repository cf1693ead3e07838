// SPDX-License-Identifier: GPL-2.0-or-later
//! Requests with good and bad values.

use super::*;

#[test]
fn identity() {
    let frontend = Frontend::new();
    let _backend = frontend.backend();
    assert_eq!(frontend.get32(0), u32::from_le_bytes(*b"VXEN"));
    assert_eq!(frontend.get32(offset_of!(Page, identity.version)), 1);
    assert_eq!(frontend.get32(offset_of!(Page, identity.device_id)), 42);
    let offered = TRANSPORT_FEATURES | RING_FEATURES | DEVICE_FEATURE;
    for word in 0..4 {
        let bits = frontend.get32(offset_of!(Page, identity.features) + 4 * word);
        assert_eq!(bits, (offered >> (32 * word)) as u32);
    }
    assert_eq!(
        frontend.get32(offset_of!(Page, identity.num_queues)),
        3 | (4 << 16)
    );
    assert_eq!(
        frontend.get32(offset_of!(Page, identity.queue_size_max)),
        64
    );
    assert_eq!(frontend.get32(offset_of!(Page, config)), 0x0403_0201);
    assert_eq!(
        frontend.get32(offset_of!(Page, device.config_generation)) % 2,
        0
    );
}

#[test]
fn ordinary_life() {
    let mut frontend = Frontend::new();
    let mut backend = frontend.backend();
    frontend.start(&mut backend);
    assert_eq!(frontend.device_status(), RUNNING);
    assert_eq!(backend.features(), VERSION_1 | DEVICE_FEATURE);
    assert_eq!(
        running_queues(&backend),
        [("test 0".into(), true), ("test 2".into(), true)]
    );
    assert_eq!(frontend.request(&mut backend, QUEUE_RESET, [2, 0, 0]), 0);
    assert_eq!(
        running_queues(&backend),
        [("test 0".into(), true), ("test 2".into(), false)]
    );
    assert_eq!(frontend.running.load(Ordering::SeqCst), 1);
    assert_eq!(frontend.enable(&mut backend, 2, good_queue(0x4000)), 0);
    assert_eq!(frontend.running.load(Ordering::SeqCst), 2);
    assert_eq!(frontend.status(&mut backend, 0), 0);
    assert_eq!(frontend.running.load(Ordering::SeqCst), 0);
    assert_eq!(frontend.device_status(), 0);
    frontend.start(&mut backend);
}

#[test]
fn numbers_wrap() {
    let mut frontend = Frontend::new();
    frontend.seq = u32::MAX - 1;
    frontend.put32(offset_of!(Page, device.response_seq), u32::MAX - 1);
    frontend.put32(offset_of!(Page, request.seq), u32::MAX - 1);
    let mut backend = frontend.backend();
    for _ in 0..4 {
        assert_eq!(frontend.status(&mut backend, ACKNOWLEDGE), 0);
    }
}

#[test]
fn unknown_operations() {
    let mut frontend = Frontend::new();
    let mut backend = frontend.backend();
    for op in [0, 7, u32::MAX] {
        let result = frontend.request(&mut backend, op, [u32::MAX; 3]);
        assert_eq!(result, code(Errno::EOPNOTSUPP));
    }
}

#[test]
fn bad_status() {
    let mut frontend = Frontend::new();
    let mut backend = frontend.backend();
    let invalid = code(Errno::EINVAL);
    frontend.put32(offset_of!(Page, driver.status), 0);
    assert_eq!(frontend.request(&mut backend, STATUS, [0; 3]), invalid);
    for status in [0x100, u32::MAX, NEEDS_RESET, FEATURES_OK, DRIVER_OK] {
        assert_eq!(
            frontend.status(&mut backend, status),
            invalid,
            "{status:#x}"
        );
    }
    frontend.negotiate(&mut backend);
    // Only a reset clears bits.
    assert_eq!(frontend.status(&mut backend, ACKNOWLEDGE | DRIVER), invalid);
    assert_eq!(frontend.device_status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

#[test]
fn bad_features() {
    let mut frontend = Frontend::new();
    let mut backend = frontend.backend();
    let invalid = code(Errno::EINVAL);
    for features in [
        0,
        DEVICE_FEATURE,
        VERSION_1 | (1 << 6),
        VERSION_1 | (1 << 34),
        u128::MAX,
    ] {
        assert_eq!(
            frontend.features(&mut backend, features),
            invalid,
            "{features:#x}"
        );
    }
    frontend.negotiate(&mut backend);
    assert_eq!(frontend.features(&mut backend, VERSION_1), invalid);
}

#[test]
fn configuration_writes() {
    let mut frontend = Frontend::new();
    let mut backend = frontend.backend();
    let invalid = code(Errno::EINVAL);
    for (offset, length) in [
        (0, 1),
        (0, 33),
        (4, 1),
        (1, 4),
        (u32::MAX, 1),
        (u32::MAX, u32::MAX),
        (1, u32::MAX),
    ] {
        let result = frontend.request(&mut backend, CONFIG_WRITE, [0, offset, length]);
        assert_eq!(result, invalid, "{offset} {length}");
    }
    frontend
        .slice()
        .write_obj([9u8, 8], offset_of!(Page, request.data))
        .unwrap();
    assert_eq!(frontend.request(&mut backend, CONFIG_WRITE, [0, 2, 2]), 0);
    assert!(backend.update_config().unwrap());
    assert!(!backend.update_config().unwrap());
    assert_eq!(frontend.get32(offset_of!(Page, config)), 0x0809_0201);
    assert_eq!(
        frontend.get32(offset_of!(Page, device.config_interrupts)),
        1
    );
}
