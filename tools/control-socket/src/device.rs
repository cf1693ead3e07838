// SPDX-License-Identifier: GPL-2.0-or-later
//! What is told of a device.

use serde::{Deserialize, Serialize};

/// A device of a guest.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Device {
    /// The guest's number.
    pub domain: u16,
    /// The guest's name.
    pub name: String,
    /// `virtio` or `virtio_disk`: the type in xenstore.
    pub r#type: String,
    /// Its number among the guest's devices of the type.
    pub number: u32,
    /// `block` or `network`, once the device is open.
    pub kind: Option<String>,
    /// What is behind it, once it is open: one line.
    pub description: Option<String>,
    /// The xenbus state of the backend.
    pub state: String,
    /// The xenbus state of the guest's driver.
    pub frontend_state: String,
    /// How the guest shares its buffers, once it has connected.
    pub address_mode: Option<String>,
    /// The features that the driver has accepted, in the order of their bits.
    pub features: Vec<String>,
    /// The queues, once the device is open.
    pub queues: Vec<Queue>,
    /// Why the device does not work, as far as the daemon knows.
    pub error: Option<String>,
    /// Why the guest's driver does not use it.
    pub frontend_error: Option<String>,
}

/// A virtqueue.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Queue {
    /// Its number in the device.
    pub index: u16,
    /// What it is for.
    pub name: String,
    /// Descriptors: as many as the driver has chosen, before that the most that it may have.
    pub size: u16,
    /// It is being served.
    pub running: bool,
    /// What it has done since the driver connected.
    #[serde(flatten)]
    pub counters: Counters,
}

/// What a queue has done. The daemon does not know all of it if another program, or the kernel,
/// serves the queue.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Counters {
    /// Requests done; packets of a card, commands of its control queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Bytes read from a disk, or received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_to_guest: Option<u64>,
    /// Bytes written to a disk, or sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_from_guest: Option<u64>,
    /// Requests answered with an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<u64>,
    /// Packets that were not passed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drops: Option<u64>,
    /// Requests and packets with data that was copied once more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied: Option<u64>,
    /// Events from the guest.
    pub kicks: u64,
    /// Events sent to the guest.
    pub interrupts: u64,
    /// Buffers that descriptors have named by a place in the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_buffers: Option<u64>,
    /// Buffers that were named by grants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant_buffers: Option<u64>,
    /// Buffers that were named by frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_buffers: Option<u64>,
    /// Bytes copied from and to grants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_grant_copied: Option<u64>,
    /// Frames that were mapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames_mapped: Option<u64>,
    /// Frames that were unmapped again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames_unmapped: Option<u64>,
    /// Frames that were needed and mapped already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame_hits: Option<u64>,
}

impl Device {
    /// Type and number, as requests have them.
    pub fn id(&self) -> String {
        format!("{}/{}", self.r#type, self.number)
    }

    /// The counters of all queues.
    pub fn total(&self) -> Counters {
        self.queues
            .iter()
            .fold(Counters::default(), |sum, queue| sum + queue.counters)
    }
}

impl std::ops::Add for Counters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            requests: add(self.requests, other.requests),
            bytes_to_guest: add(self.bytes_to_guest, other.bytes_to_guest),
            bytes_from_guest: add(self.bytes_from_guest, other.bytes_from_guest),
            errors: add(self.errors, other.errors),
            drops: add(self.drops, other.drops),
            copied: add(self.copied, other.copied),
            kicks: self.kicks.wrapping_add(other.kicks),
            interrupts: self.interrupts.wrapping_add(other.interrupts),
            pool_buffers: add(self.pool_buffers, other.pool_buffers),
            grant_buffers: add(self.grant_buffers, other.grant_buffers),
            machine_buffers: add(self.machine_buffers, other.machine_buffers),
            bytes_grant_copied: add(self.bytes_grant_copied, other.bytes_grant_copied),
            frames_mapped: add(self.frames_mapped, other.frames_mapped),
            frames_unmapped: add(self.frames_unmapped, other.frames_unmapped),
            frame_hits: add(self.frame_hits, other.frame_hits),
        }
    }
}

/// The sum of what is known.
fn add(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.wrapping_add(other)),
        (known, None) | (None, known) => known,
    }
}
