// SPDX-License-Identifier: GPL-2.0-or-later
//! Rings that a driver would not make.

use vm_memory::GuestMemoryBackend;

use super::*;
use crate::device::Ring;
use crate::memory::{Needs, total};
use crate::testing::sharing::FakeGrants;
use crate::testing::{DATA, Driver, INDIRECT, NEXT, WRITE};

const TABLE: u64 = 0x8000;
const LIMIT: usize = 64;

fn memory(ring: &Ring) -> Memory {
    Memory::new(&ring.memory, &ring.sharing, Needs::default(), &ring.stats).unwrap()
}

/// Offers one chain that `build` makes to a ring of 16.
fn pop(build: impl FnOnce(&Driver)) -> Result<Option<(Chain, usize)>> {
    let mut driver = Driver::new(16);
    build(&driver);
    driver.submit(0);
    let ring = driver.ring();
    let mut segments = Vec::new();
    let mut vring = Vring::new(&ring.queue, &ring.memory, LIMIT)?;
    let chain = vring.pop(&memory(&ring), &mut segments)?;
    Ok(chain.map(|chain| {
        assert_eq!(chain.len, total(&segments));
        (chain, segments.len())
    }))
}

fn refusal(build: impl FnOnce(&Driver)) -> String {
    format!("{:#}", pop(build).unwrap_err())
}

#[test]
fn takes_chains() {
    let chain = |len, readable, segments| {
        let head = 0;
        let chain = Chain {
            head,
            len,
            readable,
        };
        Some((chain, segments))
    };
    let two = pop(|d| d.chain(0, &[(DATA, 10, 0), (DATA + 99, 20, 0)]));
    assert_eq!(two.unwrap(), chain(30, 2, 2));
    let both = pop(|d| d.chain(0, &[(DATA, 10, 0), (DATA, 0, 0), (DATA, 20, WRITE)]));
    assert_eq!(both.unwrap(), chain(30, 1, 2));
    let empty = pop(|d| d.chain(0, &[(DATA, 0, 0)]));
    assert_eq!(empty.unwrap(), chain(0, 0, 0));
    // An indirect table may be longer than the ring.
    let indirect = |d: &Driver| {
        d.descriptor(0, 0, Driver::at(TABLE).0, 19 * 16, INDIRECT, 0);
        for n in 0..19 {
            let flags = if n < 18 { WRITE | NEXT } else { WRITE };
            d.descriptor(TABLE, n, Driver::at(DATA).0, 3, flags, n + 1);
        }
    };
    assert_eq!(pop(indirect).unwrap(), chain(57, 0, 19));
}

#[test]
fn refuses_broken_chains() {
    let at = Driver::at(DATA).0;
    let table = Driver::at(TABLE).0;
    let read = |build: &dyn Fn(&Driver)| refusal(build);

    assert!(read(&|d| d.descriptor(0, 0, at, 1, NEXT, 0)).contains("loop"));
    assert!(read(&|d| d.descriptor(0, 0, at, 1, NEXT, 16)).contains("descriptor 16"));
    let order = [(DATA, 1, WRITE), (DATA, 1, 0)];
    assert!(read(&|d| d.chain(0, &order)).contains("after one to write"));
    for (address, len) in [
        (0, 1),
        (at, u32::MAX),
        (u64::MAX, 2),
        (at | (1 << 63), 1),
        (at + (1 << 20) - 1, 2),
    ] {
        let text = read(&|d| d.descriptor(0, 0, address, len, 0, 0));
        assert!(text.contains("outside the pool"), "{text}");
    }
    for len in [1, 15, 17] {
        let text = read(&|d| d.descriptor(0, 0, table, len, INDIRECT, 0));
        assert!(text.contains(&format!("{len} bytes")), "{text}");
    }
    assert!(read(&|d| d.descriptor(0, 0, table, 0, INDIRECT, 0)).contains("descriptor 0"));
    assert!(read(&|d| d.descriptor(0, 0, 0, 16, INDIRECT, 0)).contains("outside the pool"));
    let granted = |d: &Driver| d.descriptor(0, 0, FakeGrants::at(0), 16, INDIRECT, 0);
    assert!(read(&granted).contains("outside the pool"));
    let both = |d: &Driver| d.descriptor(0, 0, table, 16, INDIRECT | NEXT, 1);
    assert!(read(&both).contains("indirect"));
    let nested = |d: &Driver| {
        d.descriptor(0, 0, table, 16, INDIRECT, 0);
        d.descriptor(TABLE, 0, table, 16, INDIRECT, 0);
    };
    assert!(read(&nested).contains("inside a chain"));
}

