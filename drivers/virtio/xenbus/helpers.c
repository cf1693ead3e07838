// SPDX-License-Identifier: GPL-2.0
#include <linux/atomic.h>
#include <linux/mm.h>
#include <linux/scatterlist.h>
#include <linux/sched/mm.h>
#include <linux/spinlock.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>
#include <linux/vmalloc.h>

#include <asm/xen/hypercall.h>

#include <xen/features.h>
#include <xen/interface/event_channel.h>
#include <xen/page.h>
#include <xen/xenbus.h>

#include "helpers.h"

unsigned long vxb_page_to_gfn(struct page *page)
{
	return xen_page_to_gfn(page);
}

void *vxb_page_address(struct page *page)
{
	return page_address(page);
}

void vxb_copy_page(void *to, const void *from)
{
	copy_page(to, (void *)from);
}

unsigned long vxb_page_entry(struct page *page, unsigned long index)
{
	unsigned long pfn = page_to_pfn(page) + index;

	/* In a translated guest nothing else tells of another domain's page. */
	if (PageForeign(pfn_to_page(pfn)))
		return FOREIGN_FRAME(pfn);
	return vxb_is_translated() ? pfn : __pfn_to_mfn(pfn);
}

void vxb_mark_written(u64 address, size_t size)
{
	unsigned long mfn = PHYS_PFN(address);
	unsigned long end = PHYS_PFN(address + size + PAGE_SIZE - 1);

	for (; mfn < end; mfn++) {
		unsigned long pfn = bfn_to_local_pfn(mfn);

		if (pfn_valid(pfn))
			atomic_or(0, page_address(pfn_to_page(pfn)));
	}
}

bool vxb_is_translated(void)
{
	return xen_feature(XENFEAT_auto_translated_physmap);
}

bool vxb_page_is_kmalloc(struct page *page, unsigned long index)
{
	return page_has_type(compound_head(page + index));
}

bool vxb_page_can_be_kept(struct page *page)
{
	return page_count(page) && !vxb_page_is_kmalloc(page, 0) &&
	       !PageForeign(page);
}

void *vxb_vmap(struct page **pages, unsigned int count)
{
	return vmap(pages, count, VM_MAP, PAGE_KERNEL);
}

unsigned long vxb_spin_lock_irqsave(spinlock_t *lock)
{
	unsigned long flags;

	spin_lock_irqsave(lock, flags);
	return flags;
}

bool vxb_spin_trylock_irqsave(spinlock_t *lock, unsigned long *flags)
{
	return spin_trylock_irqsave(lock, *flags);
}

void vxb_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags)
{
	spin_unlock_irqrestore(lock, flags);
}

bool vxb_port_is_bound(unsigned int port)
{
	struct evtchn_status status = { .dom = DOMID_SELF, .port = port };

	return !HYPERVISOR_event_channel_op(EVTCHNOP_status, &status) &&
	       status.status == EVTCHNSTAT_interdomain;
}

bool vxb_driver_waits(struct virtio_device *vdev)
{
	return vdev->id.device == VIRTIO_ID_BLOCK &&
	       !virtio_has_feature(vdev, VIRTIO_F_RING_PACKED) &&
	       !virtio_has_feature(vdev, VIRTIO_F_IN_ORDER);
}

int vxb_add_byte(struct virtqueue *vq, void *byte, void *token)
{
	struct scatterlist sg;

	sg_init_one(&sg, byte, 1);
	return virtqueue_add_inbuf(vq, &sg, 1, token, GFP_NOIO);
}

void vxb_ring_interrupt(struct virtqueue *vq)
{
	unsigned long flags;

	local_irq_save(flags);
	vring_interrupt(0, vq);
	local_irq_restore(flags);
}

void vxb_dev_fatal(struct xenbus_device *dev, int err, const char *text)
{
	xenbus_dev_fatal(dev, err, "%s", text);
}

unsigned int vxb_memalloc_noio_save(void)
{
	return memalloc_noio_save();
}

void vxb_memalloc_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}

bool vxb_virtio_can_freeze(struct virtio_device *dev)
{
	struct device_driver *driver = dev->dev.driver;

	return !driver || drv_to_virtio(driver)->freeze;
}
