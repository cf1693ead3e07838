// SPDX-License-Identifier: GPL-2.0

//! The mapping operations of virtqueues: buffers are copied through a pool, or the device is given
//! their own pages.
//!
//! C header: [`include/linux/virtio_config.h`](srctree/include/linux/virtio_config.h)

use super::{
    bindings,
    compat::{
        new_spinlock_irq,
        SpinLockIrq,
        DMA_FROM_DEVICE,
        DMA_TO_DEVICE, //
    },
    grant::SharedPages,
    page::{
        is_kmalloc,
        mark_written,
        p2m_entry,
        Pages, //
    },
    references::References,
    trace::Source, //
};
use crate::{
    address::{
        self,
        Address, //
    },
    frame::machine_address,
    partition::{
        Partition,
        Usage,
        CHUNK,
        MAX_BUFFER,
        PAGE, //
    },
};
use kernel::{
    pr_warn_once,
    prelude::*,
    sync::{
        atomic::{
            ordering,
            Atomic, //
        },
        Arc,
        ArcBorrow, //
    },
};

/// How long a buffer is at most that drivers should map at once, in bytes.
///
/// A pointer to it is the `union virtio_map` of the device.
pub(super) struct BufferLimit(Atomic<usize>);

impl BufferLimit {
    /// A limit that does not matter yet.
    pub(super) fn new() -> Self {
        Self(Atomic::new(PAGE))
    }

    pub(super) fn set(&self, bytes: usize) {
        self.0.store(bytes, ordering::Relaxed);
    }

    /// What C hands to `max_mapping_size`.
    pub(super) fn token(&self) -> bindings::virtio_map {
        bindings::virtio_map {
            group: core::ptr::from_ref(self).cast_mut().cast(),
        }
    }
}

/// What `map_page` returns when it has failed: the value that the rings know as an error.
const MAPPING_ERROR: u64 = u64::MAX;

/// What is in a small buffer that the device is to write before it does: no status of success.
const UNWRITTEN: u8 = 0xff;

/// A part of a pool that several CPUs allocate from, in any context.
#[pin_data]
pub(crate) struct SharedPartition {
    #[pin]
    inner: SpinLockIrq<Partition>,
}

impl SharedPartition {
    /// Creates an initialiser that puts a lock around `partition`.
    pub(crate) fn new(partition: Partition) -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_spinlock_irq!(partition, "virtio_xenbus_pool"),
        })
    }

    /// How much of it is in use. Callable in any context.
    pub(crate) fn usage(&self) -> Usage {
        self.inner.lock().usage()
    }
}

/// How buffers are given to the device without a copy. Those that cannot be are copied.
pub(crate) enum Direct {
    /// Not at all.
    Nothing,
    /// Whole pages are granted.
    Grants(References),
    /// The device may access all memory, and is told where the buffer is.
    Frames,
}

impl Direct {
    /// The address for the device, if the buffer can be given to it like this, which is counted.
    ///
    /// # Safety
    ///
    /// As the operation `map_page` is called: the buffer is valid until it is unmapped.
    unsafe fn map(
        &mut self,
        counters: &mut Counters,
        page: *mut bindings::page,
        offset: usize,
        size: usize,
        dir: bindings::dma_data_direction,
    ) -> Option<u64> {
        let (addr, count) = match self {
            Direct::Nothing => return None,
            Direct::Grants(references) if size <= MAX_BUFFER => {
                // SAFETY: By the requirement of this function; a buffer is contiguous in the
                // direct map.
                let pages = unsafe { Pages::filled(page, offset, size) }?;
                if !pages.can_be_kept() {
                    return None;
                }
                // SAFETY: The pages are the buffer's until it is unmapped, and nothing else is in
                // them.
                let Some(gref) = (unsafe { references.grant(&pages, !from_device(dir)) }) else {
                    counters.ungranted += 1;
                    return None;
                };
                (address::grant(gref, 0), &mut counters.granted)
            }
            Direct::Grants(_) => return None,
            // Indirect tables, which are in the pool in every mode, cannot be told from other
            // memory of `kmalloc()`.
            //
            // SAFETY: By the requirement of this function the buffer's first page is valid.
            Direct::Frames if unsafe { is_kmalloc(page, offset / PAGE) } => return None,
            Direct::Frames => {
                // SAFETY: By the requirement of this function the pages are valid.
                let entry = |index| unsafe { p2m_entry(page, index) };
                (machine_address(entry, offset, size)?, &mut counters.machine)
            }
        };
        *count += 1;
        counters.mapped += 1;
        Some(addr)
    }

