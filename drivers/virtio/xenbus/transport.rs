// SPDX-License-Identifier: GPL-2.0

//! The virtio transport: `struct virtio_config_ops` over a [`Link`].

use crate::{
    features::FeatureList,
    generation::Throttle,
    link::Link,
    partition::{
        fit,
        plan,
        Partition,
        MAX_BUFFER, //
    },
    report::PoolReport,
    sys::{
        bindings::{
            VIRTIO_CONFIG_S_DRIVER_OK,
            VIRTIO_CONFIG_S_NEEDS_RESET,
            VIRTIO_F_VERSION_1, //
        },
        debugfs::File,
        map::{
            QueueMap,
            SharedPartition, //
        },
        trace::Source,
        virtio::{
            Device,
            Features,
            Spread,
            Transport, //
        },
        virtqueue::{
            Queue,
            Request, //
        },
        xenbus, //
    },
    told::Told,
    wire::{
        self,
        Identity,
        Op, //
    },
};
use kernel::{
    fmt, new_mutex,
    prelude::*,
    str::CString,
    sync::{
        aref::ARef,
        atomic::{
            ordering,
            Atomic, //
        },
        Arc,
        Mutex, //
    },
};

mod suspend;

use suspend::snapshot;

/// A virtio device that is reached over a link.
#[pin_data]
pub(crate) struct XenbusTransport {
    dev: ARef<xenbus::Device>,
    link: Arc<Link>,
    identity: Identity,

    /// The status byte that the backend has agreed to last.
    status: Atomic<u32>,

    /// Between [`freeze`](Self::freeze) and [`thaw`](Self::thaw).
    frozen: Atomic<bool>,

    /// The number of errors that have been reported.
    reports: Atomic<u32>,

    #[pin]
    generation: Mutex<Throttle>,

    /// Configuration space as the driver knows it from its probe.
    #[pin]
    told: Mutex<Told>,

    /// What is negotiated, in debugfs.
    features: File<FeatureList>,

    #[pin]
    queues: Mutex<Queues>,
}

/// The virtqueues that there are.
struct Queues {
    /// What they have of the pool, in debugfs.
    pool: Option<File<PoolReport>>,

    /// Each by its index, in debugfs too.
    all: KVec<File<Queue>>,

    /// How many there were when there were some last.
    last: usize,
}

impl XenbusTransport {
    /// Creates an initialiser of a transport for the device that `identity` tells of.
    pub(crate) fn new(
        dev: ARef<xenbus::Device>,
        link: Arc<Link>,
        identity: Identity,
    ) -> impl PinInit<Self, Error> {
        let queues = Queues {
            pool: None,
            all: KVec::new(),
            last: 0,
        };
        try_pin_init!(Self {
            dev,
            features: link.debugfs.file(
                c"features",
                KBox::pin(
                    FeatureList::new(identity.device_id, identity.features),
                    GFP_KERNEL
                )?,
            ),
            told <- new_mutex!(Told::new(snapshot(&link, identity.config_length)?)),
            link,
            identity,
            status: Atomic::new(0),
            frozen: Atomic::new(false),
            reports: Atomic::new(0),
            generation <- new_mutex!(Throttle::new()),
            queues <- new_mutex!(queues),
        })
    }

