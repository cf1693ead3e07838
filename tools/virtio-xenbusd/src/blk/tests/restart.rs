// SPDX-License-Identifier: GPL-2.0-or-later
//! A queue that an earlier daemon has left in the middle of its work.

use super::*;
use crate::record::Record;

#[test]
fn goes_on_with_what_was_left() {
    let mut disk = Fixture::writable("left");
    disk.worker.take().unwrap().stop().unwrap();
    let record = Record::volatile(1);
    let taken = || record.taken(0);
    let open = |path: &PathBuf| {
        let settings = Settings {
            path: Some(path.clone()),
            ..Settings::default()
        };
        Arc::new(Disk::open(&settings, [0; SERIAL_SIZE], 0).unwrap())
    };

    disk.header(READ, 3);
    disk.driver.chain(
        4,
        &[(HEADER, 16, 0), (BUFFER, 512, WRITE), (STATUS, 1, WRITE)],
    );
    taken().take(4, 16).unwrap();
    let mut ring = disk.driver.ring();
    ring.taken = taken();
    ring.left = vec![4];
    let file = open(&disk.path);
    let serve = move |ring, stop: &crate::worker::Stop| queue::serve(ring, stop, &file);
    disk.worker = Some(Worker::spawn(ring, serve).unwrap());
    assert_eq!(disk.driver.wait_used(1), (4, 513));
    assert_eq!(disk.pool_bytes(BUFFER, 512), [3; 512]);

    // It has gone back, and others follow.
    disk.used = 1;
    assert_eq!(disk.request(READ, 5, (BUFFER, 512), WRITE), (OK, 513));
    disk.worker.take().unwrap().stop().unwrap();
    let left = taken().recover(2, 16, |_| panic!("the record is behind"));
    assert_eq!(left.unwrap(), [0u16; 0]);
}
