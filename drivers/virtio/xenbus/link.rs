// SPDX-License-Identifier: GPL-2.0

//! The link to a backend: what both sides share, and requests to the other.

use crate::{
    absence::Watchdog,
    control::{
        Control,
        ControlInterrupt, //
    },
    negotiate::{
        Choice,
        Mode, //
    },
    partition::MAX_BUFFER,
    requests::Requests,
    state::State,
    sys::{
        debugfs::{
            Dir,
            File, //
        },
        event_channel::Channel,
        grant::SharedPages,
        map::{
            Direct,
            Observer, //
        },
        references::References,
        trace,
        work::{
            Task,
            Work, //
        },
        xenbus, //
    },
    wire::{
        self,
        Op, //
    },
};
use kernel::{
    device::Bound,
    new_mutex,
    prelude::*,
    str::CString,
    sync::{
        aref::ARef,
        Arc,
        Mutex, //
    },
    time::{
        msecs_to_jiffies,
        Instant,
        Monotonic,
        Msecs, //
    },
};

/// Control page, pool and control event channel, shared with one backend.
///
/// Dropping it takes all of them back.
#[pin_data]
pub(crate) struct Link {
    // Dropped first: the handler of its channel uses the control page.
    #[pin]
    slot: Mutex<Slot>,

    pub(crate) control: Arc<Control>,

    pub(crate) pool: Arc<SharedPages>,

    /// The references of the pool's pages, for the backend.
    directory: SharedPages,

    dev: ARef<xenbus::Device>,

    /// In debugfs as the address mode.
    peer: File<Peer>,

    /// How long the backend may take to answer a request, in milliseconds.
    pub(crate) timeout: Msecs,

    /// How long to wait for a backend that is gone, in seconds; 0: for ever.
    patience: u32,

    /// The device's directory in debugfs.
    pub(crate) debugfs: Dir,

    requests: File<Requests>,

    breaker: Arc<Work<Breaker>>,
}

/// The means of making requests. It is locked while one is under way.
struct Slot {
    watchdog: Arc<Work<Watchdog>>,

    channel: Pin<KBox<Channel<ControlInterrupt>>>,

    /// The number of the last request.
    sequence: u32,
}

impl Slot {
    fn new(dev: &xenbus::Device, control: &Arc<Control>, patience: u32) -> Result<Self> {
        let name = CString::try_from_fmt(fmt!("{}-control", dev.as_ref().name()))?;
        let interrupt = ControlInterrupt(control.clone());
        let channel = KBox::pin_init(Channel::new(dev, name, interrupt), GFP_KERNEL)?;
        Ok(Self {
            watchdog: Watchdog::start(dev, control, channel.port(), patience)?,
            channel,
            sequence: 0,
        })
    }
}

/// Who the backend is, and what has been agreed on with it.
#[pin_data]
pub(crate) struct Peer {
    /// Its domain, and how addresses of buffers come about.
    #[pin]
    agreed: Mutex<(u16, Mode)>,
}

impl Peer {
    fn new(domain: u16, mode: Mode) -> Result<Pin<KBox<Self>>> {
        let this = pin_init!(Self {
            agreed <- new_mutex!((domain, mode)),
        });
        KBox::pin_init(this, GFP_KERNEL)
    }

    fn agreed(&self) -> (u16, Mode) {
        *self.agreed.lock()
    }

    /// The address mode.
    pub(crate) fn mode(&self) -> Mode {
        self.agreed().1
    }
}

/// The pages of a device that are granted at a time, apart from its pool.
///
/// As many requests as the queue of a disk usually has under way, of 128 KiB each; the grant table
/// of a guest usually has 32768 entries.
const DIRECT_PAGES: usize = 1024;

/// Gives up a device whose backend keeps what it was granted for a request.
struct Breaker {
    control: Arc<Control>,
    dev: ARef<xenbus::Device>,
}

impl Task for Breaker {
    // What is being suspended may wait for it.
    const FREEZABLE: bool = false;

    fn run(&self) {
        if !self.control.is_dead() {
            dev_err!(
                self.dev,
                "the backend has used a buffer and keeps its pages mapped: the device is given up\n"
            );
        }
        self.control.kill();
    }
}

impl Observer for Work<Breaker> {
    fn grants_are_kept(&self) {
        self.queue();
    }
}

impl Link {
    /// Has nobody wait for a backend that is gone, with its state `theirs`. Sleeps, but not for
    /// long.
    pub(crate) fn abandon(&self, theirs: State) {
        self.control.abandon(theirs);
        if self.control.is_held() {
            self.slot.lock().watchdog.queue();
        }
    }

