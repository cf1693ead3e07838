// SPDX-License-Identifier: GPL-2.0

//! All `unsafe` code of the module: safe abstractions of the C interfaces that the `kernel` crate
//! does not cover.
//!
//! Each file has one subject and knows nothing of the virtio_xenbus protocol, so that it could
//! become an abstraction of the `kernel` crate. The exceptions are [`map`], which trusts
//! [`crate::partition`] for the addresses of the buffers that it copies, and [`compat`].

pub(crate) mod bindings;
pub(crate) mod compat;
pub(crate) mod completion;
pub(crate) mod debugfs;
pub(crate) mod event_channel;
pub(crate) mod grant;
pub(crate) mod map;
pub(crate) mod page;
pub(crate) mod parameters;
pub(crate) mod references;
pub(crate) mod trace;
pub(crate) mod virtio;
pub(crate) mod virtqueue;
pub(crate) mod watcher;
pub(crate) mod work;
pub(crate) mod xenbus;
pub(crate) mod xenstore;
