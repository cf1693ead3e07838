// SPDX-License-Identifier: GPL-2.0-or-later
//! Queues: bad ones, and broken ones.

use super::*;

#[test]
fn bad_queues() {
    let mut frontend = Frontend::new();
    let mut backend = frontend.backend();
    let (invalid, outside) = (code(Errno::EINVAL), code(Errno::ENXIO));
    let good = good_queue(0);
    assert_eq!(
        frontend.enable(&mut backend, 0, good),
        invalid,
        "before features"
    );
    frontend.negotiate(&mut backend);
    for index in [1, 3, 47, 48, 0x10000, u32::MAX] {
        let result = frontend.enable(&mut backend, index, good);
        assert_eq!(result, code(Errno::ENOENT), "{index}");
        assert_eq!(
            frontend.request(&mut backend, QUEUE_RESET, [index, 0, 0]),
            code(Errno::ENOENT)
        );
    }
    let end = POOL_START.0 + POOL_SIZE as u64;
    for (queue, expected) in [
        (virtio_xenbus_queue { enabled: 0, ..good }, invalid),
        (virtio_xenbus_queue { enabled: 2, ..good }, invalid),
        (virtio_xenbus_queue { size: 0, ..good }, invalid),
        (virtio_xenbus_queue { size: 3, ..good }, invalid),
        (virtio_xenbus_queue { size: 128, ..good }, invalid),
        (
            virtio_xenbus_queue {
                size: u16::MAX,
                ..good
            },
            invalid,
        ),
        (
            virtio_xenbus_queue {
                desc: good.desc + 8,
                ..good
            },
            invalid,
        ),
        (
            virtio_xenbus_queue {
                driver: good.driver + 1,
                ..good
            },
            invalid,
        ),
        (
            virtio_xenbus_queue {
                device: good.device + 2,
                ..good
            },
            invalid,
        ),
        (
            virtio_xenbus_queue {
                event_channel: BAD_PORT,
                ..good
            },
            invalid,
        ),
        (virtio_xenbus_queue { desc: 0, ..good }, outside),
        (
            virtio_xenbus_queue {
                desc: 0x1000,
                ..good
            },
            outside,
        ),
        (
            virtio_xenbus_queue {
                desc: end - 16,
                ..good
            },
            outside,
        ),
        (
            virtio_xenbus_queue {
                driver: end - 2,
                ..good
            },
            outside,
        ),
        (
            virtio_xenbus_queue {
                device: end - 4,
                ..good
            },
            outside,
        ),
        (
            virtio_xenbus_queue {
                device: u64::MAX - 3,
                ..good
            },
            outside,
        ),
        (
            virtio_xenbus_queue {
                driver: 1 << 63,
                ..good
            },
            outside,
        ),
    ] {
        assert_eq!(
            frontend.enable(&mut backend, 0, queue),
            expected,
            "{queue:x?}"
        );
    }
    assert_eq!(frontend.enable(&mut backend, 0, good), 0);
    assert_eq!(frontend.enable(&mut backend, 0, good), 0, "again");
    assert_eq!(
        frontend.enable(&mut backend, 0, good_queue(0x4000)),
        invalid,
        "otherwise"
    );
}

#[test]
fn broken_queue_needs_a_reset() {
    let mut frontend = Frontend::new();
    frontend.fails = true;
    let mut backend = frontend.backend();
    frontend.start(&mut backend);
    let mut fds = [PollFd::new(backend.alarm().as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)).unwrap(), 1);
    assert_eq!(backend.failure(), None);
    assert!(backend.check_queues().unwrap());
    assert_eq!(frontend.device_status(), RUNNING | NEEDS_RESET);
    assert!(backend.failure().unwrap().contains("broken on purpose"));
    assert_eq!(
        frontend.get32(offset_of!(Page, device.config_interrupts)),
        1
    );
    assert_eq!(frontend.status(&mut backend, 0), 0);
    assert_eq!(frontend.device_status(), 0);
    assert_eq!(backend.failure(), None);
}
