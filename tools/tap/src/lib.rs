// SPDX-License-Identifier: GPL-2.0-or-later
//! Tap interfaces with several queues and offloads, and their places in bridges.
//!
//! Every `unsafe` block that the network device needs is in this crate.

mod io_vec;
mod ioctl;
mod link;
mod name;
mod queue;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use io_vec::{IoVec, copy_in};
pub use link::{Links, Monitor};
pub use name::{BadName, MAX_NAME, Name};
pub use queue::{MAX_PARTS, Queue, create};
