// SPDX-License-Identifier: GPL-2.0-or-later
//! What a device's thread tells of its device.

use std::sync::Arc;

use control_socket::{Device as Description, Queue};

use crate::connection::Connection;
use crate::device::{Device, ID_BLOCK, ID_NET};
use crate::features;
use crate::keys::Node;
use crate::open::Opened;
use crate::registry::Status;
use crate::stats::Stats;
use crate::vhost::{user, vsock};
use crate::xenbus::View;

impl Status {
    /// A device of which nothing is held.
    pub fn new(node: Node, guest: &str, view: View) -> Self {
        Self {
            device: Description {
                domain: node.domain,
                name: guest.into(),
                r#type: node.kind.name().into(),
                number: node.number,
                state: view.ours.name().into(),
                frontend_state: view.theirs.name().into(),
                ..Description::default()
            },
            queues: Vec::new(),
        }
    }

    /// Adds what is known of an open device.
    pub fn opened(&mut self, opened: &Opened) {
        let device = opened.device.as_ref();
        self.describe(device);
        let sizes = device.queue_sizes();
        self.queues = (0..)
            .zip(sizes)
            .zip(stats(device, device.queue_sizes().len()))
            .filter(|&((_, size), _)| size > 0)
            .map(|((index, size), stats)| (queue(device, index, size), stats))
            .collect();
    }

    /// Adds what is known of a device with a frontend.
    pub fn connected(&mut self, connection: &Connection) {
        let controller = connection.controller();
        let device = controller.device();
        self.describe(device);
        self.device.address_mode = Some(connection.mode().to_string());
        self.device.features = features::names(device.id(), controller.features());
        self.device.error = controller.failure().map(str::to_owned);
        self.queues = controller.queues();
    }

    fn describe(&mut self, device: &dyn Device) {
        self.device.description = Some(device.describe());
        self.device.kind = match device.id() {
            ID_BLOCK => Some("block".into()),
            ID_NET => Some("network".into()),
            vsock::ID => Some("vsock".into()),
            id => user::of_id(id).map(|kind| kind.what.into()),
        };
    }
}

/// A queue that does not run. `size` is not 0.
pub fn queue(device: &dyn Device, index: u16, size: u16) -> Queue {
    Queue {
        index,
        name: device.queue_name(index),
        size,
        ..Queue::default()
    }
}

/// Counters for so many queues.
pub fn stats(device: &dyn Device, queues: usize) -> Vec<Arc<Stats>> {
    let stats = |index| Arc::new(Stats::new(device.counts(index)));
    (0..).map(stats).take(queues).collect()
}
