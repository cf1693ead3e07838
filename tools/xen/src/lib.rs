// SPDX-License-Identifier: GPL-2.0-or-later
//! Safe access to xenstore, event channels, grants and foreign memory through the Xen project's stable libraries.
//!
//! Every `unsafe` block that Xen needs is in this crate.

mod event_channel;
mod foreign;
mod grant;
mod grant_copy;
mod grant_file;
mod mapping;
mod store;
mod sys;

pub use event_channel::{EVENT_SIZE, EventChannel};
pub use foreign::ForeignMemory;
pub use grant::GrantTable;
pub use grant_copy::{GrantAddress, GrantCopies};
pub use grant_file::grant_file;
pub use mapping::Mapping;
pub use store::{Store, Transaction, Watch};

/// Bytes in a page, and in what one grant reference names.
pub const PAGE_SIZE: usize = 4096;

/// A domain's number.
pub type DomainId = u16;

/// The error of a library call that reports failure through `errno`.
fn last_error() -> std::io::Error {
    std::io::Error::last_os_error()
}