    /// Takes back the whole pages of `size` bytes that were granted from `gref` on; whether the
    /// device has let go of them.
    fn end_grants(&mut self, gref: u32, size: usize) -> bool {
        match self {
            Direct::Grants(references) => references.end(gref, size / PAGE),
            _ => false,
        }
    }

    /// The same when the device is not expected to.
    fn hand_grants_over(&mut self, gref: u32, size: usize) {
        if let Direct::Grants(references) = self {
            references.hand_over(gref, size / PAGE);
        }
    }
}

/// Is told when the device does not do as it has to.
pub(crate) trait Observer: Send + Sync {
    /// The device has not let go of a granted buffer that it has used. Callable in any context.
    fn grants_are_kept(&self);
}

/// What a virtqueue has mapped since it was made.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counters {
    /// Buffers that were mapped.
    pub(crate) mapped: u64,
    /// Buffers among them whose pages were granted.
    pub(crate) granted: u64,
    /// Buffers of whole pages for which there were not enough references.
    pub(crate) ungranted: u64,
    /// Buffers among them that the device was told the place of.
    pub(crate) machine: u64,
    /// Buffers and rings for which there was no room.
    pub(crate) failed: u64,
    /// Bytes that were copied to the pool.
    pub(crate) to_pool: u64,
    /// Bytes that were copied back from the pool.
    pub(crate) from_pool: u64,
}

/// What belongs to one virtqueue. Each operation takes its lock first, so the counters cost
/// nothing more.
struct Own {
    partition: Partition,
    direct: Direct,
    counters: Counters,
}

/// The mappings of one virtqueue: addresses of the buffers themselves, or of copies in a pool,
/// from a partition of the queue's own as long as that has room, then from one that all queues
/// share.
///
/// A pointer to it is the `union virtio_map` of the virtqueue.
#[pin_data]
pub(crate) struct QueueMap {
    memory: Arc<SharedPages>,

    /// Whether every buffer is copied, so that there is no need to ask.
    copies_all: bool,

    /// Whether the device is told where buffers are, and nothing else keeps it away from them.
    pub(super) names_frames: bool,

    /// Nothing but the stand-in is mapped any more.
    closed: Atomic<bool>,

    /// A buffer that stands for those which the device does not give back, see
    /// [`super::virtqueue::Queue::give_back`].
    stand_in: KBox<Atomic<u32>>,

    #[pin]
    own: SpinLockIrq<Own>,

    overflow: Arc<SharedPartition>,

    observer: Arc<dyn Observer>,

    source: Source,
}

impl QueueMap {
    /// Creates an initialiser; both partitions cover pages of `memory`. `source` is the virtqueue
    /// that this is for.
    pub(crate) fn new(
        memory: Arc<SharedPages>,
        partition: Partition,
        overflow: Arc<SharedPartition>,
        direct: Direct,
        observer: Arc<dyn Observer>,
        source: Source,
    ) -> impl PinInit<Self, Error> {
        let copies_all = matches!(direct, Direct::Nothing);
        let names_frames = matches!(direct, Direct::Frames);
        let own = Own {
            partition,
            direct,
            counters: Counters::default(),
        };
        try_pin_init!(Self {
            memory,
            copies_all,
            names_frames,
            closed: Atomic::new(false),
            stand_in: KBox::new(Atomic::new(0), GFP_KERNEL)?,
            own <- new_spinlock_irq!(own, "virtio_xenbus_queue_pool"),
            overflow,
            observer,
            source,
        }? Error)
    }

    /// From now on nothing is mapped but the stand-in, and nothing that the device writes gets to
    /// the driver. Callable in any context.
    pub(super) fn close(&self) {
        self.closed.store(true, ordering::Relaxed);
    }

    fn is_closed(&self) -> bool {
        self.closed.load(ordering::Relaxed)
    }

    /// The first byte of it can always be mapped.
    pub(super) fn stand_in(&self) -> *mut c_void {
        self.stand_in.as_ptr().cast()
    }

