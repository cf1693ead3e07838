// SPDX-License-Identifier: GPL-2.0-or-later
//! What is mapped when.

use super::*;
use crate::memory::{Memory, Needs, Pool, Sharing};
use crate::testing::sharing::FakeFrames;
use vm_memory::GuestAddress;

const PAGE: u64 = PAGE_SIZE as u64;

struct Fixture {
    frames: Arc<FakeFrames>,
    stats: Arc<Stats>,
    memory: Memory,
}

impl Fixture {
    fn new(stay: bool) -> Self {
        let frames = FakeFrames::new(3 * LIMIT as u64, stay);
        let stats = Arc::<Stats>::default();
        let pool = Pool::new(Mapping::anonymous(PAGE_SIZE).unwrap());
        let sharing: Sharing = frames.sharing();
        let memory = Memory::new(&pool, &sharing, Needs::default(), &stats).unwrap();
        Self {
            frames,
            stats,
            memory,
        }
    }

    /// Frames that are mapped.
    fn mapped(&self) -> u64 {
        self.stats.frames_mapped.get() - self.stats.frames_unmapped.get()
    }

    /// Lends these frames.
    fn lend(&mut self, first: u64, count: usize, access: Access) -> Result<Parts, Lent> {
        let mut parts = self.memory.parts();
        let segment = segment(first * PAGE, count * PAGE_SIZE);
        match self.memory.lend(&[segment], access, &mut parts).unwrap() {
            Lent::Yes => Ok(parts),
            lent => Err(lent),
        }
    }

    fn sweep(&mut self) {
        match &mut self.memory.other {
            crate::memory::Other::Frames(cache) => cache.sweep_now(),
            _ => unreachable!(),
        }
    }
}

fn segment(address: u64, len: usize) -> Segment {
    Segment {
        address: GuestAddress(address),
        len,
    }
}

#[test]
fn buffers_are_where_the_guest_says() {
    for stay in [false, true] {
        let mut f = Fixture::new(stay);
        // Over the ends of pages, one of them twice, none in order.
        let segments = [
            segment(9 * PAGE - 7, 4110),
            segment(3 * PAGE + 100, 50),
            segment(9 * PAGE + 3, 1),
        ];
        let mut parts = f.memory.parts();
        let lent = f.memory.lend(&segments, Access::Write, &mut parts).unwrap();
        assert_eq!(lent, Lent::Yes);
        let mut byte = 0;
        for vector in parts.vectors() {
            let part: Vec<_> = (byte..).take(vector.len()).map(|n| (n / 5) as u8).collect();
            vector.slice().copy_from(&part);
            byte += vector.len();
        }
        assert_eq!(byte, 4161);
        let expected: Vec<_> = (0..4161).map(|n| (n / 5) as u8).collect();
        let mut got = f.frames.bytes(9 * PAGE - 7, 4110);
        // The last segment is inside the first, and was written after it.
        assert_eq!(got[10], expected[4160]);
        got[10] = expected[10];
        assert_eq!(got, expected[..4110]);
        assert_eq!(f.frames.bytes(3 * PAGE + 100, 50), expected[4110..4160]);
        assert_eq!(f.mapped(), 5);
        drop(parts);
        assert_eq!(f.mapped(), 0);

        let mut buffer = vec![0; 60];
        let all = buffer.as_mut_slice().into();
        f.memory.gather(&segments, 4100, all).unwrap();
        assert_eq!(buffer, expected[4100..4160]);
        assert_eq!(*f.frames.calls.lock().unwrap(), [5, 3]);
        assert_eq!(f.mapped(), if stay { 3 } else { 0 });
    }
}

/// For direct I/O there are pages of our own, and the guest's are changed when it is done.
#[test]
fn pages_are_lent_where_they_are_needed() {
    let mut f = Fixture::new(true);
    let needs = Needs {
        copies: 2 * PAGE_SIZE,
        pages: true,
    };
    let pool = Pool::new(Mapping::anonymous(PAGE_SIZE).unwrap());
    f.memory = Memory::new(&pool, &f.frames.sharing(), needs, &f.stats).unwrap();
    let parts = f.lend(5, 2, Access::Write).unwrap();
    assert_eq!(f.mapped(), 0);
    for vector in parts.vectors() {
        vector.slice().copy_from(&[7u8; 2 * PAGE_SIZE]);
    }
    assert_eq!(f.frames.bytes(5 * PAGE, 1), [0]);
    let segments = [segment(5 * PAGE, 2 * PAGE_SIZE)];
    f.memory.settle(&segments, &parts, PAGE_SIZE + 1).unwrap();
    assert_eq!(f.frames.bytes(6 * PAGE - 1, 3), [7, 7, 0]);
    assert_eq!(f.lend(7, 1, Access::Read).err(), Some(Lent::Later));
    drop(parts);
    f.frames.write(7 * PAGE, &[8]);
    let parts = f.lend(7, 1, Access::Read).unwrap();
    let mut byte = [0];
    let first = parts.vectors()[0].slice();
    first.copy_to(&mut byte);
    assert_eq!(byte, [8]);
}