    /// Shares with the backend of `dev` what `choice` says. Sleeps.
    ///
    /// `timeout` is how long to wait for an answer to a request, in milliseconds; `patience` how
    /// long for a backend that is gone, in seconds, or 0: for ever; `debugfs` is the device's
    /// directory.
    pub(crate) fn new(
        dev: &xenbus::Device<Bound>,
        choice: &Choice,
        timeout: Msecs,
        patience: u32,
        debugfs: &Dir,
    ) -> Result<Arc<Self>> {
        let domain = dev.backend_domain();
        let control = Arc::pin_init(Control::new(domain), GFP_KERNEL)?;
        let pool = Arc::new(SharedPages::new(domain, choice.pool_pages)?, GFP_KERNEL)?;
        let directory = share_directory(domain, &pool)?;

        control.set_pool(u32::try_from(choice.pool_pages)?, directory.references());

        let breaker = Breaker {
            control: control.clone(),
            dev: (&**dev).into(),
        };
        let breaker = Arc::pin_init(
            Work::new(
                Ok(breaker),
                c"virtio_xenbus_breaker",
                kernel::static_lock_class!(),
            ),
            GFP_KERNEL,
        )?;
        let slot = Slot::new(dev, &control, patience)?;
        let peer = Peer::new(domain, choice.mode)?;

        Arc::pin_init(
            try_pin_init!(Self {
                slot <- new_mutex!(slot),
                control,
                pool,
                directory,
                dev: (&**dev).into(),
                peer: debugfs.file(c"mode", peer),
                timeout,
                patience,
                debugfs: debugfs.clone(),
                requests: debugfs.file(c"requests", KBox::pin(Requests::new(), GFP_KERNEL)?),
                breaker,
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Shares the same memory with the backend that `dev` has now, as `choice` says, after the
    /// system has been restored. There must be no virtqueue. Sleeps.
    pub(crate) fn renew(&self, dev: &xenbus::Device<Bound>, choice: &Choice) -> Result {
        let domain = dev.backend_domain();

        // What was there was not for this backend.
        self.control.clear();
        self.pool.fill(0, 0, self.pool.size());
        self.control.set_pool(
            u32::try_from(choice.pool_pages)?,
            self.directory.references(),
        );

        self.control.grant_anew(domain)?;
        self.pool.grant_anew(domain)?;
        self.directory.grant_anew(domain)?;

        let slot = Slot::new(dev, &self.control, self.patience)?;
        *self.slot.lock() = slot;
        *self.peer.agreed.lock() = (domain, choice.mode);
        Ok(())
    }

    /// The port of the control event channel.
    pub(crate) fn port(&self) -> u32 {
        self.slot.lock().channel.port()
    }

    /// How each of `queues` virtqueues can have its buffers without a copy. Sleeps.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if the grant table is full.
    pub(crate) fn direct(&self, queues: usize) -> Result<Direct> {
        let (domain, mode) = self.peer.agreed();
        Ok(match mode {
            Mode::Pool => Direct::Nothing,
            Mode::Grant => Direct::Grants(References::new(
                domain,
                (DIRECT_PAGES / queues.max(1)).max(MAX_BUFFER / wire::PAGE_SIZE),
            )?),
            Mode::Machine => Direct::Frames,
        })
    }

    /// Who is told of a backend that does not let go of buffers.
    pub(crate) fn observer(&self) -> Arc<dyn Observer> {
        self.breaker.clone()
    }

    /// Has the backend carry out `op`, and waits for that at most as long as the time limit says.
    /// Sleeps.
    ///
    /// `argument` is what the request is about: the index of a virtqueue; the status or the lower
    /// half of the features, which stand in the control page already; 0 for the whole device.
    ///
    /// Errors: the backend's own; [`ETIMEDOUT`], after which the link is dead; [`ENODEV`] if it is.
    pub(crate) fn request(&self, op: Op, argument: u64) -> Result {
        self.call(op, argument, &[])
    }

    /// Has the backend write to configuration space. Sleeps. Errors as [`request`](Self::request).
    pub(crate) fn write_config(&self, offset: u32, data: &[u8]) -> Result {
        let mut offset = u64::from(offset);
        for part in data.chunks(wire::WRITE_SIZE) {
            self.call(Op::ConfigWrite, offset, part)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    fn call(&self, op: Op, argument: u64, data: &[u8]) -> Result {
        let mut slot = self.slot.lock();

        if self.control.is_dead() {
            return Err(ENODEV);
        }

        slot.sequence = slot.sequence.wrapping_add(1);
        self.control.post(slot.sequence, op, argument, data)?;

        let start = Instant::now();
        slot.channel.notify();
        let result = self.await_answer(slot.sequence, start);
        let micros = u64::try_from(start.elapsed().as_nanos() / 1000).unwrap_or(0);
        self.requests.record(op, &result, micros);
        trace::request(&self.dev, op.name(), argument, &result, micros);
        result
    }

    /// Waits for the answer to the request that was made at `start`.
    fn await_answer(&self, sequence: u32, start: Instant<Monotonic>) -> Result {
        let control = &*self.control;

        // Signals that bring no answer must not prolong the wait.
        loop {
            // The answer may have come without an event that says so.
            if let Some(result) = control.answer(sequence) {
                return result;
            }
            if control.is_dead() {
                return Err(ENODEV);
            }
            let passed = Msecs::try_from(start.elapsed().as_millis())?;
            if passed >= self.timeout {
                control.kill();
                return Err(ETIMEDOUT);
            }
            control
                .answered
                .wait(msecs_to_jiffies(self.timeout - passed));
        }
    }
}

/// Shares pages that hold the grant references of all pages of `pool`.
fn share_directory(domain: u16, pool: &SharedPages) -> Result<SharedPages> {
    let count = pool.references().count();
    let directory = SharedPages::new(domain, count.div_ceil(wire::REFS_PER_PAGE))?;

    for (i, reference) in pool.references().enumerate() {
        directory.store_release(i * size_of::<u32>(), reference);
    }
    Ok(directory)
}
