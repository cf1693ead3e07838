// SPDX-License-Identifier: GPL-2.0

//! What becomes of a device when the guest is suspended, and goes on: as if nothing had been, here
//! or elsewhere from what has been saved.
//!
//! While a guest is saved, its backend is there, and so it is if the suspend is cancelled or was
//! for a checkpoint. The driver of the virtio device finishes what is under way and deletes its
//! virtqueues, the rest stays shared. When the guest has been restored there is another backend,
//! for which the same memory is granted anew.

use super::*;
use crate::wire::check_fit;

impl Frontend {
    /// Has the driver of the virtio device delete its virtqueues.
    pub(super) fn freeze(&self, dev: &xenbus::Device<Bound>) {
        self.with_live(|registration, link| {
            // What is to be broken and unregistered stays so.
            if link.control.is_dead() {
                return;
            }
            let transport = registration.device().transport();
            transport.freeze();
            match registration.freeze() {
                Ok(()) => self.frozen.store(true, ordering::Relaxed),
                Err(e) => {
                    transport.thaw();
                    dev_warn!(
                        dev.as_ref(),
                        "the device's driver cannot suspend it ({e:?}); if the guest is restored \
                         the device is plugged anew\n"
                    );
                }
            }
        });
    }

    /// Forgets the backend that the guest had when it was saved.
    pub(super) fn forget(&self, dev: &xenbus::Device<Bound>) {
        self.restored.store(true, ordering::Relaxed);

        // Dropped, if the backend had not yet taken it; the driver of the watches begins anew.
        let stage = self.set(Stage::Idle);
        let Stage::Live(registration, link) = stage else {
            return;
        };

        if self.frozen.load(ordering::Relaxed) {
            // What can go on while other devices are resumed shall. If it fails the state is
            // Closing.
            if let (State::Initialising, State::InitWait) = self.states(dev) {
                let _ = self.renew(dev, &link);
            }
        } else {
            link.control.kill();
            self.again.store(true, ordering::Relaxed);
            dev.switch_state(State::Closing.raw());
        }
        self.set(Stage::Live(registration, link));
    }

    /// Has the driver go on with the backend that there is; if there is none, with errors.
    pub(super) fn thaw(&self, dev: &xenbus::Device<Bound>) {
        let restored = self.restored.xchg(false, ordering::Relaxed) || dev.backend().is_empty();
        if !self.frozen.xchg(false, ordering::Relaxed) {
            return;
        }
        self.with_live(|registration, link| {
            let mut result = Ok(());
            if restored {
                result = self.reconnect(dev, registration, link);
            }
            if result.is_ok() {
                result = registration
                    .restore()
                    .inspect_err(|&e| fatal(dev, e, fmt!("restoring the virtio device")));
            }
            if result.is_err() {
                // The driver holds back what it has been given while it was frozen. It can only
                // fail it, and be unbound, when it has been restored.
                link.control.kill();
                let _ = registration.restore();
            }
            registration.device().transport().thaw();

            if result.is_ok() && restored {
                dev.switch_state(State::Connected.raw());
                link.control.watcher.config_changed();
            }
        });
    }

    /// Runs `f` if the virtio device is registered, without the lock.
    fn with_live(&self, f: impl FnOnce(&Registration<XenbusTransport>, &Arc<Link>)) {
        let stage = self.set(Stage::Idle);
        if let Stage::Live(registration, link) = &stage {
            f(registration, link);
        }
        self.set(stage);
    }

    /// Takes the new backend's offer with what is shared already.
    fn renew(&self, dev: &xenbus::Device<Bound>, link: &Link) -> Result {
        let pages = link.pool.size() / wire::PAGE_SIZE;
        let choice = read_offer(dev, Some(pages))?;

        link.renew(dev, &choice)
            .inspect_err(|&e| fatal(dev, e, fmt!("sharing control page and pool anew")))?;
        announce(dev, &choice, link)
    }

    /// Waits for the new backend to connect, and checks whether the driver can go on with it.
    fn reconnect(
        &self,
        dev: &xenbus::Device<Bound>,
        registration: &Registration<XenbusTransport>,
        link: &Link,
    ) -> Result {
        let start = Instant::<Monotonic>::now();
        let timeout = Delta::from_millis(link.timeout.into());

        loop {
            let (ours, theirs) = self.states(dev);
            match (react(ours, theirs), theirs) {
                (Action::Negotiate, _) => self.renew(dev, link)?,
                (Action::Connect, _) => break,
                // It has been refused.
                _ if ours == State::Closing => return Err(eproto()),
                (_, State::Closing | State::Closed | State::Unknown) => {
                    fatal(dev, ENODEV, fmt!("after restore: there is no backend"));
                    return Err(ENODEV);
                }
                _ if start.elapsed() > timeout => {
                    let timeout = link.timeout;
                    fatal(
                        dev,
                        ETIMEDOUT,
                        fmt!("after restore: the backend has not connected for {timeout} ms"),
                    );
                    return Err(ETIMEDOUT);
                }
                // The thread that would tell of the backend's state is this one.
                _ => fsleep(Delta::from_millis(2)),
            }
        }

        let device = registration.device();
        let transport = device.transport();
        let new = identity(dev, link)?;
        let features = device.accepted();
        check_fit(
            &new,
            transport.identity(),
            features,
            transport.queue_count(),
        )
        .map_err(|unfit| {
            fatal(dev, eproto(), fmt!("{unfit}"));
            eproto()
        })
    }
}
