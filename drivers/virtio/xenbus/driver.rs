// SPDX-License-Identifier: GPL-2.0

//! The xenbus frontend: carries out what [`crate::state`] says.

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
        KEY_TYPE, //
    },
    report::StateReport,
    state::{
        react,
        Action,
        State, //
    },
    sys::{
        bindings::{
            VIRTIO_ID_BLOCK,
            VIRTIO_ID_NET, //
        },
        compat::{
            eproto,
            parameter, //
        },
        debugfs::{
            Dir,
            File, //
        },
        page::is_translated,
        parameters::address_mode,
        virtio::Registration,
        xenbus::{
            self,
            IdTable,
            RawIdTable, //
        },
        xenstore::{
            self,
            Transaction,
            Value, //
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
}

/// A device of a backend.
#[pin_data]
pub(crate) struct Frontend {
    /// Not locked while anybody waits for the backend.
    #[pin]
    stage: Mutex<Stage>,

    /// Nothing has been done for the device yet.
    new: Atomic<bool>,

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
        if this.new.xchg(false, ordering::Relaxed) {
            dev.switch_state(State::Initialising.raw());
        }

        for _ in 0..MAX_STEPS {
            let (ours, theirs) = this.states(dev);
            if matches!(theirs, State::Closed | State::Unknown) {
                this.abandon();
            }
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
                    this.disconnect(dev, theirs);
                    this.switch(|| dev.closed());
                }
                // The change to this pair of states is told to `states_changed()`.
                Action::Nothing | Action::Refresh | Action::Negotiate | Action::Replug => return,
            }
        }
    }

    fn unbind(dev: &xenbus::Device<Core<'_>>, this: &Self) {
        this.disconnect(dev, State::from_raw(dev.backend_state()));
    }
}

impl Frontend {
    /// The states of both sides.
    fn states(&self, dev: &xenbus::Device<Bound>) -> (State, State) {
        // Not while `switch()` has told xenstore, and so the thread of the watches, of a state that
        // is not yet the device's.
        let _guard = self.stage.lock();
        (
            State::from_raw(dev.state()),
            State::from_raw(dev.backend_state()),
        )
    }

    /// Switches the state in another thread than that of the watches.
    fn switch(&self, switch: impl FnOnce()) {
        let _guard = self.stage.lock();
        switch();
    }

    /// Has nobody wait for the backend any more: who does may be what keeps the device from being
    /// disconnected.
    fn abandon(&self) {
        let link = match &*self.stage.lock() {
            Stage::Idle => return,
            Stage::Linked(link) | Stage::Live(_, link) => link.clone(),
        };
        link.control.kill();
    }

    /// Takes the backend's offer, and tells it what it needs to connect.
    fn negotiate(&self, dev: &xenbus::Device<Bound>) -> Result {
        let choice = read_offer(dev)?;
        let link = Link::new(dev, &choice, request_timeout(), &self.debugfs)
            .inspect_err(|&e| fatal(dev, e, fmt!("sharing control page and pool")))?;
        self.set(Stage::Linked(link.clone()));

        publish(dev, &choice, &link)
            .inspect_err(|&e| fatal(dev, e, fmt!("writing to {}", dev.node_name())))?;
        dev.switch_state(State::Initialised.raw());
        Ok(())
    }

    /// Registers the virtio device that the backend has described.
    fn connect(&self, dev: &xenbus::Device<Bound>) -> Result {
        let link = match &*self.stage.lock() {
            Stage::Linked(link) => link.clone(),
            _ => return Err(EINVAL),
        };

        let expected = expected_device_id(dev)?;
        let raw = link.control.identity()?;
        let identity = wire::check_identity(&raw, expected).map_err(|bad| {
            fatal(dev, eproto(), fmt!("{bad}"));
            eproto()
        })?;

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
    /// the backend is in.
    fn disconnect(&self, dev: &xenbus::Device<Bound>, theirs: State) {
        let link = match self.set(Stage::Idle) {
            Stage::Idle => return,
            Stage::Linked(link) => link,
            Stage::Live(registration, link) => {
                // As long as the backend has not closed it still carries out requests, which the
                // driver waits for. Afterwards nobody must.
                if !matches!(theirs, State::Connected | State::Closing) {
                    link.control.kill();
                }
                drop(registration);
                link
            }
        };

        self.switch(|| dev.switch_state(State::Closing.raw()));
        await_backend(dev);
        drop(link);
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

/// Reads the backend's offer and makes the choice.
fn read_offer(dev: &xenbus::Device<Bound>) -> Result<Choice> {
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
        pool_pages: pool_kib as usize * 1024 / wire::PAGE_SIZE,
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
fn expected_device_id(dev: &xenbus::Device<Bound>) -> Result<u32> {
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

/// Gives the device up for a reason that the user is told in dmesg and xenstore.
fn fatal(dev: &xenbus::Device<Bound>, error: Error, reason: fmt::Arguments<'_>) {
    match CString::try_from_fmt(reason) {
        Ok(text) => dev.fatal(error, &text),
        Err(_) => dev.fatal(error, c"out of memory"),
    }
}
