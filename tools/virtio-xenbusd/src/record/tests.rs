// SPDX-License-Identifier: GPL-2.0-or-later
//! What the next daemon finds.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use super::*;

const SIZE: u16 = 8;

/// A file for a record, removed in the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let name = format!("vxb-record-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn open(&self, number: u32) -> Record {
        Record::open(&self.0, number, 3).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A used ring.
#[derive(Default)]
struct Used {
    elements: RefCell<[u32; SIZE as usize]>,
    index: u16,
}

impl Used {
    fn recover(&self, taken: &Taken) -> Result<BTreeSet<u16>> {
        let element = |index: u16| Ok(self.elements.borrow()[usize::from(index % SIZE)]);
        let heads = taken.recover(self.index, SIZE, element)?;
        Ok(heads.into_iter().collect())
    }
}

#[test]
fn next_daemon_finds_its_own_connection_only() {
    let place = Place::new("find");
    let first = place.open(0);
    assert!(!first.was_found());
    let number = first.number().unwrap();
    assert_ne!(number, 0);
    assert!(!place.open(number).was_found(), "it is not committed");
    let first = place.open(0);
    let number = first.number().unwrap();
    first.commit().unwrap();
    first.taken(2).take(5, SIZE).unwrap();
    first.kept().set(1, u64::MAX);
    drop(first);

    let second = place.open(number);
    assert!(second.was_found());
    assert_eq!(second.number().unwrap(), number);
    assert_eq!(second.kept().get(1), u64::MAX);
    assert_eq!(
        Used::default().recover(&second.taken(1)).unwrap(),
        [].into()
    );
    assert_eq!(
        Used::default().recover(&second.taken(2)).unwrap(),
        [5].into()
    );
    second.kept().clear();
    assert_eq!(second.kept().get(1), 0);

    // Another connection, and one whose daemon left no record.
    for number in [number ^ 1, 0] {
        let other = place.open(number);
        assert!(!other.was_found());
        other.commit().unwrap();
        assert_eq!(Used::default().recover(&other.taken(2)).unwrap(), [].into());
    }
    fs::remove_file(&place.0).unwrap();
    assert!(!place.open(number).was_found());
    // One of another layout, or cut off.
    let number = number + 1;
    fs::write(
        &place.0,
        [b"VXR\x02".as_slice(), &number.to_ne_bytes()].concat(),
    )
    .unwrap();
    assert!(!place.open(number).was_found());
    fs::write(&place.0, [0]).unwrap();
    assert!(!place.open(number).was_found());
}

thread_local! {
    /// The stores that this process lives for.
    static LIFE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Whether the process lives for one more store.
pub fn lives() -> bool {
    let left = LIFE.get();
    LIFE.set(left.saturating_sub(1));
    left > 0
}

#[test]
fn killed_anywhere() {
    // After so many stores for two requests, which are finished out of order, these are under way.
    let under_way: [&[u16]; 11] = [
        &[],
        &[3],
        &[3, 1],
        &[3, 1], // used element
        &[3],    // used index
        &[3],    // flag
        &[3],    // recorded
        &[3],    // used element
        &[],
        &[],
        &[],
    ];
    // The indices wrap around, and the ring has been used before.
    for start in [0u16, 5, u16::MAX] {
        for (stores, expected) in under_way.iter().enumerate() {
            let record = Record::volatile(1);
            let taken = record.taken(0);
            taken.begin(start).unwrap();
            let mut used = Used {
                index: start,
                ..Used::default()
            };
            LIFE.set(stores);
            work(&taken, &mut used);
            LIFE.set(usize::MAX);
            // The next one may be killed as well.
            for _ in 0..2 {
                let left = used.recover(&taken).unwrap();
                assert_eq!(left, expected.iter().copied().collect(), "{stores} stores");
            }
            // The driver may make a buffer available again as soon as it sees it used.
            for head in 0..SIZE {
                assert_eq!(taken.take(head, SIZE).is_err(), expected.contains(&head));
            }
        }
    }
}

/// Takes 3 and 1, finishes 1 and 3.
fn work(taken: &Taken, used: &mut Used) {
    for head in [3, 1] {
        taken.take(head, SIZE).unwrap();
    }
    let mut index = used.index;
    for head in [1, 3] {
        if lives() {
            used.elements.borrow_mut()[usize::from(index % SIZE)] = head.into();
        }
        index = index.wrapping_add(1);
        if lives() {
            used.index = index;
        }
        taken.finish(head, index).unwrap();
    }
}

#[test]
fn refuses_what_a_driver_may_not_do() {
    let record = Record::volatile(1);
    let taken = record.taken(0);
    taken.take(0, SIZE).unwrap();
    let error = taken.take(0, SIZE).unwrap_err().to_string();
    assert!(error.contains("twice"), "{error}");
    let error = taken.take(SIZE, SIZE).unwrap_err().to_string();
    assert!(error.contains("descriptor 8"), "{error}");

    // A ring that has been written over.
    let element = |head: u32| move |_| Ok(head);
    for (used, head) in [(SIZE + 1, 0), (1, SIZE.into()), (1, u32::MAX)] {
        assert!(taken.recover(used, SIZE, element(head)).is_err());
    }
    // What the driver says is used it has back.
    assert_eq!(taken.recover(1, SIZE, element(0)).unwrap(), [0u16; 0]);
}

#[test]
fn names_say_which_device() {
    for text in ["backend/virtio/5/0", "backend/virtio_disk/32751/51712"] {
        let node = Node::parse(text).unwrap();
        assert_eq!(Node::of_short_name(&node.short_name()), Some(node));
    }
    for bad in [
        "",
        "5",
        "5-virtio",
        "5-virtio-01",
        "5-nic-0",
        "5-disk-0-1",
        "-disk-0",
    ] {
        assert_eq!(Node::of_short_name(bad), None, "{bad}");
    }
}
