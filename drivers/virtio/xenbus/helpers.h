/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What sys/ needs from C and cannot call: inlines, macros and functions with
 * variable arguments.
 */
#ifndef VIRTIO_XENBUS_HELPERS_H
#define VIRTIO_XENBUS_HELPERS_H

#include <linux/spinlock_types.h>
#include <linux/types.h>

struct page;
struct virtio_device;
struct virtqueue;
struct xenbus_device;

/* The frame number that a grant of @page carries: the MFN in a PV guest. */
unsigned long vxb_page_to_gfn(struct page *page);

/* The address of @page in the direct map. */
void *vxb_page_address(struct page *page);

/* Copies a page; copy_page() is not declared alike on all machines. */
void vxb_copy_page(void *to, const void *from);

/*
 * What the p2m has for the page that is @index pages behind @page: the frame,
 * or with the bits of asm/xen/page.h what there is instead. In a translated
 * guest, the number of the page.
 */
unsigned long vxb_page_entry(struct page *page, unsigned long index);

/*
 * Marks the guest's own frames of the @size bytes at machine address @address
 * as written to, and changes nothing.
 */
void vxb_mark_written(u64 address, size_t size);

/* Whether the guest's frame numbers are its own, not the machine's. */
bool vxb_is_translated(void);

/*
 * Whether kmalloc() may have given out what is in the page that is @index pages
 * behind @page: of a slab, or for itself.
 */
bool vxb_page_is_kmalloc(struct page *page, unsigned long index);

/*
 * Whether @page is this domain's memory, and a reference to it keeps it from
 * being used for something else: not so for what kmalloc() has.
 */
bool vxb_page_can_be_kept(struct page *page);

/* Maps @count pages one behind the other, readable and writable. */
void *vxb_vmap(struct page **pages, unsigned int count);

/* The parameter address_mode, as a position in its list of values. */
int vxb_address_mode(void);

/* spin_lock_irqsave() and its like are macros. */
unsigned long vxb_spin_lock_irqsave(spinlock_t *lock);
bool vxb_spin_trylock_irqsave(spinlock_t *lock, unsigned long *flags);
void vxb_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags);

/* Whether the other end of an event channel of this domain is bound. */
bool vxb_port_is_bound(unsigned int port);

/*
 * Whether the driver of such a device waits for all its buffers when it is
 * unbound, without a limit, adds them under a spinlock and not mapped before;
 * and whether its rings are split and used in any order.
 */
bool vxb_driver_waits(struct virtio_device *vdev);

/* Adds a buffer of one byte that the device is to write. */
int vxb_add_byte(struct virtqueue *vq, void *byte, void *token);

/* vring_interrupt() as an interrupt handler calls it. */
void vxb_ring_interrupt(struct virtqueue *vq);

/* xenbus_dev_fatal() for a text that is complete. */
void vxb_dev_fatal(struct xenbus_device *dev, int err, const char *text);

/* memalloc_noio_save() and memalloc_noio_restore() are inline. */
unsigned int vxb_memalloc_noio_save(void);
void vxb_memalloc_noio_restore(unsigned int flags);

/* Whether the driver of @dev, if there is one, can suspend it. */
bool vxb_virtio_can_freeze(struct virtio_device *dev);

#endif /* VIRTIO_XENBUS_HELPERS_H */
