// SPDX-License-Identifier: GPL-2.0-or-later
//! Data in frames of the guest.

use super::grants::{request, sectors};
use super::*;
use crate::testing::sharing::FakeFrames;

const PAGE: u64 = xen::PAGE_SIZE as u64;

fn fixture(name: &str, stay: bool, direct: bool) -> (Fixture, Arc<FakeFrames>) {
    let frames = FakeFrames::new(64, stay);
    let mut driver = Driver::new(16);
    driver.sharing = frames.sharing();
    let settings = Settings {
        direct: Some(direct),
        ..Settings::default()
    };
    (Fixture::with(name, settings, driver), frames)
}

/// As the file and the guest have it, whatever lies between: in the mapping or by way of a copy.
#[test]
fn data_is_read_and_written_in_place() {
    for (stay, direct) in [(false, false), (false, true), (true, false), (true, true)] {
        let name = format!("frames-{stay}-{direct}");
        let (mut disk, frames) = fixture(&name, stay, direct);
        let data = [
            (3 * PAGE + 512, 7680),
            (Driver::at(BUFFER).0, 512),
            (9 * PAGE, 4096),
        ];
        for round in 1..=2u64 {
            let (status, used) = request(&mut disk, READ, 3 * round, &data);
            assert_eq!((status, used), (OK, 12289), "{name}");
            let expected = sectors(3 * round, 12288);
            assert_eq!(
                frames.bytes(3 * PAGE + 512, 7680),
                expected[..7680],
                "{name}"
            );
            assert_eq!(disk.pool_bytes(BUFFER, 512), expected[7680..8192]);
            assert_eq!(frames.bytes(9 * PAGE, 4096), expected[8192..]);
            assert_eq!(frames.bytes(3 * PAGE, 512), [0; 512]);
        }
        let bytes: Vec<_> = (0..2 * PAGE).map(|n| (n / 7) as u8).collect();
        frames.write(20 * PAGE + 1024, &bytes);
        let data = [(20 * PAGE + 1024, 8192)];
        assert_eq!(request(&mut disk, OUT, 100, &data), (OK, 1));
        assert_eq!(disk.file_bytes(100, 16), bytes);

        let stats = &disk.driver.stats;
        assert_eq!(stats.machine_buffers.get(), 5);
        assert_eq!((stats.errors.get(), stats.copied.get()), (0, 0), "{name}");
        let mapped = stats.frames_mapped.get();
        let left = mapped - stats.frames_unmapped.get();
        let hits = stats.frame_hits.get();
        // Three frames are read into twice, and three written from once.
        let expected = if stay { (9, 3, 0) } else { (9, 0, 0) };
        assert_eq!((mapped, left, hits), expected, "{name}");

        let stats = Arc::clone(stats);
        disk.worker.take().unwrap().stop().unwrap();
        assert_eq!(stats.frames_unmapped.get(), mapped, "{name}");
    }
}

#[test]
fn frames_are_let_go_of_when_the_disk_is_idle() {
    let (mut disk, _frames) = fixture("frames-idle", true, false);
    for _ in 0..2 {
        assert_eq!(request(&mut disk, OUT, 3, &[(5 * PAGE, 512)]), (OK, 1));
    }
    let stats = Arc::clone(&disk.driver.stats);
    assert_eq!((stats.frames_mapped.get(), stats.frame_hits.get()), (1, 1));
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while stats.frames_unmapped.get() == 0 {
        assert!(std::time::Instant::now() < end, "it is kept");
        std::thread::yield_now();
    }
}

#[test]
fn bad_frames_fail_their_requests() {
    for (stay, direct) in [(false, false), (true, true)] {
        let (mut disk, frames) = fixture(&format!("bad-frames-{stay}"), stay, direct);
        for data in [(64 * PAGE, 512), (63 * PAGE, 8192), ((1 << 52) - 512, 512)] {
            assert_eq!(request(&mut disk, READ, 0, &[data]), (IOERR, 1));
            assert_eq!(request(&mut disk, OUT, 0, &[data]), (IOERR, 1));
        }
        let (status, used) = request(&mut disk, READ, 5, &[(63 * PAGE, 512)]);
        assert_eq!((status, used), (OK, 513));
        assert_eq!(frames.bytes(63 * PAGE, 512), [5; 512]);
    }
    let (mut disk, _frames) = fixture("table-in-frame", true, false);
    disk.driver.descriptor(0, 0, PAGE, 48, INDIRECT, 0);
    disk.driver.submit(0);
    let error = disk.breaks();
    assert!(error.contains("indirect table outside the pool"), "{error}");

    let (mut disk, _frames) = fixture("no-frame", true, false);
    disk.header(READ, 0);
    let at = |offset| Driver::at(offset).0;
    disk.driver.descriptor(0, 0, at(HEADER), 16, NEXT, 1);
    disk.driver
        .descriptor(0, 1, (1 << 52) - 1, 512, WRITE | NEXT, 2);
    disk.driver.descriptor(0, 2, at(STATUS), 1, WRITE, 0);
    disk.driver.submit(0);
    let error = disk.breaks();
    assert!(error.contains("0xfffffffffffff are outside"), "{error}");
}