#[test]
fn translated_frames_are_not_kept() {
    let mut f = Fixture::new(false);
    for _ in 0..2 {
        let parts = f.lend(5, 3, Access::Read).unwrap();
        assert_eq!(f.mapped(), 3);
        drop(parts);
        assert_eq!(f.mapped(), 0);
    }
    assert_eq!(f.stats.frame_hits.get(), 0);
    assert_eq!(f.memory.until_sweep(), None);
}

#[test]
fn frames_are_kept_while_they_are_used() {
    let mut f = Fixture::new(true);
    drop(f.lend(5, 3, Access::Read).unwrap());
    drop(f.lend(6, 1, Access::Read).unwrap());
    assert_eq!((f.mapped(), f.stats.frame_hits.get()), (3, 1));
    assert!(f.memory.until_sweep().is_some_and(|time| time <= SWEEP));

    // All of them since the last sweep; then only one of what was mapped together.
    f.sweep();
    assert_eq!(f.mapped(), 3);
    drop(f.lend(6, 1, Access::Read).unwrap());
    f.sweep();
    assert_eq!(f.mapped(), 0);
    assert_eq!(f.memory.until_sweep(), None);

    // What is lent stays, used or not.
    let parts = f.lend(7, 2, Access::Read).unwrap();
    f.sweep();
    f.sweep();
    assert_eq!(f.mapped(), 2);
    drop(parts);
    f.sweep();
    assert_eq!(f.mapped(), 0);
}

#[test]
fn time_passes() {
    let mut f = Fixture::new(true);
    drop(f.lend(5, 3, Access::Read).unwrap());
    f.memory.sweep();
    match &mut f.memory.other {
        crate::memory::Other::Frames(cache) => cache.swept -= SWEEP,
        _ => unreachable!(),
    }
    assert_eq!(f.memory.until_sweep(), Some(Duration::ZERO));
    f.memory.sweep();
    assert_eq!(f.mapped(), 3);
    f.sweep();
    assert_eq!(f.mapped(), 0);
}

/// The guest may make a page table of it at once.
#[test]
fn what_is_written_is_not_kept() {
    let mut f = Fixture::new(true);
    drop(f.lend(5, 1, Access::Read).unwrap());
    for round in 1..=2 {
        let parts = f.lend(5, 1, Access::Write).unwrap();
        for vector in parts.vectors() {
            vector.slice().copy_from(&[round; PAGE_SIZE]);
        }
        assert_eq!(f.frames.bytes(5 * PAGE, 1), [round]);
        assert_eq!((f.mapped(), f.stats.frame_hits.get()), (2, 0));
        drop(parts);
        assert_eq!(f.mapped(), 1);
    }
    drop(f.lend(5, 1, Access::Read).unwrap());
    assert_eq!(f.stats.frame_hits.get(), 1);
}

#[test]
fn no_more_is_kept_or_lent_than_may_be() {
    let mut f = Fixture::new(true);
    let limit = LIMIT as u64;
    for first in 0..3 {
        drop(f.lend(first * limit / 2, LIMIT / 2, Access::Read).unwrap());
        assert!(f.mapped() <= limit);
    }
    // The first has been unmapped, the others have not.
    drop(f.lend(limit, 1, Access::Read).unwrap());
    drop(f.lend(limit / 2, 1, Access::Read).unwrap());
    assert_eq!(f.stats.frame_hits.get(), 2);
    drop(f.lend(0, 1, Access::Read).unwrap());
    assert_eq!(f.stats.frame_hits.get(), 2);

    assert_eq!(f.lend(0, LIMIT + 1, Access::Read).err(), Some(Lent::Never));
    let half = f.lend(0, LIMIT / 2, Access::Read).unwrap();
    assert_eq!(
        f.lend(0, LIMIT / 2 + 1, Access::Read).err(),
        Some(Lent::Later)
    );
    let other = f.lend(2 * limit, LIMIT / 2, Access::Read).unwrap();
    assert_eq!(f.lend(0, 1, Access::Read).err(), Some(Lent::Later));
    // Copies are made all the same, of frames that cannot be kept.
    let mut byte = [1];
    let one = byte.as_mut_slice().into();
    let far = [segment(5 * limit / 2 * PAGE, 1)];
    f.memory.gather(&far, 0, one).unwrap();
    assert_eq!((byte, f.mapped()), ([0], limit));
    drop((half, other));
    assert!(f.lend(0, LIMIT, Access::Read).is_ok());
}

#[test]
fn bad_frames_are_refused_and_nothing_stays() {
    for stay in [false, true] {
        let mut f = Fixture::new(stay);
        let end = 3 * LIMIT as u64;
        let mut parts = f.memory.parts();
        let segments = [segment(PAGE, 5), segment((end - 1) * PAGE, 8192)];
        let error = f.memory.lend(&segments, Access::Read, &mut parts);
        assert!(matches!(error, Err(Fault::Refused(_))), "{error:?}");
        assert_eq!((parts.len(), f.mapped()), (0, 0));
    }
}
