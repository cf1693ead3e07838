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
struct xenbus_device;

/* The frame number that a grant of @page carries: the MFN in a PV guest. */
unsigned long vxb_page_to_gfn(struct page *page);

/* The address of @page in the direct map. */
void *vxb_page_address(struct page *page);

/* Maps @count pages one behind the other, readable and writable. */
void *vxb_vmap(struct page **pages, unsigned int count);

/* spin_lock_irqsave() and its like are macros. */
unsigned long vxb_spin_lock_irqsave(spinlock_t *lock);
bool vxb_spin_trylock_irqsave(spinlock_t *lock, unsigned long *flags);
void vxb_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags);

/* xenbus_dev_fatal() for a text that is complete. */
void vxb_dev_fatal(struct xenbus_device *dev, int err, const char *text);

#endif /* VIRTIO_XENBUS_HELPERS_H */
