// SPDX-License-Identifier: GPL-2.0-or-later
//! Devices that come and go while their guest runs: what a toolstack does in xenstore.

use std::io;

use anyhow::{Context, Result, anyhow, bail};
use xen::{DomainId, Store, Transaction};

use crate::keys::{Node, Type, decimal};
use crate::xenbus::State;

/// The backend's key with the settings of an attached device, in JSON. The guest cannot read it.
pub const SETTINGS: &str = "settings";

/// Keys and values of one directory.
type Keys = Vec<(&'static str, String)>;

/// The domain that `text`, a name or a number, names.
///
/// # Errors
///
/// There is none.
pub fn domain(store: &Store, text: &str) -> Result<DomainId> {
    for number in list(store, "/local/domain")? {
        let Ok(domain) = number.parse() else {
            continue;
        };
        let name = store.read(&format!("/local/domain/{number}/name"))?;
        if names(text, domain, &name.unwrap_or_default()) && store.domain_exists(domain) {
            return Ok(domain);
        }
    }
    bail!("there is no domain {text:?}; `xl list` shows those that are")
}

/// Whether `text` names the domain with this number and name. As for xl, digits are a number.
pub fn names(text: &str, domain: DomainId, name: &str) -> bool {
    match decimal::<DomainId>(text) {
        Some(number) => number == domain,
        None => text == name && !name.is_empty(),
    }
}

/// Makes a device of type `virtio` with device id `id`, as libxl does, and with none of the numbers
/// `busy`.
///
/// # Errors
///
/// Xenstore refuses it. Nothing has been made.
pub fn create(
    store: &Store,
    domain: DomainId,
    id: u32,
    settings: &str,
    busy: &[u32],
) -> Result<Node> {
    let own = own_domain(store)?;
    let result = store.transaction(|t| {
        let node = free_node(t, domain, busy)?;
        let backend_path = format!("/local/domain/{own}/{}", node.path());
        let backend = backend_keys(node, id);

        let directory = node.frontend_path();
        t.write(&directory, "")?;
        t.set_owner(&directory, domain, &[own])?;
        write(t, &directory, &frontend_keys(own, &backend_path))?;

        // libxl removes the devices that it finds there when it destroys the guest.
        if t.read(&format!("/libxl/{domain}"))?.is_some() {
            let directory = libxl_path(node);
            write(t, &directory, &backend)?;
            write(t, &directory, &[("backend", backend_path.clone())])?;
        }

        t.write(&backend_path, "")?;
        t.set_owner(&backend_path, own, &[domain])?;
        write(t, &backend_path, &backend)?;
        let path = format!("{backend_path}/{SETTINGS}");
        t.write(&path, settings)?;
        t.set_owner(&path, own, &[])?;

        // Of a former device with this number.
        remove_errors(t, node)?;
        Ok(node)
    });
    result
        .map_err(denied)
        .context("cannot make the device in xenstore")
}

/// Asks backend and frontend to close a device, if it is there.
pub fn close(store: &Store, node: Node) -> Result<()> {
    let path = node.path();
    let result = store.transaction(|t| {
        let Some(state) = t.read(&format!("{path}/state"))? else {
            return Ok(());
        };
        t.write(&format!("{path}/online"), "0")?;
        if State::parse(Some(&state)) != State::Closed {
            let closing = State::Closing.number().to_string();
            t.write(&format!("{path}/state"), &closing)?;
        }
        Ok(())
    });
    result
        .map_err(denied)
        .with_context(|| format!("cannot close {path}"))
}

/// Removes all that xenstore has of a device.
pub fn remove(store: &Store, node: Node) -> Result<()> {
    let result = store.transaction(|t| {
        for directory in [node.frontend_path(), libxl_path(node), node.path()] {
            t.remove(&directory)?;
            remove_if_empty(t, &directory)?;
        }
        remove_errors(t, node)
    });
    result
        .map_err(denied)
        .with_context(|| format!("cannot remove {}", node.path()))
}

/// A device that there is not yet.
fn free_node(t: &Transaction<'_>, domain: DomainId, busy: &[u32]) -> io::Result<Node> {
    let node = |number| Node {
        domain,
        kind: Type::Virtio,
        number,
    };
    let mut taken: Vec<_> = busy.iter().map(u32::to_string).collect();
    for path in [node(0).frontend_path(), libxl_path(node(0)), node(0).path()] {
        taken.extend(t.list(parent(&path))?);
    }
    let free = free_number(&taken).ok_or(io::ErrorKind::StorageFull)?;
    Ok(node(free))
}

/// The lowest number that is not among `taken`.
fn free_number(taken: &[String]) -> Option<u32> {
    (0..=u32::MAX).find(|number| !taken.contains(&number.to_string()))
}

fn frontend_keys(own: DomainId, backend_path: &str) -> Keys {
    vec![
        ("backend", backend_path.into()),
        ("backend-id", own.to_string()),
        ("state", State::Initialising.number().to_string()),
    ]
}

fn backend_keys(node: Node, id: u32) -> Keys {
    vec![
        ("frontend", node.frontend_path()),
        ("frontend-id", node.domain.to_string()),
        ("online", "1".into()),
        ("state", State::Initialising.number().to_string()),
        ("type", format!("virtio,device{id:x}")),
        // Without a meaning here, but libxl wants to read them.
        ("transport", "mmio".into()),
        ("base", "0".into()),
        ("irq", "0".into()),
        ("grant_usage", "1".into()),
    ]
}

/// Where libxl keeps a copy of the backend's keys.
fn libxl_path(node: Node) -> String {
    format!("/libxl/{}/device/{node}", node.domain)
}

fn write(t: &Transaction<'_>, directory: &str, keys: &[(&str, String)]) -> io::Result<()> {
    keys.iter()
        .try_for_each(|(key, value)| t.write(&format!("{directory}/{key}"), value))
}

fn remove_errors(t: &Transaction<'_>, node: Node) -> io::Result<()> {
    for path in [node.error_path(), node.frontend_error_path()] {
        let directory = parent(&path);
        t.remove(directory)?;
        remove_if_empty(t, directory)?;
    }
    Ok(())
}

/// Removes the directory above `path`, if there is nothing else in it.
fn remove_if_empty(t: &Transaction<'_>, path: &str) -> io::Result<()> {
    match t.list(parent(path))?.is_empty() {
        true => t.remove(parent(path)),
        false => Ok(()),
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn own_domain(store: &Store) -> Result<DomainId> {
    let text = store.read("domid")?;
    let text = text.context("xenstore does not have this domain's number, the node domid")?;
    text.parse()
        .with_context(|| format!("{text:?}, in the node domid, is not a domain's number"))
}

fn list(store: &Store, path: &str) -> Result<Vec<String>> {
    store.list(path).map_err(denied).context(path.to_owned())
}

/// An error of xenstore, with what to do.
fn denied(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => anyhow!(
            "this domain may not do that; only a daemon in dom0 can attach and detach devices"
        ),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Node = Node {
        domain: 5,
        kind: Type::Virtio,
        number: 3,
    };

    #[test]
    fn lowest_free_number() {
        let taken = |numbers: &[&str]| numbers.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        assert_eq!(free_number(&[]), Some(0));
        assert_eq!(free_number(&taken(&["1", "2"])), Some(0));
        assert_eq!(free_number(&taken(&["2", "0", "0", "1", "4"])), Some(3));
        assert_eq!(free_number(&taken(&["x", "-1"])), Some(0));
    }

    #[test]
    fn domains_have_names_and_numbers() {
        assert!(names("web", 5, "web") && names("5", 5, "web"));
        assert!(!names("web", 5, "db") && !names("6", 5, "web") && !names("05", 5, "web"));
        assert!(!names("", 5, "") && !names("7", 5, "7"));
    }

    #[test]
    fn keys_lead_to_each_other() {
        let backend_path = format!("/local/domain/0/{}", NODE.path());
        let frontend = frontend_keys(0, &backend_path);
        assert!(frontend.contains(&("backend", "/local/domain/0/backend/virtio/5/3".into())));
        assert!(frontend.contains(&("backend-id", "0".into())));
        let backend = backend_keys(NODE, 0x1a);
        assert!(backend.contains(&("frontend", "/local/domain/5/device/virtio/3".into())));
        assert!(backend.contains(&("frontend-id", "5".into())));
        assert!(backend.contains(&("type", "virtio,device1a".into())));
        assert_eq!(libxl_path(NODE), "/libxl/5/device/virtio/3");
        assert_eq!(parent(&libxl_path(NODE)), "/libxl/5/device/virtio");
        assert_eq!(parent(&NODE.error_path()), "error/backend/virtio/5/3");
    }
}