    /// The pool.
    pub(super) fn memory(&self) -> &SharedPages {
        &self.memory
    }

    /// The virtqueue that this is for.
    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// How much of the queue's own partition is in use. Callable in any context.
    pub(crate) fn usage(&self) -> Usage {
        self.own.lock().partition.usage()
    }

    /// What has been mapped. Callable in any context.
    pub(crate) fn counters(&self) -> Counters {
        self.own.lock().counters
    }

    /// The table for `struct virtio_device`.
    pub(super) const OPS: &'static bindings::virtio_map_ops = &bindings::virtio_map_ops {
        map_page: Some(map_page),
        unmap_page: Some(unmap_page),
        sync_single_for_cpu: Some(sync_single_for_cpu),
        sync_single_for_device: Some(sync_single_for_device),
        alloc: Some(alloc),
        free: Some(free),
        need_sync: Some(need_sync),
        mapping_error: Some(mapping_error),
        max_mapping_size: Some(max_mapping_size),
    };

    /// What C hands to the operations.
    pub(super) fn token(self: ArcBorrow<'_, Self>) -> bindings::virtio_map {
        bindings::virtio_map {
            group: core::ptr::from_ref(&*self).cast_mut().cast(),
        }
    }

    /// # Safety
    ///
    /// `token` must come from [`QueueMap::token`] and the queue must still exist.
    unsafe fn from_token<'a>(token: bindings::virtio_map) -> &'a Self {
        // SAFETY: By the requirement of this function.
        unsafe { &*token.group.cast_const().cast() }
    }

    /// Allocates `len` bytes that stand for the memory at `tag`, and has `count` count that.
    /// Callable in any context.
    fn alloc(&self, len: usize, tag: usize, count: impl FnOnce(&mut Counters)) -> Option<usize> {
        let mut own = self.own.lock();
        if let Some(offset) = own.partition.alloc(len, tag) {
            count(&mut own.counters);
            return Some(offset);
        }
        drop(own);

        let offset = self.overflow.inner.lock().alloc(len, tag);
        let counters = &mut self.own.lock().counters;
        match offset {
            Some(_) => count(counters),
            None => counters.failed += 1,
        }
        offset
    }

    /// Does something with the partition that `offset` lies in, and has `count` count that.
    /// Callable in any context.
    fn with_partition<R>(
        &self,
        offset: usize,
        count: impl FnOnce(&mut Counters),
        f: impl FnOnce(&mut Partition) -> R,
    ) -> R {
        let mut own = self.own.lock();
        count(&mut own.counters);
        if own.partition.contains(offset) {
            return f(&mut own.partition);
        }
        drop(own);
        f(&mut self.overflow.inner.lock())
    }

    /// The offset in the pool that `addr` stands for, and the memory that was mapped there.
    fn lookup(&self, addr: u64, count: impl FnOnce(&mut Counters)) -> Option<(usize, usize)> {
        let Address::Pool(offset) = address::decode(addr) else {
            return None;
        };
        let tag = self.with_partition(offset, count, |partition| partition.lookup(offset))?;
        Some((offset, tag))
    }

    /// Copies a mapped buffer to the pool.
    ///
    /// # Safety
    ///
    /// The buffer that was mapped at `addr` must still be valid.
    unsafe fn copy_in(&self, addr: u64, len: usize) {
        let count = |counters: &mut Counters| counters.to_pool += len as u64;
        if let Some((offset, tag)) = self.lookup(addr, count) {
            // SAFETY: The partition has kept the address that was given to `alloc()`, advanced by
            // the distance into the buffer.
            unsafe { self.memory.copy_in(offset, tag as *const u8, len) };
        }
    }

    /// Copies a mapped buffer back from the pool.
    ///
    /// # Safety
    ///
    /// The buffer that was mapped at `addr` must still be valid, and belong to the device.
    unsafe fn copy_out(&self, addr: u64, len: usize) {
        let count = |counters: &mut Counters| counters.from_pool += len as u64;
        if let Some((offset, tag)) = self.lookup(addr, count) {
            // SAFETY: As in `copy_in()`.
            unsafe { self.memory.copy_out(offset, tag as *mut u8, len) };
        }
    }

    /// Makes a small buffer what it is if the device has written nothing to it. There is no need to
    /// for a large one, whose status says that.
    ///
    /// # Safety
    ///
    /// As for `copy_out()`.
    unsafe fn spoil(&self, addr: u64, len: usize) {
        if len > CHUNK {
            return;
        }
        if let Some((_, tag)) = self.lookup(addr, |_| ()) {
            // SAFETY: As in `copy_out()`.
            unsafe { (tag as *mut u8).write_bytes(UNWRITTEN, len) };
        }
    }

    /// Gives the device the buffer itself, if that can be, and returns its address.
    ///
    /// # Safety
    ///
    /// As the operation `map_page` is called: the buffer is valid until it is unmapped.
    unsafe fn map_direct(
        &self,
        page: *mut bindings::page,
        offset: usize,
        size: usize,
        dir: bindings::dma_data_direction,
    ) -> Option<u64> {
        // To copy so few bytes is cheaper than all that follows, and a status byte has its value
        // beforehand only there.
        if self.copies_all || size <= CHUNK {
            return None;
        }
        let mut own = self.own.lock();
        let Own {
            direct, counters, ..
        } = &mut *own;
        // SAFETY: By the requirement of this function.
        unsafe { direct.map(counters, page, offset, size, dir) }
    }

    /// Takes a buffer back that was not copied.
    fn unmap_direct(&self, addr: u64, size: usize, dir: bindings::dma_data_direction) {
        let ended = match address::decode(addr) {
            Address::Grant { gref, .. } if self.is_closed() => {
                let mut own = self.own.lock();
                own.direct.hand_grants_over(gref, size);
                self.source.unmap(addr, Ok(0), size, dir);
                true
            }
            Address::Grant { gref, .. } => {
                let mut own = self.own.lock();
                let ended = own.direct.end_grants(gref, size);
                let result = if ended { Ok(0) } else { Err(EBUSY) };
                self.source.unmap(addr, result, size, dir);
                ended
            }
            _ => {
                if from_device(dir) {
                    mark_written(addr, size);
                }
                self.source.unmap(addr, Ok(0), size, dir);
                true
            }
        };
        if !ended {
            self.observer.grants_are_kept();
        }
    }

    /// Gives back what `alloc()` gave for `len` bytes. Before anybody else can get it, `report` is
    /// told the address of the memory that was mapped there, if any.
    fn free(&self, offset: usize, len: usize, report: impl FnOnce(Option<usize>)) {
        let free = |partition: &mut Partition| {
            let tag = partition.free(offset, len);
            report(tag);
            tag
        };
        if self.with_partition(offset, |_| (), free).is_none() {
            // The rings keep addresses where the backend cannot change them, so this is a bug.
            pr_warn_once!("freed what was not allocated: {len} bytes at {offset:#x}\n");
        }
    }
}

