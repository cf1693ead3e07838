// SPDX-License-Identifier: GPL-2.0-or-later
//! A frontend that makes requests through a control page.

mod queues;
mod requests;
mod restart;

use std::io;
use std::mem::{offset_of, size_of};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use virtio_queue::QueueT;
use virtioif::ControlPage;
use virtioif::bindings::{virtio_xenbus_control_page as Page, virtio_xenbus_queue};
use vm_memory::{Bytes, VolatileMemory, VolatileSlice};
use xen::{Mapping, PAGE_SIZE};

use super::{Binder, Controller, RING_FEATURES, TRANSPORT_FEATURES};
use crate::config_space::ConfigSpace;
use crate::device::{Device, Doorbell, Resumption, Ring};
use crate::memory::{POOL_START, Pool, Sharing};
use crate::record::Record;
use crate::testing::FakeDoorbell;
use crate::worker::Worker;

const RESET: u32 = 1;
const STATUS: u32 = 2;
const FEATURES: u32 = 3;
const QUEUE_ENABLE: u32 = 4;
const QUEUE_RESET: u32 = 5;
const CONFIG_WRITE: u32 = 6;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 0x40;

const VERSION_1: u128 = 1 << 32;
const DEVICE_FEATURE: u128 = 1 << 5;

const POOL_SIZE: usize = 1 << 16;
const BAD_PORT: u32 = 666;
const QUEUE_SIZE: u16 = 64;

fn code(errno: Errno) -> i32 {
    -(errno as i32)
}

/// Of each queue that was started, where it begins: available, used, and what was left of an earlier
/// backend.
type Started = Arc<Mutex<Vec<(u16, u16, Vec<u16>)>>>;

/// A device with three queues, the second of which is not there, and four bytes of configuration
/// space.
struct TestDevice {
    config: ConfigSpace,
    running: Arc<AtomicU32>,
    started: Started,
    /// Queue 0 ends by itself.
    fails: bool,
}

impl Device for TestDevice {
    fn id(&self) -> u32 {
        42
    }

    fn describe(&self) -> String {
        "test".into()
    }

    fn features(&self) -> u128 {
        DEVICE_FEATURE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE, 0, QUEUE_SIZE]
    }

    fn queue_name(&self, index: u16) -> String {
        format!("test {index}")
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) -> Result<(), Errno> {
        if offset == 0 {
            return Err(Errno::EINVAL);
        }
        self.config.write(offset, data);
        Ok(())
    }

    fn set_features(&mut self, _features: u128) -> Result<(), Errno> {
        Ok(())
    }

    fn resumption(&self, index: u16) -> Resumption {
        match index {
            0 => Resumption::InOrder,
            _ => Resumption::Recorded,
        }
    }

    fn start_queue(&mut self, ring: Ring) -> Result<Worker> {
        let running = Arc::clone(&self.running);
        running.fetch_add(1, Ordering::SeqCst);
        let (avail, used) = (ring.queue.next_avail(), ring.queue.next_used());
        let started = (avail, used, ring.left.clone());
        self.started.lock().unwrap().push(started);
        let fails = self.fails;
        Worker::spawn(ring, move |_ring, stop| {
            if fails {
                anyhow::bail!("broken on purpose");
            }
            let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::NONE)?;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        })
    }

    fn reset(&mut self) {}
}

struct TestBinder;

impl Binder for TestBinder {
    fn bind(&self, port: u32) -> io::Result<Box<dyn Doorbell>> {
        if port == BAD_PORT {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Box::new(FakeDoorbell::new()))
    }
}

/// The shared page, for both sides.
struct SharedPage(Arc<Mapping>);

impl VolatileMemory for SharedPage {
    type B = ();

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get_slice(
        &self,
        offset: usize,
        count: usize,
    ) -> vm_memory::volatile_memory::Result<VolatileSlice<'_>> {
        self.0.get_slice(offset, count)
    }
}

/// A frontend and its backend.
struct Frontend {
    page: Arc<Mapping>,
    pool: Pool,
    running: Arc<AtomicU32>,
    started: Started,
    fails: bool,
    seq: u32,
    place: PathBuf,
}

impl Drop for Frontend {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.place);
    }
}

impl Frontend {
    fn new() -> Self {
        Self {
            page: Arc::new(Mapping::anonymous(PAGE_SIZE).unwrap()),
            pool: Pool::new(Mapping::anonymous(POOL_SIZE).unwrap()),
            running: Arc::default(),
            started: Arc::default(),
            fails: false,
            seq: 0,
            place: std::env::temp_dir().join(format!(
                "vxb-control-{}-{:?}",
                std::process::id(),
                std::thread::current().id()
            )),
        }
    }

    /// What the last backend has recorded.
    fn record(&self) -> Record {
        let number = self.get32(offset_of!(Page, device.record));
        Record::open(&self.place, number, 3).unwrap()
    }

