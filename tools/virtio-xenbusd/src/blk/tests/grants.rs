// SPDX-License-Identifier: GPL-2.0-or-later
//! Data that is granted.

use super::*;
use crate::testing::sharing::FakeGrants;

const PAGE: usize = xen::PAGE_SIZE;

/// The first page that may only be read.
const READONLY: usize = 8 * PAGE;

fn fixture(name: &str) -> (Fixture, std::sync::Arc<FakeGrants>) {
    let grants = FakeGrants::new(16);
    let mut driver = Driver::new(16);
    driver.sharing = grants.sharing();
    (Fixture::with(name, Settings::default(), driver), grants)
}

/// Sends a request with data at these addresses.
pub fn request(disk: &mut Fixture, kind: u32, sector: u64, data: &[(u64, u32)]) -> (u8, u32) {
    let flags = if kind == READ { WRITE } else { 0 };
    let last = 1 + data.len() as u16;
    disk.header(kind, sector);
    let at = |offset| Driver::at(offset).0;
    disk.driver.descriptor(0, 0, at(HEADER), 16, NEXT, 1);
    for (index, &(address, len)) in (1..).zip(data) {
        disk.driver
            .descriptor(0, index, address, len, flags | NEXT, index + 1);
    }
    disk.driver.descriptor(0, last, at(STATUS), 1, WRITE, 0);
    disk.send(0)
}

/// The data of all sectors from `sector` on.
pub fn sectors(sector: u64, len: usize) -> Vec<u8> {
    let bytes = (sector..).flat_map(|sector| [sector as u8; SECTOR as usize]);
    bytes.take(len).collect()
}

#[test]
fn data_is_copied() {
    let (mut disk, grants) = fixture("grants");
    // At any offset, over the end of a page, with some of it in the pool.
    let data = [
        (FakeGrants::at(300), 8000),
        (Driver::at(BUFFER).0, 192),
        (FakeGrants::at(5 * PAGE as u64), 4096),
    ];
    assert_eq!(request(&mut disk, READ, 3, &data), (OK, 12289));
    let expected = sectors(3, 12288);
    assert_eq!(grants.bytes(300, 8000), expected[..8000]);
    assert_eq!(disk.pool_bytes(BUFFER, 192), expected[8000..8192]);
    assert_eq!(grants.bytes(5 * PAGE, 4096), expected[8192..]);
    assert!(grants.bytes(0, 300).iter().all(|&byte| byte == 0));
    assert!(grants.bytes(8300, 100).iter().all(|&byte| byte == 0));

    // What is only read need not be writable.
    let bytes: Vec<_> = (0..2 * PAGE).map(|n| (n / 7) as u8).collect();
    grants.write(READONLY + 1024, &bytes);
    let data = [(FakeGrants::at(READONLY as u64 + 1024), 8192)];
    assert_eq!(request(&mut disk, OUT, 100, &data), (OK, 1));
    assert_eq!(disk.file_bytes(100, 16), bytes);

    let stats = &disk.driver.stats;
    assert_eq!(stats.grant_buffers.get(), 3);
    assert_eq!(stats.pool_buffers.get(), 5);
    assert_eq!(stats.grant_copied.get(), 12096 + 8192);
    assert_eq!(stats.errors.get(), 0);
}

#[test]
fn all_of_a_request_may_be_granted() {
    let (mut disk, grants) = fixture("granted");
    let mut header = READ.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(7u64.to_le_bytes());
    grants.write(PAGE - 4, &header);
    grants.write(3 * PAGE, &[0xff]);
    let at = |offset: usize| FakeGrants::at(offset as u64);
    disk.driver.descriptor(0, 0, at(PAGE - 4), 16, NEXT, 1);
    disk.driver
        .descriptor(0, 1, at(2 * PAGE), 512, WRITE | NEXT, 2);
    disk.driver.descriptor(0, 2, at(3 * PAGE), 1, WRITE, 0);
    disk.send(0);
    assert_eq!(grants.bytes(3 * PAGE, 1), [OK]);
    assert_eq!(grants.bytes(2 * PAGE, 512), [7; 512]);
}

