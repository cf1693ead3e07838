// SPDX-License-Identifier: GPL-2.0-or-later
//! What the requests of the control socket do.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use control_socket::{Answer, Device, MAX_TIMEOUT, Request, Settings, Target};
use xen::{DomainId, Store};

use crate::config::Kind;
use crate::keys::Node;
use crate::registry::Registry;
use crate::xenbus::State;
use crate::{hotplug, open};

/// How long the thread of a removed device may take to let go of it.
const REMOVAL: Duration = Duration::from_secs(5);

/// Carries out requests.
pub struct Service {
    registry: Arc<Registry>,
}

impl Service {
    /// For the devices in `registry`.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry }
    }

    /// Carries out a request of `client`, who does not want it any more when it hangs up.
    pub fn answer(&self, request: Request, client: BorrowedFd<'_>) -> Answer {
        let result = match request {
            Request::List => Ok(Answer::Devices(self.registry.devices())),
            Request::Show { domain, device } => self.show(&domain, device.as_deref()),
            Request::Attach {
                domain,
                device,
                timeout,
            } => self.attach(&domain, &device, timeout, client),
            Request::Detach {
                domain,
                device,
                timeout,
                force,
            } => self.detach(&domain, &device, timeout, force, client),
        };
        result.unwrap_or_else(|error| Answer::Error(format!("{error:#}")))
    }

    fn show(&self, domain: &str, device: Option<&str>) -> Result<Answer> {
        Ok(Answer::Devices(self.find(domain, device)?))
    }

    /// The devices of a domain, or one of them.
    ///
    /// # Errors
    ///
    /// There is none.
    fn find(&self, domain: &str, device: Option<&str>) -> Result<Vec<Device>> {
        let mut devices = self.registry.devices();
        devices.retain(|found| hotplug::names(domain, found.domain, &found.name));
        ensure!(
            !devices.is_empty(),
            "there is no device of a domain {domain:?}; `list` shows all devices"
        );
        if let Some(device) = device {
            devices.retain(|found| found.id() == device);
            ensure!(
                !devices.is_empty(),
                "domain {domain:?} has no device {device:?}; `list` shows all devices"
            );
        }
        Ok(devices)
    }

    fn attach(
        &self,
        domain: &str,
        settings: &Settings,
        timeout: u32,
        client: BorrowedFd<'_>,
    ) -> Result<Answer> {
        let deadline = deadline(timeout)?;
        let settings = serde_json::to_value(settings)?;
        let kind: Kind = serde_json::from_value(settings.clone()).context("settings")?;
        kind.check().context("settings")?;

        let store = open_store()?;
        let domain = hotplug::domain(&store, domain)?;
        let busy = self.busy(domain);
        let node = hotplug::create(&store, domain, kind.id(), &settings.to_string(), &busy)?;
        let target = target(&store, node);
        if timeout > 0 {
            if let Err(error) = self.wait_connected(node, deadline, client) {
                return Err(match self.remove(&store, node, client) {
                    Ok(()) => error.context(format!("nothing was attached to {:?}", target.name)),
                    Err(left) => error.context(format!("{node} is left behind: {left:#}")),
                });
            }
        }
        log::info!(
            "{} {node}: attached through the control socket",
            target.name
        );
        Ok(Answer::Attached(target))
    }

    fn detach(
        &self,
        domain: &str,
        device: &str,
        timeout: u32,
        force: bool,
        client: BorrowedFd<'_>,
    ) -> Result<Answer> {
        let deadline = deadline(timeout)?;
        let found = self.find(domain, Some(device))?;
        let node = found
            .first()
            .and_then(|found| Node::of(found.domain, device));
        let node = node.with_context(|| format!("{device:?} is no device"))?;
        let store = open_store()?;
        hotplug::close(&store, node)?;
        let target = target(&store, node);
        let closed = |device: Option<&Device>| device.is_none_or(is_closed).then_some(());
        let closed = self.registry.wait(node, deadline, client, closed)?;
        if closed.is_none() && !force {
            bail!(
                "{} {node} is still in use after {timeout} s ({}); it stays in state Closing: \
                 detach it again when its driver has let go of it, or with --force",
                target.name,
                self.states(node)
            );
        }
        self.remove(&store, node, client)?;
        log::info!(
            "{} {node}: detached through the control socket",
            target.name
        );
        Ok(Answer::Detached(target))
    }

    /// Numbers of devices that are gone from xenstore, perhaps, but not done with.
    fn busy(&self, domain: DomainId) -> Vec<u32> {
        let devices = self.registry.devices().into_iter();
        let theirs = devices.filter(|device| device.domain == domain);
        theirs.map(|device| device.number).collect()
    }

    /// Waits until the driver of a new device has connected.
    ///
    /// # Errors
    ///
    /// Why it has not.
    fn wait_connected(&self, node: Node, deadline: Instant, client: BorrowedFd<'_>) -> Result<()> {
        let mut seen = false;
        let look = |device: Option<&Device>| match device {
            // Its thread has not begun yet.
            None if !seen => None,
            None => Some(Err("somebody has removed the device".into())),
            Some(device) => {
                seen = true;
                connected(device)
            }
        };
        match self.registry.wait(node, deadline, client, look)? {
            Some(result) => result.map_err(anyhow::Error::msg),
            None => bail!(
                "the driver has not connected in time ({}); is virtio_xenbus loaded in the guest?",
                self.states(node)
            ),
        }
    }

    /// Removes a device from xenstore, and waits until nothing is held of it, for a while.
    fn remove(&self, store: &Store, node: Node, client: BorrowedFd<'_>) -> Result<()> {
        hotplug::remove(store, node)?;
        let gone = |device: Option<&Device>| device.is_none().then_some(());
        // A client that hangs up has what it wants.
        let _ = self
            .registry
            .wait(node, Instant::now() + REMOVAL, client, gone);
        Ok(())
    }

    /// The states of both sides, for a person.
    fn states(&self, node: Node) -> String {
        match self.registry.device(node) {
            None => "it is not served".into(),
            Some(device) => format!(
                "backend {}, frontend {}",
                device.state, device.frontend_state
            ),
        }
    }
}

