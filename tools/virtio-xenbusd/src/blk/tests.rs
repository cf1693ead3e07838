// SPDX-License-Identifier: GPL-2.0-or-later
//! Requests through a real ring to a real file.

mod frames;
mod grants;
mod restart;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use vm_memory::Bytes;

use super::disk::Disk;
use super::{SECTOR, SERIAL_SIZE, Serial, Settings, queue};
use crate::testing::{DATA, Driver, INDIRECT, LARGEST, NEXT, WRITE};
use crate::worker::Worker;

const READ: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// Where the tests put headers, data and status.
const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const BUFFER: u64 = DATA + 0x1000;

const SECTORS: u64 = 256;

/// A disk whose sector n is full of bytes n, and a driver for it.
struct Fixture {
    path: PathBuf,
    driver: Driver,
    worker: Option<Worker>,
    used: u16,
}

impl Fixture {
    fn new(name: &str, settings: Settings) -> Self {
        Self::with(name, settings, Driver::new(16))
    }

    fn with(name: &str, settings: Settings, driver: Driver) -> Self {
        let path = std::env::temp_dir().join(format!("vxb-blk-{}-{name}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        for sector in 0..SECTORS {
            file.write_all(&[sector as u8; SECTOR as usize]).unwrap();
        }
        let settings = Settings {
            path: Some(path.clone()),
            ..settings
        };
        let disk =
            Arc::new(Disk::open(&settings, *b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 0).unwrap());
        let worker = Worker::spawn(driver.ring(), move |ring, stop| {
            queue::serve(ring, stop, &disk)
        })
        .unwrap();
        Self {
            path,
            driver,
            worker: Some(worker),
            used: 0,
        }
    }

    fn writable(name: &str) -> Self {
        Self::new(name, Settings::default())
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(sector.to_le_bytes());
        self.driver
            .pool
            .write_slice(&bytes, Driver::at(HEADER))
            .unwrap();
        self.driver
            .pool
            .write_obj(0xffu8, Driver::at(STATUS))
            .unwrap();
    }

    /// Sends a request with one data buffer; its status and used length.
    fn request(&mut self, kind: u32, sector: u64, data: (u64, u32), flags: u16) -> (u8, u32) {
        self.header(kind, sector);
        let (offset, len) = data;
        if len == 0 {
            self.driver.chain(0, &[(HEADER, 16, 0), (STATUS, 1, WRITE)]);
        } else {
            self.driver.chain(
                0,
                &[(HEADER, 16, 0), (offset, len, flags), (STATUS, 1, WRITE)],
            );
        }
        self.send(0)
    }

    fn send(&mut self, head: u16) -> (u8, u32) {
        self.driver.submit(head);
        self.used += 1;
        let (id, len) = self.driver.wait_used(self.used);
        assert_eq!(id, u32::from(head));
        (self.driver.pool.read_obj(Driver::at(STATUS)).unwrap(), len)
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        self.driver
            .pool
            .write_slice(&bytes, Driver::at(BUFFER))
            .unwrap();
        self.request(kind, 0, (BUFFER, 16), 0).0
    }

    fn pool_bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.driver
            .pool
            .read_slice(&mut bytes, Driver::at(offset))
            .unwrap();
        bytes
    }

    fn file_bytes(&self, sector: u64, sectors: u64) -> Vec<u8> {
        let mut bytes = vec![0; (sectors * SECTOR) as usize];
        File::open(&self.path)
            .unwrap()
            .read_exact_at(&mut bytes, sector * SECTOR)
            .unwrap();
        bytes
    }

