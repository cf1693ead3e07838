// SPDX-License-Identifier: GPL-2.0-or-later
//! The memory and event channels of a connected frontend.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use virtioif::ControlPage;
use virtioif::bindings::{
    VIRTIO_XENBUS_FRAMES_GUEST, VIRTIO_XENBUS_FRAMES_MACHINE, VIRTIO_XENBUS_KEY_CONTROL_REF,
    VIRTIO_XENBUS_KEY_EVTCHN, VIRTIO_XENBUS_KEY_FRAMES, VIRTIO_XENBUS_KEY_MODE,
    VIRTIO_XENBUS_KEY_VERSION, VIRTIO_XENBUS_MAX_DIRECTORY, VIRTIO_XENBUS_REFS_PER_PAGE,
    VIRTIO_XENBUS_VERSION,
};
use vm_memory::{Bytes, VolatileMemory};
use xen::{DomainId, EventChannel, ForeignMemory, GrantTable, Mapping, Store, grant_file};

use crate::control::{Binder, Controller};
use crate::device::{Device, Doorbell, SharedPool};
use crate::keys::key;
use crate::memory::{DomainFrames, DomainGrants, Pool, Sharing};
use crate::modes::{Mode, Modes};
use crate::record::Record;

/// What the frontend writes to xenstore.
#[derive(Debug)]
pub struct Offer {
    control_ref: u32,
    event_channel: u32,
    mode: Mode,
    /// Frame numbers are those of the host.
    host_frames: bool,
}

impl Offer {
    /// Reads and checks the frontend's keys in directory `frontend`. It has been offered `modes`.
    pub fn read(store: &Store, frontend: &str, modes: Modes) -> Result<Self> {
        let read = |name: &str| -> Result<String> {
            let path = format!("{frontend}/{name}");
            let value = store.read(&path).with_context(|| path.clone())?;
            value.with_context(|| format!("{path}: the frontend has not written it"))
        };
        let number = |name: &str| -> Result<u32> {
            let value = read(name)?;
            value
                .trim()
                .parse()
                .with_context(|| format!("{frontend}/{name}: {value:?}"))
        };

        let version = read(key(VIRTIO_XENBUS_KEY_VERSION))?;
        ensure!(
            version.trim() == VIRTIO_XENBUS_VERSION.to_string(),
            "the frontend speaks version {version:?} of the protocol, this daemon {} only",
            VIRTIO_XENBUS_VERSION
        );
        let mode = read(key(VIRTIO_XENBUS_KEY_MODE))?;
        let mode = modes.find(&mode).with_context(|| {
            format!(
                "the frontend has chosen address mode {mode:?}, but \"{modes}\" is what it can \
                 have: unbind and bind its driver, or correct address-modes"
            )
        })?;
        let frames_path = format!("{frontend}/{}", key(VIRTIO_XENBUS_KEY_FRAMES));
        let frames = store
            .read(&frames_path)
            .with_context(|| frames_path.clone())?;
        let host_frames = match frames.as_deref() {
            None => false,
            Some(name) if name == key(VIRTIO_XENBUS_FRAMES_GUEST) => false,
            Some(name) if name == key(VIRTIO_XENBUS_FRAMES_MACHINE) => true,
            Some(name) => bail!(
                "{frames_path}: {name:?} is neither \"{}\" nor \"{}\"",
                key(VIRTIO_XENBUS_FRAMES_GUEST),
                key(VIRTIO_XENBUS_FRAMES_MACHINE)
            ),
        };
        Ok(Self {
            host_frames,
            control_ref: number(key(VIRTIO_XENBUS_KEY_CONTROL_REF))?,
            event_channel: number(key(VIRTIO_XENBUS_KEY_EVTCHN))?,
            mode,
        })
    }
}

/// A connected frontend.
///
/// Dropping it stops the queues, then unmaps everything and closes the channels.
pub struct Connection {
    // Fields are dropped in this order.
    controller: Controller<Mapping>,
    channel: EventChannel,
    mode: Mode,
}

/// The memory of a frontend, mapped but not written to yet.
pub struct Mapped {
    binder: DomainBinder,
    page: ControlPage<Mapping>,
    pool: SharedPool,
    sharing: Sharing,
    channel: EventChannel,
    mode: Mode,
}

impl Mapped {
    /// Maps what `offer` names, and binds the control event channel.
    pub fn new(domain: DomainId, offer: &Offer, max_pool_pages: u32) -> Result<Self> {
        let grants = GrantTable::open().context("cannot open the grant device")?;
        let page = grants
            .map(domain, &[offer.control_ref])
            .with_context(|| format!("cannot map the control page, grant {}", offer.control_ref))?;
        let page = ControlPage::new(page)?;
        let references = directory(&page.driver()?, max_pool_pages, |reference| {
            grants
                .map(domain, &[reference])
                .with_context(|| format!("cannot map the pool directory, grant {reference}"))
        })?;
        let pool = grants
            .map(domain, &references)
            .with_context(|| format!("cannot map the pool of {} pages", references.len()))?;
        let sharing = match offer.mode {
            Mode::Grant => Sharing::Grants(Arc::new(DomainGrants {
                domain,
                table: Arc::clone(&grants),
            })),
            Mode::Machine => Sharing::Frames(Arc::new(DomainFrames {
                domain,
                memory: ForeignMemory::open().context("cannot map the guest's memory")?,
                host: offer.host_frames,
            })),
            Mode::Pool => Sharing::Pool,
        };
        let binder = DomainBinder::new(domain);
        let channel = binder.try_bind(offer.event_channel).with_context(|| {
            format!(
                "cannot bind the control event channel, port {}",
                offer.event_channel
            )
        })?;
        Ok(Self {
            binder,
            page,
            pool: SharedPool {
                pool: Pool::new(pool),
                share: Arc::new(move || grant_file(domain, &references)),
            },
            sharing,
            channel,
            mode: offer.mode,
        })
    }
}

