// SPDX-License-Identifier: GPL-2.0-or-later
//! Xenstored, which is the test here, ends.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixListener;
use std::thread;

const WATCH: u32 = 4;
const WATCH_EVENT: u32 = 15;

/// A message of xenstored: `struct xsd_sockmsg` and text.
fn message(kind: u32, text: &[u8]) -> Vec<u8> {
    let header = [kind, 0, 0, text.len() as u32].map(u32::to_ne_bytes);
    [header.as_flattened(), text].concat()
}

#[test]
fn lost_connection_is_noticed_and_named() {
    let directory = std::env::temp_dir().join(format!("xen-lost-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    // SAFETY: No other thread of this process uses the environment now.
    unsafe { std::env::set_var("XENSTORED_PATH", &path) };

    let xenstored = thread::spawn(move || {
        let mut client = listener.accept().unwrap().0;
        let mut request = [0; 256];
        let len = client.read(&mut request).unwrap();
        assert_eq!(request[..4], WATCH.to_ne_bytes(), "{:?}", &request[..len]);
        // The library writes path and token by themselves.
        let mut left = u32::from_ne_bytes(request[12..16].try_into().unwrap()) as usize;
        left -= len - 16;
        client.read_exact(&mut request[..left]).unwrap();
        client.write_all(&message(WATCH, b"OK\0")).unwrap();
        client
            .write_all(&message(WATCH_EVENT, b"domid\0\0"))
            .unwrap();
    });
    let store = xen::Store::open().unwrap();
    store.wait_lost().unwrap();
    xenstored.join().unwrap();
    std::fs::remove_dir_all(&directory).unwrap();

    let error = store.read("domid").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
    assert!(error.to_string().contains("connection to xenstore"));
    assert_eq!(
        store.next_watch().unwrap_err().kind(),
        ErrorKind::NotConnected
    );
}
