// SPDX-License-Identifier: GPL-2.0

//! Bindings to the C interfaces that the `kernel` crate has none for.
//!
//! Only the other files of `sys` use this module.

#![allow(
    dead_code,
    clippy::all,
    clippy::as_underscore,
    clippy::cast_lossless,
    clippy::undocumented_unsafe_blocks,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    improper_ctypes,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

pub(crate) use kernel::bindings::*;

use kernel::ffi;
use pin_init::MaybeZeroable;

include!(concat!(env!("VXB_OBJ"), "/bindings_generated.rs"));

/// The parts of the control page that are copied as a whole.
macro_rules! plain_data {
    ($($type:ty),*) => {
        $(
            // SAFETY: The structure consists of integers, and has no padding: the layout checks
            // above and the sum of its fields in virtioif.h say so.
            unsafe impl kernel::transmute::FromBytes for $type {}

            // SAFETY: As above.
            unsafe impl kernel::transmute::AsBytes for $type {}
        )*
    };
}

plain_data!(virtio_xenbus_identity, virtio_xenbus_queue);