    fn backend(&self) -> Controller<SharedPage> {
        let device = TestDevice {
            config: ConfigSpace::new(&[1, 2, 3, 4]).unwrap(),
            running: Arc::clone(&self.running),
            started: Arc::clone(&self.started),
            fails: self.fails,
        };
        Controller::new(
            "test",
            ControlPage::new(SharedPage(Arc::clone(&self.page))).unwrap(),
            self.pool.clone(),
            Sharing::Pool,
            Box::new(TestBinder),
            Box::new(device),
            self.record(),
        )
        .unwrap()
    }

    fn slice(&self) -> VolatileSlice<'_> {
        self.page.get_slice(0, PAGE_SIZE).unwrap()
    }

    fn put32(&self, offset: usize, value: u32) {
        self.slice().write_obj(value.to_le(), offset).unwrap();
    }

    fn get32(&self, offset: usize) -> u32 {
        u32::from_le(self.slice().read_obj(offset).unwrap())
    }

    /// Makes a request, and has it answered.
    fn request(
        &mut self,
        backend: &mut Controller<SharedPage>,
        op: u32,
        arguments: [u32; 3],
    ) -> i32 {
        let [queue, offset, length] = arguments;
        self.put32(offset_of!(Page, request.op), op);
        self.put32(offset_of!(Page, request.queue), queue);
        self.put32(offset_of!(Page, request.offset), offset);
        self.put32(offset_of!(Page, request.length), length);
        self.seq = self.seq.wrapping_add(1);
        self.put32(offset_of!(Page, request.seq), self.seq);
        assert!(backend.serve().unwrap());
        assert_eq!(self.get32(offset_of!(Page, device.response_seq)), self.seq);
        assert!(!backend.serve().unwrap(), "a request was served twice");
        self.get32(offset_of!(Page, device.response_result)) as i32
    }

    fn status(&mut self, backend: &mut Controller<SharedPage>, status: u32) -> i32 {
        self.put32(offset_of!(Page, driver.status), status);
        let op = if status == 0 { RESET } else { STATUS };
        self.request(backend, op, [0; 3])
    }

    fn device_status(&self) -> u32 {
        self.get32(offset_of!(Page, device.status))
    }

    fn features(&mut self, backend: &mut Controller<SharedPage>, features: u128) -> i32 {
        for word in 0..4 {
            let bits = (features >> (32 * word)) as u32;
            self.put32(offset_of!(Page, driver.features) + 4 * word, bits);
        }
        self.request(backend, FEATURES, [0; 3])
    }

    fn set_queue(&self, index: usize, queue: virtio_xenbus_queue) {
        let base = offset_of!(Page, queues) + index * size_of::<virtio_xenbus_queue>();
        for (offset, value) in [(0, queue.desc), (8, queue.driver), (16, queue.device)] {
            self.slice()
                .write_obj(value.to_le(), base + offset)
                .unwrap();
        }
        self.put32(base + 24, queue.event_channel);
        let last = u32::from(queue.size) | (u32::from(queue.enabled) << 16);
        self.put32(base + 28, last);
    }

    fn enable(
        &mut self,
        backend: &mut Controller<SharedPage>,
        index: u32,
        queue: virtio_xenbus_queue,
    ) -> i32 {
        if index < 48 {
            self.set_queue(index as usize, queue);
        }
        self.request(backend, QUEUE_ENABLE, [index, 0, 0])
    }

    /// Up to the point where queues are enabled.
    fn negotiate(&mut self, backend: &mut Controller<SharedPage>) {
        assert_eq!(self.status(backend, 0), 0);
        assert_eq!(self.status(backend, ACKNOWLEDGE | DRIVER), 0);
        assert_eq!(self.features(backend, VERSION_1 | DEVICE_FEATURE), 0);
        assert_eq!(self.status(backend, ACKNOWLEDGE | DRIVER | FEATURES_OK), 0);
    }

    fn start(&mut self, backend: &mut Controller<SharedPage>) {
        self.negotiate(backend);
        assert_eq!(self.enable(backend, 0, good_queue(0)), 0);
        assert_eq!(self.enable(backend, 2, good_queue(0x4000)), 0);
        assert_eq!(
            self.running.load(Ordering::SeqCst),
            0,
            "runs before DRIVER_OK"
        );
        assert_eq!(self.status(backend, RUNNING), 0);
        assert_eq!(self.running.load(Ordering::SeqCst), 2);
    }
}

/// Names of the queues that are there, and whether they run.
fn running_queues(backend: &Controller<SharedPage>) -> Vec<(String, bool)> {
    let queues = backend.queues().into_iter();
    queues
        .map(|(queue, _)| (queue.name, queue.running))
        .collect()
}

const RUNNING: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

fn good_queue(base: u64) -> virtio_xenbus_queue {
    virtio_xenbus_queue {
        desc: POOL_START.0 + base,
        driver: POOL_START.0 + base + 0x1000,
        device: POOL_START.0 + base + 0x2000,
        event_channel: 7,
        size: QUEUE_SIZE,
        enabled: 1,
    }
}