    /// Makes the virtqueues that have a name and enables each.
    fn make_queues(
        &self,
        dev: &Device<Self>,
        queues: &mut Queues,
        requests: &[Request],
        spread: Option<&Spread>,
        found: &mut dyn FnMut(usize, &Queue),
    ) -> Result {
        // Virtqueues that the driver does not want have no number.
        let wanted = || {
            requests
                .iter()
                .enumerate()
                .filter(|(_, r)| r.name().is_some())
        };

        let count = wanted().count();
        let mut sizes = self.identity.queue_sizes;
        let sizes = sizes.get_mut(..count).ok_or(ENOENT)?;
        if count > self.identity.num_queues || sizes.contains(&0) {
            dev_err!(
                self.dev,
                "the driver wants {count} virtqueues, the backend has {}\n",
                self.identity.num_queues
            );
            return Err(ENOENT);
        }

        let pool = &self.link.pool;
        let pool_pages = pool.size() / wire::PAGE_SIZE;
        fit(pool_pages, sizes);
        let plan = plan(pool_pages, sizes).ok_or_else(|| {
            dev_err!(
                self.dev,
                "a pool of {} KiB is too small for {count} virtqueues: see the *_pool_kib parameters\n",
                pool.size() / 1024
            );
            ENOSPC
        })?;

        let shared = plan.shared();
        let overflow = Arc::pin_init(
            SharedPartition::new(Partition::new(shared.first_page, shared.pages)?),
            GFP_KERNEL,
        )?;

        let limits = plan
            .queues()
            .iter()
            .zip(&self.identity.queue_sizes)
            .map(|(span, &size)| buffer_limit(span.pages + shared.pages, size));
        dev.limit_buffers(limits.min().unwrap_or(wire::PAGE_SIZE));

        let mut maps = KVec::with_capacity(count, GFP_KERNEL)?;
        for (index, span) in plan.queues().iter().enumerate() {
            let own = Partition::new(span.first_page, span.pages)?;
            let source = Source::new(&self.dev, u16::try_from(index)?);
            let map = Arc::pin_init(
                QueueMap::new(
                    pool.clone(),
                    own,
                    overflow.clone(),
                    self.link.direct(count)?,
                    self.link.observer(),
                    source,
                ),
                GFP_KERNEL,
            )?;
            maps.push(map, GFP_KERNEL)?;
        }

        queues.all.reserve(count, GFP_KERNEL)?;
        for (index, (((i, request), &size), map)) in wanted().zip(&*sizes).zip(&maps).enumerate() {
            let number = u16::try_from(index)?;
            let name = CString::try_from_fmt(fmt!("queue-{number}"))?;
            let queue = Queue::new(dev, &self.dev, number, size, request, map.clone())?;

            if let Some(spread) = spread {
                spread.apply(&queue);
            }

            self.link.control.set_queue(&queue);
            found(i, &queue);
            queues
                .all
                .push(self.link.debugfs.file(&name, queue), GFP_KERNEL)?;

            self.ask(Op::QueueEnable, number.into())
                .inspect_err(|&e| self.report(fmt!("virtqueue {number} cannot be enabled"), e))?;
        }

        let report = KBox::pin(PoolReport::new(maps, overflow), GFP_KERNEL)?;
        queues.pool = Some(self.link.debugfs.file(c"pool", report));
        Ok(())
    }

    /// Deletes virtqueues, after the backend has let go of them.
    fn drop_queues(&self, queues: &mut Queues) {
        queues.pool = None;

        // Drivers delete the virtqueues of a device that they have not reset when their probe
        // fails half-way.
        let reset = self.status.load(ordering::Relaxed) == 0;

        for queue in queues.all.drain_all() {
            let index = queue.index();

            // First, so that a backend that starts anew does not take the virtqueue over.
            self.link.control.clear_queue(index);
            if reset {
                continue;
            }
            if let Err(e) = self.link.request(Op::QueueReset, index.into()) {
                // The backend may go on to use the memory of the virtqueue, which must therefore
                // not become that of another.
                self.report(fmt!("virtqueue {index} cannot be reset"), e);
                self.link.control.kill();
            }
        }
    }

    /// Reports an error that the virtio core has no way to return, or is silent about.
    fn report(&self, what: fmt::Arguments<'_>, error: Error) {
        const MAX_REPORTS: u32 = 20;

        // The backend is known to be gone, or has been able to fill the log.
        if error == ENODEV || self.reports.fetch_add(1, ordering::Relaxed) >= MAX_REPORTS {
            return;
        }
        if error == ETIMEDOUT {
            let timeout = self.link.timeout;
            dev_err!(
                self.dev,
                "{what}: the backend has not answered for {timeout} ms\n"
            );
        } else {
            dev_err!(self.dev, "{what}: {error:?}\n");
        }
    }
}

/// How long buffers should be at most so that a virtqueue that may have `pages` pages of the pool
/// can hold a request of `size` buffers, which is what a device allows at most: one that could not
/// would be tried for ever.
fn buffer_limit(pages: usize, size: u16) -> usize {
    // One page in eight is for small buffers.
    let run_pages = pages - pages.div_ceil(8);
    let limit = run_pages.checked_div(size.into()).unwrap_or(1);
    limit.clamp(1, MAX_BUFFER / wire::PAGE_SIZE) * wire::PAGE_SIZE
}