#[test]
fn bad_grants_fail_their_requests() {
    let (mut disk, grants) = fixture("bad-grants");
    let readonly = FakeGrants::at(READONLY as u64);
    let end = FakeGrants::at(16 * PAGE as u64);
    assert_eq!(request(&mut disk, READ, 0, &[(readonly, 512)]), (IOERR, 1));
    assert_eq!(request(&mut disk, READ, 0, &[(end, 512)]), (IOERR, 1));
    assert_eq!(
        request(&mut disk, OUT, 9, &[(end - 4096, 8192)]),
        (IOERR, 1)
    );
    assert_eq!(disk.file_bytes(9, 8), sectors(9, 4096));
    assert_eq!(disk.driver.stats.errors.get(), 3);
    // Nothing is lost of what there is for copies.
    for _ in 0..40 {
        assert_eq!(request(&mut disk, READ, 0, &[(end, 65536)]), (IOERR, 1));
    }
    let good = FakeGrants::at(0);
    assert_eq!(request(&mut disk, READ, 5, &[(good, 512)]), (OK, 513));
    assert_eq!(grants.bytes(0, 512), [5; 512]);
}

#[test]
fn addresses_of_other_modes_break_the_ring() {
    for (name, address, grant) in [
        ("no-grants", FakeGrants::at(0), false),
        ("no-frames", 0x1000, true),
        ("no-frames-at-all", 0x1000, false),
        ("no-such-reference", (1 << 63) | (1 << 44), true),
    ] {
        let grants = FakeGrants::new(16);
        let mut driver = Driver::new(16);
        if grant {
            driver.sharing = grants.sharing();
        }
        let mut disk = Fixture::with(name, Settings::default(), driver);
        disk.header(READ, 0);
        let at = |offset| Driver::at(offset).0;
        disk.driver.descriptor(0, 0, at(HEADER), 16, NEXT, 1);
        disk.driver.descriptor(0, 1, address, 512, WRITE | NEXT, 2);
        disk.driver.descriptor(0, 2, at(STATUS), 1, WRITE, 0);
        disk.driver.submit(0);
        let error = disk.breaks();
        assert!(
            error.contains(&format!("{address:#x} are outside")),
            "{error}"
        );
    }
}

/// More than there is memory for at a time, and more than there is at all.
#[test]
fn requests_wait_for_memory() {
    const COUNT: u16 = 20;
    let len = (SECTORS * SECTOR) as usize;
    assert!(usize::from(COUNT) * len > queue::COPIES);
    let grants = FakeGrants::new(2 * 20 * len / PAGE + 2);
    let mut driver = Driver::new(64);
    driver.sharing = grants.sharing();
    let mut disk = Fixture::with("waiting", Settings::default(), driver);

    disk.header(READ, 0);
    let at = |offset| Driver::at(offset).0;
    for number in 0..COUNT {
        let head = 3 * number;
        let status = at(STATUS + 1 + u64::from(number));
        let data = FakeGrants::at(u64::from(number) * len as u64);
        disk.driver
            .descriptor(0, head, at(HEADER), 16, NEXT, head + 1);
        disk.driver
            .descriptor(0, head + 1, data, len as u32, WRITE | NEXT, head + 2);
        disk.driver.descriptor(0, head + 2, status, 1, WRITE, 0);
    }
    for number in 0..COUNT {
        disk.driver.submit(3 * number);
    }
    disk.used += COUNT;
    disk.driver.wait_used(disk.used);
    for number in 0..usize::from(COUNT) {
        assert_eq!(disk.pool_bytes(STATUS + 1 + number as u64, 1), [OK]);
        assert_eq!(grants.bytes(number * len, len), sectors(0, len), "{number}");
    }
    assert_eq!(disk.driver.stats.requests.get(), u64::from(COUNT));
}
