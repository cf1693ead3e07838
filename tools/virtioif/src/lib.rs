// SPDX-License-Identifier: GPL-2.0-or-later
//! The virtio over xenbus interface.
//!
//! [`bindings`] is generated from `include/xen/interface/io/virtioif.h`; what the fields mean is
//! in `Documentation/protocol.rst`.
#![deny(unsafe_code)]

mod page;

pub use page::{ControlPage, DriverRegs, Identity, Queue, Request};

/// Bindings of `virtioif.h`, with its names.
#[allow(missing_docs, non_camel_case_types, clippy::all)]
pub mod bindings {
    include!(concat!(env!("OUT_DIR"), "/virtioif.rs"));
}

use bindings::virtio_xenbus_control_page as Page;
use std::mem::{offset_of, size_of};

// Bindgen asserts that Rust's layout is C's; these that it is the protocol's.
const _: () = {
    assert!(size_of::<Page>() == bindings::VIRTIO_XENBUS_PAGE_SIZE as usize);
    assert!(offset_of!(Page, device) == 0x0c0);
    assert!(offset_of!(Page, driver) == 0x100);
    assert!(offset_of!(Page, request) == 0x1c0);
    assert!(offset_of!(Page, queues) == 0x200);
    assert!(offset_of!(Page, config) == 0x800);
};