    /// The worker ends by itself, because the driver is broken.
    fn breaks(mut self) -> String {
        use std::os::fd::AsFd;
        let mut fds = [nix::poll::PollFd::new(
            self.driver.alarm.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        let timeout = nix::poll::PollTimeout::from(10_000u16);
        assert_eq!(
            nix::poll::poll(&mut fds, timeout).unwrap(),
            1,
            "the worker goes on"
        );
        let worker = self.worker.take().unwrap();
        assert!(worker.ended());
        format!("{:#}", worker.stop().unwrap_err())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop().unwrap();
        }
        std::fs::remove_file(&self.path).unwrap();
    }
}

#[test]
fn reads_and_writes() {
    let mut disk = Fixture::writable("rw");
    assert_eq!(disk.request(READ, 3, (BUFFER, 1024), WRITE), (OK, 1025));
    let bytes = disk.pool_bytes(BUFFER, 1024);
    assert_eq!(bytes, [[3; 512], [4; 512]].concat());

    disk.driver
        .pool
        .write_slice(&[0xaa; 512], Driver::at(BUFFER))
        .unwrap();
    assert_eq!(disk.request(OUT, 7, (BUFFER, 512), 0), (OK, 1));
    assert_eq!(disk.request(FLUSH, 0, (0, 0), 0), (OK, 1));
    assert_eq!(
        disk.file_bytes(6, 3),
        [[6; 512], [0xaa; 512], [8; 512]].concat()
    );
}

#[test]
fn unaligned_memory_and_odd_segments() {
    let mut disk = Fixture::writable("odd");
    // Three segments, none of them whole sectors, at odd addresses.
    disk.header(READ, 9);
    disk.driver.chain(
        0,
        &[
            (HEADER, 16, 0),
            (BUFFER + 1, 100, WRITE),
            (BUFFER + 0x3003, 812, WRITE),
            (BUFFER + 0x5005, 112, WRITE),
            (STATUS, 1, WRITE),
        ],
    );
    assert_eq!(disk.send(0), (OK, 1025));
    assert_eq!(disk.pool_bytes(BUFFER + 1, 100), [9; 100]);
    assert_eq!(disk.pool_bytes(BUFFER + 0x3003, 412), [9; 412]);
    assert_eq!(disk.pool_bytes(BUFFER + 0x3003 + 412, 400), [10; 400]);
    assert_eq!(disk.pool_bytes(BUFFER + 0x5005, 112), [10; 112]);

    let text: Vec<u8> = (0..1024u32).map(|n| n as u8).collect();
    disk.driver
        .pool
        .write_slice(&text, Driver::at(BUFFER + 3))
        .unwrap();
    assert_eq!(disk.request(OUT, 20, (BUFFER + 3, 1024), 0), (OK, 1));
    assert_eq!(disk.file_bytes(20, 2), text);
}

#[test]
fn header_and_status_in_pieces() {
    let mut disk = Fixture::writable("pieces");
    disk.header(READ, 5);
    disk.driver.chain(
        0,
        &[
            (HEADER, 3, 0),
            (HEADER + 3, 13, 0),
            (STATUS - 512, 513, WRITE),
        ],
    );
    assert_eq!(disk.send(0), (OK, 513));
    assert_eq!(disk.pool_bytes(STATUS - 512, 512), [5; 512]);
}

#[test]
fn indirect_descriptors() {
    let mut disk = Fixture::writable("indirect");
    const TABLE: u64 = 0x8000;
    disk.header(READ, 2);
    disk.driver
        .descriptor(TABLE, 0, Driver::at(HEADER).0, 16, NEXT, 1);
    disk.driver
        .descriptor(TABLE, 1, Driver::at(BUFFER).0, 512, NEXT | WRITE, 2);
    disk.driver
        .descriptor(TABLE, 2, Driver::at(STATUS).0, 1, WRITE, 0);
    disk.driver
        .descriptor(0, 5, Driver::at(TABLE).0, 48, INDIRECT, 0);
    assert_eq!(disk.send(5), (OK, 513));
    assert_eq!(disk.pool_bytes(BUFFER, 512), [2; 512]);
}

/// As virtio_blk uses a ring that is smaller than it may be: `seg_max` is for the largest.
#[test]
fn indirect_table_larger_than_the_ring() {
    const TABLE: u64 = 0x8000;
    for (length, fits) in [(LARGEST, true), (LARGEST + 1, false)] {
        let mut disk = Fixture::writable(&format!("large{length}"));
        assert!(disk.driver.size < LARGEST);
        disk.header(READ, 2);
        let describe = |index, offset, len, flags| {
            let address = Driver::at(offset).0;
            disk.driver
                .descriptor(TABLE, index, address, len, flags, index + 1);
        };
        describe(0, HEADER, 16, NEXT);
        for index in 1..length - 1 {
            describe(index, BUFFER + 512 * u64::from(index), 512, NEXT | WRITE);
        }
        describe(length - 1, STATUS, 1, WRITE);
        let table = Driver::at(TABLE).0;
        disk.driver
            .descriptor(0, 0, table, 16 * u32::from(length), INDIRECT, 0);
        if fits {
            assert_eq!(disk.send(0), (OK, 512 * u32::from(length - 2) + 1));
        } else {
            disk.driver.submit(0);
            assert!(disk.breaks().contains("more than 64 descriptors"));
        }
    }
}

#[test]
fn serial_number() {
    let mut disk = Fixture::writable("serial");
    assert_eq!(
        disk.request(GET_ID, 0, (BUFFER, 20), WRITE),
        (OK, SERIAL_SIZE as u32 + 1)
    );
    assert_eq!(&disk.pool_bytes(BUFFER, 7), b"serial\0");
    // A short buffer gets what fits.
    assert_eq!(disk.request(GET_ID, 0, (BUFFER, 4), WRITE), (OK, 5));
}

#[test]
fn discard_and_write_zeroes() {
    let mut disk = Fixture::writable("zeroes");
    assert_eq!(disk.range(WRITE_ZEROES, 10, 2, 0), OK);
    assert_eq!(disk.range(WRITE_ZEROES, 20, 2, 1), OK);
    assert_eq!(disk.range(DISCARD, 30, 2, 0), OK);
    for sector in [10, 20, 30] {
        let expected = [
            [sector as u8 - 1; 512],
            [0; 512],
            [0; 512],
            [sector as u8 + 2; 512],
        ];
        assert_eq!(disk.file_bytes(sector - 1, 4), expected.concat());
    }
    // Unknown flags, ranges outside the disk, too much at once, not one range.
    assert_eq!(disk.range(WRITE_ZEROES, 0, 1, 2), UNSUPP);
    assert_eq!(disk.range(DISCARD, 0, 1, 1), UNSUPP);
    assert_eq!(disk.range(DISCARD, SECTORS, 1, 0), IOERR);
    assert_eq!(disk.range(DISCARD, u64::MAX, 1, 0), IOERR);
    assert_eq!(disk.range(WRITE_ZEROES, 0, u32::MAX, 0), IOERR);
    assert_eq!(disk.request(DISCARD, 0, (BUFFER, 32), 0).0, IOERR);
    assert_eq!(disk.request(DISCARD, 0, (BUFFER, 15), 0).0, IOERR);
}

#[test]
fn refuses_what_is_outside_the_disk() {
    let mut disk = Fixture::writable("outside");
    for (sector, len) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 100),
        (0, 513),
    ] {
        assert_eq!(
            disk.request(READ, sector, (BUFFER, len), WRITE).0,
            IOERR,
            "{sector} {len}"
        );
        assert_eq!(
            disk.request(OUT, sector, (BUFFER, len), 0).0,
            IOERR,
            "{sector} {len}"
        );
    }
    assert_eq!(disk.request(77, 0, (BUFFER, 512), 0).0, UNSUPP);
    assert_eq!(disk.request(READ, SECTORS - 1, (BUFFER, 512), WRITE).0, OK);
}