#[test]
fn refuses_a_broken_ring() {
    let mut driver = Driver::new(16);
    driver.submit(16);
    let ring = driver.ring();
    let mut vring = Vring::new(&ring.queue, &ring.memory, LIMIT).unwrap();
    let text = format!(
        "{:#}",
        vring.pop(&memory(&ring), &mut Vec::new()).unwrap_err()
    );
    assert!(text.contains("descriptor 16 is outside"), "{text}");

    for index in [17, 0x8000, 0xffff] {
        driver.set_avail(index);
        let mut vring = Vring::new(&ring.queue, &ring.memory, LIMIT).unwrap();
        let text = format!(
            "{:#}",
            vring.pop(&memory(&ring), &mut Vec::new()).unwrap_err()
        );
        assert!(text.contains("available index"), "{text}");
    }
}

#[test]
fn publishes_all_at_once() {
    let driver = Driver::new(16);
    let ring = driver.ring();
    let mut vring = Vring::new(&ring.queue, &ring.memory, LIMIT).unwrap();
    let used = |offset| {
        driver
            .pool
            .get_slice(GuestAddress(ring.queue.used_ring()), 134)
            .unwrap()
            .load::<u16>(offset, Ordering::Relaxed)
            .unwrap()
    };

    assert!(!vring.publish().unwrap());
    vring.stage(7, 100).unwrap();
    vring.stage(9, 200).unwrap();
    assert_eq!(
        (used(2), used(4), used(8), used(12), used(16)),
        (0, 7, 100, 9, 200)
    );
    assert!(vring.publish().unwrap());
    assert_eq!(used(2), 2);
    assert!(!vring.publish().unwrap());
}

#[test]
fn interrupts_as_the_driver_wishes() {
    let driver = Driver::new(16);
    let mut ring = driver.ring();
    let avail = |offset, value: u16| {
        let at = GuestAddress(ring.queue.avail_ring() + offset);
        driver.pool.store(value, at, Ordering::Relaxed).unwrap();
    };
    let batch = |vring: &mut Vring<'_>, count| {
        for _ in 0..count {
            vring.stage(0, 0).unwrap();
        }
        vring.publish().unwrap()
    };

    let mut vring = Vring::new(&ring.queue, &ring.memory, LIMIT).unwrap();
    avail(0, AVAIL_NO_INTERRUPT);
    assert!(!batch(&mut vring, 1));
    avail(0, 0);
    assert!(batch(&mut vring, 1));

    ring.queue.set_event_idx(true);
    ring.queue.set_next_used(0xfffe);
    let mut vring = Vring::new(&ring.queue, &ring.memory, LIMIT).unwrap();
    let event = |value| {
        let at = GuestAddress(ring.queue.avail_ring() + 4 + 2 * 16);
        driver
            .pool
            .store::<u16>(value, at, Ordering::Relaxed)
            .unwrap();
    };
    // The driver wants to know of buffer 1, the fourth from here.
    event(1);
    assert!(!batch(&mut vring, 3));
    assert!(batch(&mut vring, 1));
    assert!(!batch(&mut vring, 1));
    event(5);
    assert!(batch(&mut vring, 9));
}

#[test]
fn asks_for_kicks() {
    let mut driver = Driver::new(16);
    let mut ring = driver.ring();
    ring.queue.set_event_idx(true);
    let mut vring = Vring::new(&ring.queue, &ring.memory, LIMIT).unwrap();
    let event = |driver: &Driver| {
        let at = GuestAddress(ring.queue.used_ring() + 4 + 8 * 16);
        driver.pool.load::<u16>(at, Ordering::Relaxed).unwrap()
    };

    assert!(!vring.enable_kicks().unwrap());
    assert_eq!(event(&driver), 0);
    driver.chain(0, &[(DATA, 1, 0)]);
    driver.submit(0);
    assert!(vring.enable_kicks().unwrap());
    vring.pop(&memory(&ring), &mut Vec::new()).unwrap();
    assert!(!vring.enable_kicks().unwrap());
    assert_eq!(event(&driver), 1);
    // Of the buffer that was taken, not of the next one.
    vring.disable_kicks().unwrap();
    assert_eq!(event(&driver), 0);
}