fn to_device(dir: bindings::dma_data_direction) -> bool {
    dir != DMA_FROM_DEVICE
}

fn from_device(dir: bindings::dma_data_direction) -> bool {
    dir != DMA_TO_DEVICE
}

fn skips_copy(attrs: c_ulong) -> bool {
    attrs & bindings::DMA_ATTR_SKIP_CPU_SYNC as c_ulong != 0
}

// The operations. The rings call them with the token that the virtqueue was made with and only
// while it exists, with buffers that are valid until they are unmapped, and with addresses that
// `map_page` or `alloc` has returned. All but `alloc` and `free` may be called in any context.

extern "C" fn map_page(
    map: bindings::virtio_map,
    page: *mut bindings::page,
    offset: c_ulong,
    size: usize,
    dir: bindings::dma_data_direction,
    attrs: c_ulong,
) -> bindings::dma_addr_t {
    // SAFETY: The rings pass the token of a queue that exists.
    let this = unsafe { QueueMap::from_token(map) };

    // The offset may be beyond the first page, and the buffer may have many: they are contiguous
    // in the direct map.
    //
    // SAFETY: The page is valid and, on a 64-bit machine, in the direct map.
    let buffer = unsafe { bindings::vxb_page_address(page) }
        .cast::<u8>()
        .wrapping_add(offset);
    if this.is_closed() && buffer.cast() != this.stand_in() {
        return MAPPING_ERROR;
    }

    // SAFETY: The page and the buffer are valid until it is unmapped.
    if let Some(addr) = unsafe { this.map_direct(page, offset, size, dir) } {
        this.source.map(buffer.addr(), Some(addr), size, dir);
        return addr;
    }

    let copies = to_device(dir) && !skips_copy(attrs);
    let count = |counters: &mut Counters| {
        counters.mapped += 1;
        if copies {
            counters.to_pool += size as u64;
        }
    };
    let offset = this.alloc(size, buffer.addr(), count);
    this.source
        .map(buffer.addr(), offset.map(address::pool), size, dir);
    let Some(offset) = offset else {
        return MAPPING_ERROR;
    };

    if copies {
        // SAFETY: The buffer has `size` bytes.
        unsafe { this.memory.copy_in(offset, buffer, size) };
    } else if size <= CHUNK {
        // A status that the device does not write must not be the one of another request.
        this.memory.fill(offset, UNWRITTEN, size);
    }
    address::pool(offset)
}