/// Whether a new device can be used, or why it cannot; `None` if that is not known yet.
fn connected(device: &Device) -> Option<Result<(), String>> {
    if let Some(error) = &device.error {
        return Some(Err(error.clone()));
    }
    if let Some(error) = &device.frontend_error {
        return Some(Err(format!("the guest's driver says: {error}")));
    }
    if device.frontend_state == State::Unknown.name() {
        return Some(Err("the guest has gone".into()));
    }
    let states = [&device.state, &device.frontend_state];
    states
        .iter()
        .all(|&state| state == State::Connected.name())
        .then_some(Ok(()))
}

/// Whether neither side uses the device any more.
fn is_closed(device: &Device) -> bool {
    let idle = [State::Initialising, State::Closed, State::Unknown].map(State::name);
    device.state == State::Closed.name() && idle.contains(&device.frontend_state.as_str())
}

fn deadline(timeout: u32) -> Result<Instant> {
    ensure!(
        timeout <= MAX_TIMEOUT,
        "a timeout of {timeout} s is too long: it must be from 0 to {MAX_TIMEOUT} s"
    );
    Ok(Instant::now() + Duration::from_secs(timeout.into()))
}

fn open_store() -> Result<Store> {
    Store::open().context("cannot connect to xenstore")
}

fn target(store: &Store, node: Node) -> Target {
    Target {
        domain: node.domain,
        name: open::guest_name(store, node),
        device: node.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(state: State, frontend: State) -> Device {
        Device {
            state: state.name().into(),
            frontend_state: frontend.name().into(),
            ..Device::default()
        }
    }

    #[test]
    fn attached_when_both_sides_are_connected() {
        use State::*;
        assert_eq!(connected(&device(Initialising, Initialising)), None);
        assert_eq!(connected(&device(InitWait, Initialised)), None);
        assert_eq!(connected(&device(Connected, Initialised)), None);
        assert_eq!(connected(&device(Connected, Connected)), Some(Ok(())));
    }

    #[test]
    fn attaching_fails_with_the_reason() {
        let mut refused = device(State::Closed, State::Initialising);
        assert_eq!(connected(&refused), None);
        refused.error = Some("there is no such file".into());
        let error = connected(&refused).unwrap().unwrap_err();
        assert!(error.contains("no such file"), "{error}");

        let mut given_up = device(State::Closed, State::Closed);
        given_up.frontend_error = Some("no memory".into());
        let error = connected(&given_up).unwrap().unwrap_err();
        assert!(
            error.contains("driver") && error.contains("no memory"),
            "{error}"
        );

        let destroyed = device(State::InitWait, State::Unknown);
        assert!(connected(&destroyed).unwrap().is_err());
    }

    #[test]
    fn detached_when_neither_side_uses_it() {
        use State::*;
        for frontend in [Initialising, Closed, Unknown] {
            assert!(is_closed(&device(Closed, frontend)));
            assert!(!is_closed(&device(Closing, frontend)));
        }
        for frontend in [Initialised, Connected, Closing] {
            assert!(!is_closed(&device(Closed, frontend)));
        }
    }

    #[test]
    fn timeouts_are_bounded() {
        assert!(deadline(0).is_ok() && deadline(MAX_TIMEOUT).is_ok());
        let error = deadline(MAX_TIMEOUT + 1).unwrap_err().to_string();
        assert!(error.contains("601") && error.contains("600"), "{error}");
    }
}
