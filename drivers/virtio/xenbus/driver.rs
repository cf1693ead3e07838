// SPDX-License-Identifier: GPL-2.0

//! The xenbus frontend: carries out what [`crate::state`] says.

use crate::{
    link::Link,
    module_parameters,
    report::StateReport,
    state::{
        react,
        Action,
        State, //
    },
    sys::{
        compat::{
            eproto,
            parameter, //
        },
        debugfs::{
            Dir,
            File, //
        },
        virtio::Registration,
        xenbus::{
            self,
            IdTable,
            RawIdTable, //
        },
    },
    transport::XenbusTransport,
    wire, //
};
use kernel::{
    device::{
        Bound,
        Core, //
    },
    fmt, new_mutex,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            ordering,
            Atomic, //
        },
        Arc,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic,
        Msecs, //
    },
};

mod offer;
mod suspend;

use offer::{
    announce,
    expected_device_id,
    read_offer, //
};

/// How long a backend may take to let go of what is shared.
const CLOSE_TIMEOUT: Delta = Delta::from_secs(5);

static ID_TABLE: IdTable<3> = IdTable::new(["virtio", "virtio_disk"]);

/// No way through the states is longer.
const MAX_STEPS: usize = 8;

/// What is there of a device.
enum Stage {
    /// Nothing is shared with the backend.
    Idle,
    /// Shared, but the backend has not yet taken it.
    Linked(Arc<Link>),
    /// The virtio device is registered.
    Live(Registration<XenbusTransport>, Arc<Link>),
    /// The virtio device is being unregistered, which may wait for the backend.
    Leaving(Arc<Link>),
}

impl Stage {
    fn link(&self) -> Option<&Arc<Link>> {
        match self {
            Stage::Idle => None,
            Stage::Linked(link) | Stage::Live(_, link) | Stage::Leaving(link) => Some(link),
        }
    }

    /// Whether the backend has been gone for too long.
    fn is_lost(&self) -> bool {
        self.link().is_some_and(|link| link.control.is_lost())
    }
}

/// A device of a backend.
#[pin_data]
pub(crate) struct Frontend {
    /// Not locked while anybody waits for the backend.
    #[pin]
    stage: Mutex<Stage>,

    /// Nothing has been done for the device yet.
    new: Atomic<bool>,

    /// The driver of the virtio device has been frozen.
    frozen: Atomic<bool>,

    /// The backend is not the one that the device was connected to when it was frozen.
    restored: Atomic<bool>,

    /// When the device has been disconnected it is to begin anew.
    again: Atomic<bool>,

    /// The device's directory in debugfs.
    debugfs: Dir,

    /// The frontend's state, in debugfs.
    _state: File<StateReport>,
}

impl xenbus::Driver for Frontend {
    const ID_TABLE: &'static dyn RawIdTable = &ID_TABLE;

    fn probe<'a>(
        dev: &'a xenbus::Device<Core<'_>>,
        debugfs: Dir,
    ) -> impl PinInit<Self, Error> + 'a {
        try_pin_init!(Self {
            stage <- new_mutex!(Stage::Idle),
            new: Atomic::new(true),
            frozen: Atomic::new(false),
            restored: Atomic::new(false),
            again: Atomic::new(false),
            _state: debugfs.file(
                c"state",
                KBox::pin(StateReport((&**dev).into()), GFP_KERNEL)?,
            ),
            debugfs,
        }? Error)
    }

    fn states_changed(dev: &xenbus::Device<Bound>, this: &Self) -> bool {
        // A driver before us has left the device closed. The backend offers it again when it sees
        // this.
        this.switch(|| {
            if this.new.xchg(false, ordering::Relaxed) {
                dev.switch_state(State::Initialising.raw());
            }
        });

        for _ in 0..MAX_STEPS {
            let (ours, theirs) = this.states(dev);
            this.abandon(theirs);
            match react(ours, theirs) {
                Action::Nothing | Action::Refresh => return false,
                Action::Connect | Action::Disconnect => return true,
                Action::Replug => dev.switch_state(State::Initialising.raw()),
                // If that fails the device is in Closing.
                Action::Negotiate => {
                    let _ = this.negotiate(dev);
                }
            }
        }
        false
    }

    fn work(dev: &xenbus::Device<Bound>, this: &Self) {
        for _ in 0..MAX_STEPS {
            let (ours, theirs) = this.states(dev);
            match react(ours, theirs) {
                Action::Connect => {
                    if this.connect(dev).is_err() {
                        return;
                    }
                }
                Action::Disconnect => {
                    let lost = this.disconnect(dev, theirs);
                    this.switch(|| {
                        // A backend that comes back finds that the driver has begun anew.
                        let again = this.again.xchg(false, ordering::Relaxed);
                        this.new.store(again || lost, ordering::Relaxed);
                        dev.closed();
                    });
                }
                // The change to this pair of states is told to `states_changed()`.
                Action::Nothing | Action::Refresh | Action::Negotiate | Action::Replug => return,
            }
        }
    }

    fn suspend(dev: &xenbus::Device<Bound>, this: &Self) {
        this.freeze(dev);
    }

    fn restore(dev: &xenbus::Device<Bound>, this: &Self) {
        this.forget(dev);
    }

    fn complete(dev: &xenbus::Device<Bound>, this: &Self) {
        this.thaw(dev);
    }

    fn unbinding(dev: &xenbus::Device<Core<'_>>, this: &Self) {
        let (_, theirs) = this.states(dev);
        this.abandon(theirs);
    }

    fn unbind(dev: &xenbus::Device<Core<'_>>, this: &Self) {
        let (_, theirs) = this.states(dev);
        this.disconnect(dev, theirs);
    }
}