impl Transport for XenbusTransport {
    fn get(&self, offset: u32, buf: &mut [u8]) {
        let range = wire::config_range(offset, buf.len(), self.identity.config_length);
        let mut told = self.told.lock();

        let result = range.ok_or(EINVAL).and_then(|range| {
            if !told.recall(range.clone(), buf) {
                self.link.control.read_config(range.start, buf)?;
                told.remember(range, buf);
            }
            Ok(())
        });
        drop(told);

        if let Err(e) = result {
            buf.fill(0);
            self.report(fmt!("configuration space cannot be read at {offset}"), e);
            if e == EBUSY {
                self.link.control.kill();
            }
        }
    }

    fn set(&self, offset: u32, buf: &[u8]) {
        let range = wire::config_range(offset, buf.len(), self.identity.config_length);
        let result = range
            .ok_or(EINVAL)
            .and_then(|_| self.link.write_config(offset, buf));

        if let Err(e) = result {
            self.report(fmt!("configuration space cannot be written at {offset}"), e);
        }
    }

    fn generation(&self) -> u32 {
        self.generation.lock().tell(self.link.control.generation())
    }

    fn status(&self) -> u8 {
        // CAST: `status` was a byte when it was stored.
        let status = self.status.load(ordering::Relaxed) as u8;
        let needs_reset = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

        // A device that has been reset does not need it.
        if status == 0 {
            return 0;
        }
        status | (self.link.control.device_status() & needs_reset)
    }

    fn set_status(&self, status: u8) {
        let control = &self.link.control;
        let old = self.status.load(ordering::Relaxed);

        control.set_status(status);
        match self.ask(Op::Status, status.into()) {
            Ok(()) => self.status.store(status.into(), ordering::Relaxed),
            Err(e) => {
                self.report(fmt!("device status {status:#x} is refused"), e);
                // What stands in the page is what a backend that starts anew takes over.
                // CAST: `status` was a byte when it was stored.
                control.set_status(old as u8);
                // Nobody looks whether the queues run: the driver would wait for them.
                // CAST: A bit of a byte.
                if status & VIRTIO_CONFIG_S_DRIVER_OK as u8 != 0 {
                    control.kill();
                }
            }
        }
    }

    fn reset(&self) {
        let control = &self.link.control;

        control.set_status(0);
        if let Err(e) = self.link.request(Op::Reset, 0) {
            // The backend may go on to use the pool, which does no harm. But it must not be waited
            // for any more.
            self.report(fmt!("the device cannot be reset"), e);
            control.kill();
        }
        self.status.store(0, ordering::Relaxed);
        self.features.accept([0; 2]);
        self.synchronize();
    }

    fn find_queues(
        &self,
        dev: &Device<Self>,
        requests: &[Request],
        spread: Option<&Spread>,
        found: &mut dyn FnMut(usize, &Queue),
    ) -> Result {
        let mut queues = self.queues.lock();

        let result = self.make_queues(dev, &mut queues, requests, spread, found);
        let result = result.and_then(|()| {
            let all = queues.all.iter().map(|queue| &**queue);
            self.link.control.watcher.arm(dev, all)
        });
        match result {
            Ok(()) => {
                queues.last = queues.all.len();
                self.told.lock().set_queues(true);
                if self.link.control.is_dead() {
                    self.link.control.kill();
                }
            }
            Err(_) => self.drop_queues(&mut queues),
        }
        result
    }

    fn delete_queues(&self) {
        self.link.control.watcher.disarm();
        self.drop_queues(&mut self.queues.lock());
        self.told.lock().set_queues(false);
    }

    fn synchronize(&self) {
        for queue in self.queues.lock().all.iter() {
            queue.synchronize();
        }
    }

    fn features(&self) -> Features {
        wire::transport_features(self.identity.features)
    }

    fn finalize_features(&self, features: &mut Features) -> Result {
        *features = wire::transport_features(*features);

        let [low, _] = *features;
        if low & (1 << VIRTIO_F_VERSION_1) == 0 {
            dev_err!(
                self.dev,
                "the device or its driver lacks VIRTIO_F_VERSION_1\n"
            );
            return Err(EINVAL);
        }

        self.features.accept(*features);
        self.link.control.set_features(*features);
        self.ask(Op::Features, low)
            .inspect_err(|&e| self.report(fmt!("features {features:#x?} are refused"), e))
    }

    fn bus_name(&self) -> &CStr {
        self.dev.node_name()
    }

    fn with_queue(&self, index: usize, f: &mut dyn FnMut(&Queue)) {
        if let Some(queue) = self.queues.lock().all.get(index) {
            f(queue);
        }
    }
}
