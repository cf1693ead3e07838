// SPDX-License-Identifier: GPL-2.0

//! What the two sides tell each other in xenstore: the backend's offer, and what is chosen of it.

use super::{
    fatal,
    xenbus, //
};
use crate::{
    link::Link,
    module_parameters,
    negotiate::{
        choose,
        device_id,
        parse_offer,
        Choice,
        Limits,
        Mode,
        Refusal,
        KEY_TYPE,
        MIN_POOL_PAGES, //
    },
    state::State,
    sys::{
        bindings::{
            VIRTIO_ID_BLOCK,
            VIRTIO_ID_NET, //
        },
        compat::{
            eproto,
            parameter, //
        },
        page::is_translated,
        parameters::address_mode,
        xenstore::{
            self,
            Transaction,
            Value, //
        },
    },
    wire, //
};
use kernel::{
    device::Bound,
    prelude::*,
    str::CString, //
};

/// Reads the backend's offer and makes the choice; `pages` are those of a pool that there is.
pub(super) fn read_offer(dev: &xenbus::Device<Bound>, pages: Option<usize>) -> Result<Choice> {
    let [versions, modes, max_queues, max_pool] = [
        wire::KEY_VERSIONS,
        wire::KEY_MODES,
        wire::KEY_MAX_QUEUES,
        wire::KEY_MAX_POOL,
    ]
    .map(|key| xenstore::read(dev.backend(), key).ok());

    let pool_kib = parameter(match expected_device_id(dev)? {
        VIRTIO_ID_NET => module_parameters::net_pool_kib.value(),
        VIRTIO_ID_BLOCK => module_parameters::disk_pool_kib.value(),
        _ => module_parameters::other_pool_kib.value(),
    });
    let limits = Limits {
        modes: Mode::allowed(address_mode(), is_trusted(dev)),
        pool_pages: pages.unwrap_or(pool_kib as usize * 1024 / wire::PAGE_SIZE),
        min_pool_pages: pages.unwrap_or(MIN_POOL_PAGES),
    };

    parse_offer(
        bytes(&versions),
        bytes(&modes),
        bytes(&max_queues),
        bytes(&max_pool),
    )
    .and_then(|offer| choose(&offer, &limits))
    .map_err(|refusal| refuse(dev, &refusal))
}

/// The device id that xenstore says.
pub(super) fn expected_device_id(dev: &xenbus::Device<Bound>) -> Result<u32> {
    let kind = dev.device_type().to_str()?;
    let name = xenstore::read(dev.backend(), KEY_TYPE).ok();

    device_id(kind, bytes(&name)).map_err(|refusal| refuse(dev, &refusal))
}

/// Whether the toolstack says that the backend may see more than what is meant for it; the same key
/// as xen-blkfront's and xen-netfront's (XSA-403). The backend cannot write to it.
fn is_trusted(dev: &xenbus::Device<Bound>) -> bool {
    xenstore::read(dev.node_name(), c"trusted").map_or(true, |value| value.as_bytes() != b"0")
}

fn bytes(value: &Option<Value>) -> Option<&[u8]> {
    value.as_ref().map(Value::as_bytes)
}

/// Tells the backend to connect to what is shared.
pub(super) fn announce(dev: &xenbus::Device<Bound>, choice: &Choice, link: &Link) -> Result {
    publish(dev, choice, link)
        .inspect_err(|&e| fatal(dev, e, fmt!("writing to {}", dev.node_name())))?;
    dev.switch_state(State::Initialised.raw());
    Ok(())
}

/// Tells the backend in one transaction what was chosen and what is shared.
fn publish(dev: &xenbus::Device<Bound>, choice: &Choice, link: &Link) -> Result {
    let version = CString::try_from_fmt(fmt!("{}", choice.version))?;
    let reference = CString::try_from_fmt(fmt!("{}", link.control.reference()?))?;
    let port = CString::try_from_fmt(fmt!("{}", link.port()))?;

    let frames = if is_translated() {
        wire::FRAMES_GUEST
    } else {
        wire::FRAMES_MACHINE
    };

    Transaction::run(|transaction| {
        let write = |key: &CStr, text: &CStr| transaction.write(dev.node_name(), key, text);

        write(wire::KEY_VERSION, &version)?;
        write(wire::KEY_MODE, choice.mode.name())?;
        if choice.mode == Mode::Machine {
            write(wire::KEY_FRAMES, frames)?;
        }
        write(wire::KEY_CONTROL_REF, &reference)?;
        write(wire::KEY_EVTCHN, &port)
    })
}

fn refuse(dev: &xenbus::Device<Bound>, refusal: &Refusal) -> Error {
    fatal(dev, eproto(), fmt!("{refusal}"));
    eproto()
}