#[test]
fn read_only() {
    let settings = Settings {
        readonly: Some(true),
        ..Settings::default()
    };
    let mut disk = Fixture::new("ro", settings);
    assert_eq!(disk.request(OUT, 1, (BUFFER, 512), 0).0, IOERR);
    assert_eq!(disk.range(WRITE_ZEROES, 1, 1, 0), IOERR);
    assert_ne!(disk.range(DISCARD, 1, 1, 0), OK);
    assert_eq!(disk.request(READ, 1, (BUFFER, 512), WRITE).0, OK);
    assert_eq!(disk.request(FLUSH, 0, (0, 0), 0).0, OK);
    assert_eq!(disk.file_bytes(1, 1), [1; 512]);
}

#[test]
fn requests_are_counted() {
    let mut disk = Fixture::writable("counters");
    assert_eq!(disk.request(READ, 3, (BUFFER, 1024), WRITE).0, OK);
    assert_eq!(disk.request(OUT, 7, (BUFFER, 512), 0).0, OK);
    assert_eq!(disk.request(FLUSH, 0, (0, 0), 0).0, OK);
    assert_eq!(disk.request(GET_ID, 0, (BUFFER, 20), WRITE).0, OK);
    assert_eq!(disk.request(READ, SECTORS, (BUFFER, 512), WRITE).0, IOERR);
    assert_eq!(disk.request(77, 0, (BUFFER, 512), 0).0, UNSUPP);
    disk.worker.take().unwrap().stop().unwrap();
    let stats = &disk.driver.stats;
    assert_eq!((stats.requests.get(), stats.errors.get()), (4, 2));
    assert_eq!((stats.to_guest.get(), stats.from_guest.get()), (1024, 512));
    // The driver has no event indices: it is told of news, and of nothing else. One event
    // may tell of several requests, one kick, too.
    for events in [&stats.interrupts, &stats.kicks] {
        assert!((1..=6).contains(&events.get()), "{stats:?}");
    }
}