impl Connection {
    /// Serves `device` in mapped memory.
    ///
    /// What the next daemon is to know is recorded at `path`, where there may be what an earlier
    /// one has.
    pub fn open(
        name: &str,
        mapped: Mapped,
        mut device: Box<dyn Device>,
        path: &Path,
    ) -> Result<Self> {
        let Mapped {
            binder,
            page,
            pool,
            sharing,
            channel,
            mode,
        } = mapped;
        device.connect(&pool)?;
        let record = Record::open(path, page.record()?, device.queue_sizes().len())?;
        let controller = Controller::new(
            name,
            page,
            pool.pool,
            sharing,
            Box::new(binder),
            device,
            record,
        )?;
        // What an earlier backend has written but not announced is seen now.
        channel.notify()?;
        Ok(Self {
            controller,
            channel,
            mode,
        })
    }

    /// The address mode that the frontend has chosen.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What serves the control page.
    pub fn controller(&self) -> &Controller<Mapping> {
        &self.controller
    }

    /// Readable when the frontend has a request.
    pub fn channel(&self) -> &EventChannel {
        &self.channel
    }

    /// Does what is to be done now.
    pub fn serve(&mut self) -> Result<()> {
        self.channel.acknowledge()?;
        let mut notify = self.controller.serve()?;
        notify |= self.controller.check_queues()?;
        notify |= self.controller.update_config()?;
        if notify {
            self.channel.notify()?;
        }
        Ok(())
    }
}

/// The references of the pool's pages, from the pages that hold them.
fn directory<M: VolatileMemory>(
    driver: &virtioif::DriverRegs,
    max_pool_pages: u32,
    map: impl Fn(u32) -> Result<M>,
) -> Result<Vec<u32>> {
    let pages = driver.pool_pages;
    if pages == 0 || pages > max_pool_pages {
        bail!("the frontend's pool has {pages} pages; 1 to {max_pool_pages} are allowed");
    }
    let directory_pages = pages.div_ceil(VIRTIO_XENBUS_REFS_PER_PAGE);
    ensure!(
        directory_pages <= VIRTIO_XENBUS_MAX_DIRECTORY,
        "a pool of {pages} pages is too large"
    );

    let mut references = Vec::with_capacity(pages as usize);
    for &reference in driver.pool_directory.iter().take(directory_pages as usize) {
        let page = map(reference)?;
        let slice = page.get_slice(0, page.len())?;
        let left = (pages as usize).saturating_sub(references.len());
        for index in 0..left.min(VIRTIO_XENBUS_REFS_PER_PAGE as usize) {
            references.push(u32::from_le(slice.read_obj(4 * index)?));
        }
    }
    Ok(references)
}

/// How long after a daemon's end its ends of event channels may still be bound: the kernel lets go
/// of those that io_uring waits for only when the process is gone.
const LINGER: Duration = Duration::from_secs(5);

/// Between two looks. Nobody tells of it.
const LOOK: Duration = Duration::from_millis(5);

/// Binds to event channels of one domain.
struct DomainBinder {
    domain: DomainId,
    /// Until then a channel may be bound to an earlier daemon.
    until: Instant,
}

impl DomainBinder {
    fn new(domain: DomainId) -> Self {
        Self {
            domain,
            until: Instant::now() + LINGER,
        }
    }

    fn try_bind(&self, port: u32) -> io::Result<EventChannel> {
        loop {
            match EventChannel::bind(self.domain, port) {
                // What Xen says of a channel whose other end is bound, among others.
                Err(error)
                    if error.kind() == io::ErrorKind::InvalidInput
                        && Instant::now() < self.until =>
                {
                    thread::sleep(LOOK);
                }
                result => return result,
            }
        }
    }
}

impl Binder for DomainBinder {
    fn bind(&self, port: u32) -> io::Result<Box<dyn Doorbell>> {
        Ok(Box::new(self.try_bind(port)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(pool_pages: u32) -> virtioif::DriverRegs {
        let mut pool_directory = [0; VIRTIO_XENBUS_MAX_DIRECTORY as usize];
        for (reference, number) in pool_directory.iter_mut().zip(0..) {
            *reference = number;
        }
        virtioif::DriverRegs {
            status: 0,
            pool_pages,
            features: 0,
            pool_directory,
        }
    }

    /// A directory page whose references tell page and position.
    fn page(reference: u32) -> Result<Mapping> {
        let mapping = Mapping::anonymous(xen::PAGE_SIZE)?;
        for index in 0..VIRTIO_XENBUS_REFS_PER_PAGE {
            let slice = mapping.get_slice(0, xen::PAGE_SIZE)?;
            slice.write_obj(((reference << 16) | index).to_le(), 4 * index as usize)?;
        }
        Ok(mapping)
    }

    #[test]
    fn reads_directory() {
        let references = directory(&regs(1026), 2048, page).unwrap();
        assert_eq!(references.len(), 1026);
        assert_eq!(references[1023], 1023);
        assert_eq!(references[1024..], [1 << 16, (1 << 16) | 1]);
    }

    #[test]
    fn refuses_pools_of_bad_size() {
        for pages in [0, 2049, u32::MAX] {
            assert!(directory(&regs(pages), 2048, page).is_err());
        }
        assert!(directory(&regs(u32::MAX), u32::MAX, page).is_err());
        assert_eq!(directory(&regs(32768), 32768, page).unwrap().len(), 32768);
    }
}
