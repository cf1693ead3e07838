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

/// What a queue has done.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Counters {
    /// Requests done; packets of a card, commands of its control queue.
    pub requests: u64,
    /// Bytes read from a disk, or received.
    pub bytes_to_guest: u64,
    /// Bytes written to a disk, or sent.
    pub bytes_from_guest: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Packets that were not passed on.
    pub drops: u64,
    /// Requests and packets with data that was copied once more.
    pub copied: u64,
    /// Events from the guest.
    pub kicks: u64,
    /// Events sent to the guest.
    pub interrupts: u64,
    /// Buffers that descriptors have named by a place in the pool.
    pub pool_buffers: u64,
    /// Buffers that were named by grants.
    pub grant_buffers: u64,
    /// Buffers that were named by frames.
    pub machine_buffers: u64,
    /// Bytes copied from and to grants.
    pub bytes_grant_copied: u64,
    /// Frames that were mapped.
    pub frames_mapped: u64,
    /// Frames that were unmapped again.
    pub frames_unmapped: u64,
    /// Frames that were needed and mapped already.
    pub frame_hits: u64,
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
            requests: self.requests.wrapping_add(other.requests),
            bytes_to_guest: self.bytes_to_guest.wrapping_add(other.bytes_to_guest),
            bytes_from_guest: self.bytes_from_guest.wrapping_add(other.bytes_from_guest),
            errors: self.errors.wrapping_add(other.errors),
            drops: self.drops.wrapping_add(other.drops),
            copied: self.copied.wrapping_add(other.copied),
            kicks: self.kicks.wrapping_add(other.kicks),
            interrupts: self.interrupts.wrapping_add(other.interrupts),
            pool_buffers: self.pool_buffers.wrapping_add(other.pool_buffers),
            grant_buffers: self.grant_buffers.wrapping_add(other.grant_buffers),
            machine_buffers: self.machine_buffers.wrapping_add(other.machine_buffers),
            bytes_grant_copied: self
                .bytes_grant_copied
                .wrapping_add(other.bytes_grant_copied),
            frames_mapped: self.frames_mapped.wrapping_add(other.frames_mapped),
            frames_unmapped: self.frames_unmapped.wrapping_add(other.frames_unmapped),
            frame_hits: self.frame_hits.wrapping_add(other.frame_hits),
        }
    }
}