#[test]
fn many_at_once() {
    let mut disk = Fixture::writable("many");
    for round in 0..50u64 {
        for slot in 0..5u16 {
            let header = HEADER + 0x20 * u64::from(slot);
            let buffer = BUFFER + 0x1000 * u64::from(slot);
            let sector = (round * 5 + u64::from(slot)) % SECTORS;
            let mut bytes = READ.to_le_bytes().to_vec();
            bytes.extend(0u32.to_le_bytes());
            bytes.extend(sector.to_le_bytes());
            disk.driver
                .pool
                .write_slice(&bytes, Driver::at(header))
                .unwrap();
            disk.driver.chain(
                3 * slot,
                &[
                    (header, 16, 0),
                    (buffer, 512, WRITE),
                    (buffer + 0x800, 1, WRITE),
                ],
            );
            disk.driver.submit(3 * slot);
        }
        disk.used += 5;
        disk.driver.wait_used(disk.used);
        for slot in 0..5u64 {
            let sector = (round * 5 + slot) % SECTORS;
            assert_eq!(
                disk.pool_bytes(BUFFER + 0x1000 * slot, 512),
                [sector as u8; 512]
            );
        }
    }
}

#[test]
fn broken_available_index() {
    let disk = Fixture::writable("index");
    disk.driver.set_avail(1000);
    disk.breaks();
}

#[test]
fn buffer_outside_the_pool() {
    for address in [0, 1 << 62, (1 << 62) + (1 << 20) - 8, u64::MAX - 4, 1 << 63] {
        let mut disk = Fixture::writable(&format!("pool{address:x}"));
        disk.header(READ, 0);
        disk.driver
            .descriptor(0, 0, Driver::at(HEADER).0, 16, NEXT, 1);
        disk.driver.descriptor(
            0,
            1,
            address,
            if address == 1 << 62 { u32::MAX } else { 512 },
            NEXT | WRITE,
            2,
        );
        disk.driver
            .descriptor(0, 2, Driver::at(STATUS).0, 1, WRITE, 0);
        disk.driver.submit(0);
        let error = disk.breaks();
        assert!(
            error.contains("outside the pool") || error.contains("no place"),
            "{error}"
        );
    }
}

#[test]
fn descriptor_loop() {
    let mut disk = Fixture::writable("loop");
    disk.driver
        .descriptor(0, 0, Driver::at(HEADER).0, 16, NEXT, 1);
    disk.driver
        .descriptor(0, 1, Driver::at(BUFFER).0, 16, NEXT, 0);
    disk.driver.submit(0);
    disk.breaks();
}

#[test]
fn head_beyond_the_table() {
    let mut disk = Fixture::writable("head");
    disk.driver.submit(16);
    disk.breaks();
}

#[test]
fn chains_that_are_no_request() {
    for buffers in [
        &[(HEADER, 16, 0)][..],
        &[(HEADER, 15, 0), (STATUS, 1, WRITE)],
        &[(STATUS, 1, WRITE)],
        &[(HEADER, 16, 0), (STATUS, 0, WRITE)],
        &[(STATUS, 1, WRITE), (HEADER, 16, 0)],
    ] {
        let mut disk = Fixture::writable(&format!("chain{}-{}", buffers.len(), buffers[0].1));
        disk.driver.chain(0, buffers);
        disk.driver.submit(0);
        disk.breaks();
    }
}

#[test]
fn indirect_table_of_bad_form() {
    const TABLE: u64 = 0x8000;
    // A length that is no multiple of a descriptor's, none, and a table in a table.
    for (len, inner) in [(40, 0), (0, 0), (16, INDIRECT)] {
        let mut disk = Fixture::writable(&format!("table{len}-{inner}"));
        disk.driver
            .descriptor(TABLE, 0, Driver::at(TABLE).0, 16, inner, 0);
        disk.driver
            .descriptor(0, 0, Driver::at(TABLE).0, len, INDIRECT, 0);
        disk.driver.submit(0);
        disk.breaks();
    }
}

#[test]
fn serials() {
    assert!(Serial::try_from("disk-1".to_string()).is_ok());
    assert!(Serial::try_from("x".repeat(20)).is_ok());
    assert!(Serial::try_from("x".repeat(21)).is_err());
    assert!(Serial::try_from("a b".to_string()).is_err());
    assert!(Serial::try_from("é".to_string()).is_err());
}
