// SPDX-License-Identifier: GPL-2.0

//! Virtio over xenbus.
//!
//! A xenbus frontend that gives the stock virtio drivers a transport in PV, PVH and HVM guests of
//! Xen. `Documentation/` has the protocol and the architecture.

#![deny(unsafe_code)]

use sys::xenbus::Adapter;

mod absence;
mod address;
mod control;
mod driver;
mod features;
mod frame;
mod free_map;
mod generation;
mod link;
mod negotiate;
mod partition;
mod report;
mod requests;
mod state;
#[allow(unsafe_code)]
mod sys;
mod told;
mod transport;
mod used;
mod wire;

kernel::module_driver!(<T>, Adapter<T>, {
    type: driver::Frontend,
    name: "virtio_xenbus",
    authors: ["The virtio_xenbus maintainers"],
    description: "Virtio over xenbus",
    license: "GPL v2",
    alias: ["xen:virtio", "xen:virtio_disk"],
    params: {
        disk_pool_kib: u32 {
            default: 8192,
            description: "Memory for the rings and buffers of a disk, in KiB",
        },
        net_pool_kib: u32 {
            default: 16384,
            description: "Memory for the rings and buffers of a network card, in KiB",
        },
        other_pool_kib: u32 {
            default: 8192,
            description: "Memory for the rings and buffers of any other device, in KiB",
        },
        timeout_ms: u32 {
            default: 30000,
            description: "How long a backend may take to answer a request, in milliseconds",
        },
        backend_timeout_s: u32 {
            default: 0,
            description: "How long a backend may be gone, in seconds; 0: for ever",
        },
    },
});