extern "C" fn unmap_page(
    map: bindings::virtio_map,
    addr: bindings::dma_addr_t,
    size: usize,
    dir: bindings::dma_data_direction,
    attrs: c_ulong,
) {
    // SAFETY: The rings pass the token of a queue that exists.
    let this = unsafe { QueueMap::from_token(map) };

    let Address::Pool(offset) = address::decode(addr) else {
        this.unmap_direct(addr, size, dir);
        return;
    };
    if from_device(dir) && !skips_copy(attrs) {
        // SAFETY: The buffer is valid until this function returns.
        unsafe {
            if this.is_closed() {
                this.spoil(addr, size);
            } else {
                this.copy_out(addr, size);
            }
        }
    }
    this.free(offset, size, |buffer| {
        this.source.unmap(addr, buffer.ok_or(EINVAL), size, dir);
    });
}

extern "C" fn sync_single_for_cpu(
    map: bindings::virtio_map,
    addr: bindings::dma_addr_t,
    size: usize,
    dir: bindings::dma_data_direction,
) {
    if from_device(dir) {
        // SAFETY: The rings pass the token of a queue that exists, and a mapped buffer.
        unsafe { QueueMap::from_token(map).copy_out(addr, size) };
    }
}

extern "C" fn sync_single_for_device(
    map: bindings::virtio_map,
    addr: bindings::dma_addr_t,
    size: usize,
    dir: bindings::dma_data_direction,
) {
    if to_device(dir) {
        // SAFETY: The rings pass the token of a queue that exists, and a mapped buffer.
        unsafe { QueueMap::from_token(map).copy_in(addr, size) };
    }
}

extern "C" fn alloc(
    map: bindings::virtio_map,
    size: usize,
    handle: *mut bindings::dma_addr_t,
    _gfp: bindings::gfp_t,
) -> *mut c_void {
    // SAFETY: The rings pass the token of a queue that exists.
    let this = unsafe { QueueMap::from_token(map) };

    let Some(offset) = this.alloc(size, 0, |_| ()) else {
        return core::ptr::null_mut();
    };

    // The backend may still see what was here before; the driver must not.
    this.memory.fill(offset, 0, size);

    // SAFETY: The caller wants the address there.
    unsafe { *handle = address::pool(offset) };
    this.memory
        .as_ptr(offset, size)
        .unwrap_or(core::ptr::null_mut())
}

extern "C" fn free(
    map: bindings::virtio_map,
    size: usize,
    _vaddr: *mut c_void,
    addr: bindings::dma_addr_t,
    _attrs: c_ulong,
) {
    // SAFETY: The rings pass the token of a queue that exists.
    let this = unsafe { QueueMap::from_token(map) };

    if let Address::Pool(offset) = address::decode(addr) {
        this.free(offset, size, |_| ());
    }
}

extern "C" fn need_sync(_map: bindings::virtio_map, addr: bindings::dma_addr_t) -> bool {
    matches!(address::decode(addr), Address::Pool(_))
}

extern "C" fn mapping_error(_map: bindings::virtio_map, addr: bindings::dma_addr_t) -> c_int {
    if addr == MAPPING_ERROR {
        ENOMEM.to_errno()
    } else {
        0
    }
}

extern "C" fn max_mapping_size(map: bindings::virtio_map) -> usize {
    // SAFETY: Other than the rest, this is called with the token of the device.
    let limit = unsafe { &*map.group.cast_const().cast::<BufferLimit>() };

    limit.0.load(ordering::Relaxed)
}