impl Frontend {
    /// The states of both sides.
    fn states(&self, dev: &xenbus::Device<Bound>) -> (State, State) {
        // Not while `switch()` has told xenstore, and so the thread of the watches, of a state that
        // is not yet the device's.
        let stage = self.stage.lock();
        let theirs = if stage.is_lost() {
            State::Unknown
        } else {
            State::from_raw(dev.backend_state())
        };
        (State::from_raw(dev.state()), theirs)
    }

    /// Switches the state; not at the same time as another thread.
    fn switch(&self, switch: impl FnOnce()) {
        let _guard = self.stage.lock();
        switch();
    }

    /// Has nobody wait for the backend any more if it is gone, as `theirs`, its state, says: who
    /// does may be what keeps the device from being disconnected.
    fn abandon(&self, theirs: State) {
        if !matches!(theirs, State::Closed | State::Unknown) {
            return;
        }
        let link = self.stage.lock().link().cloned();
        if let Some(link) = link {
            link.abandon(theirs);
        }
    }

    /// Takes the backend's offer, and tells it what it needs to connect.
    fn negotiate(&self, dev: &xenbus::Device<Bound>) -> Result {
        let choice = read_offer(dev, None)?;
        let patience = parameter(module_parameters::backend_timeout_s.value());
        let link = Link::new(dev, &choice, request_timeout(), patience, &self.debugfs)
            .inspect_err(|&e| fatal(dev, e, fmt!("sharing control page and pool")))?;
        self.set(Stage::Linked(link.clone()));
        announce(dev, &choice, &link)
    }

    /// Registers the virtio device that the backend has described.
    fn connect(&self, dev: &xenbus::Device<Bound>) -> Result {
        let link = match &*self.stage.lock() {
            Stage::Linked(link) => link.clone(),
            _ => return Err(EINVAL),
        };

        let identity = identity(dev, &link)?;
        let (device, vendor) = (identity.device_id, identity.vendor_id);
        let transport = XenbusTransport::new((&**dev).into(), link.clone(), identity);

        let registration = Registration::new(dev, device, vendor, transport)
            .inspect_err(|&e| fatal(dev, e, fmt!("registering virtio device {device}")))?;

        let dead = link.control.is_dead();
        self.set(Stage::Live(registration, link));

        if dead {
            fatal(dev, ETIMEDOUT, fmt!("the backend does not answer requests"));
            return Err(ETIMEDOUT);
        }
        self.switch(|| dev.switch_state(State::Connected.raw()));
        Ok(())
    }

    /// Goes to another stage. The lock is not held while the former one ends, which may wait.
    fn set(&self, stage: Stage) -> Stage {
        core::mem::replace(&mut *self.stage.lock(), stage)
    }

    /// Unregisters the virtio device and takes back what is shared; `theirs` is the state that
    /// the backend is in. Returns whether that has been gone for too long.
    fn disconnect(&self, dev: &xenbus::Device<Bound>, theirs: State) -> bool {
        let stage = {
            let mut stage = self.stage.lock();
            let next = stage.link().cloned().map_or(Stage::Idle, Stage::Leaving);
            core::mem::replace(&mut *stage, next)
        };
        let link = match stage {
            Stage::Idle => return false,
            Stage::Linked(link) | Stage::Leaving(link) => link,
            Stage::Live(registration, link) => {
                // As long as the backend has not closed it still carries out requests, which the
                // driver waits for. Afterwards nobody must.
                if !matches!(theirs, State::Connected | State::Closing) {
                    link.abandon(theirs);
                }
                drop(registration);
                link
            }
        };

        self.switch(|| dev.switch_state(State::Closing.raw()));
        let lost = link.control.is_lost();
        if !lost {
            await_backend(dev);
        }
        self.set(Stage::Idle);
        lost
    }
}

/// Waits until the backend has let go of what is shared with it, but not for long.
///
/// What it has mapped longer than that stays allocated until it has not.
fn await_backend(dev: &xenbus::Device<Bound>) {
    let start = Instant::<Monotonic>::now();

    loop {
        // In InitWait it may be about to map what it has just been told of.
        match State::from_raw(dev.backend_state()) {
            State::InitWait | State::Initialised | State::Connected | State::Closing => {}
            _ => return,
        }
        if start.elapsed() > CLOSE_TIMEOUT {
            dev_warn!(
                dev.as_ref(),
                "backend {} does not close; its mappings end when it does\n",
                dev.backend()
            );
            return;
        }
        // The backend's state cannot be watched while the device is unbound: the thread that
        // would tell of it may be the one that waits here.
        fsleep(Delta::from_millis(5));
    }
}

/// How long to wait for the answer to a request, in milliseconds.
fn request_timeout() -> Msecs {
    // A backend in another domain cannot answer at once, however fast it is.
    const LEAST: Msecs = 100;

    let wanted = parameter(module_parameters::timeout_ms.value());
    if wanted < LEAST {
        pr_warn!("timeout_ms={wanted} is too short, taking {LEAST}\n");
    }
    wanted.max(LEAST)
}

/// Copies and checks what the backend says that the device is.
fn identity(dev: &xenbus::Device<Bound>, link: &Link) -> Result<wire::Identity> {
    let expected = expected_device_id(dev)?;
    let raw = link.control.identity()?;
    wire::check_identity(&raw, expected).map_err(|bad| {
        fatal(dev, eproto(), fmt!("{bad}"));
        eproto()
    })
}

/// Gives the device up for a reason that the user is told in dmesg and xenstore.
fn fatal(dev: &xenbus::Device<Bound>, error: Error, reason: fmt::Arguments<'_>) {
    match CString::try_from_fmt(reason) {
        Ok(text) => dev.fatal(error, &text),
        Err(_) => dev.fatal(error, c"out of memory"),
    }
}
