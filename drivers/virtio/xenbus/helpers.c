// SPDX-License-Identifier: GPL-2.0
#include <linux/mm.h>
#include <linux/spinlock.h>
#include <linux/vmalloc.h>

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

void vxb_dev_fatal(struct xenbus_device *dev, int err, const char *text)
{
	xenbus_dev_fatal(dev, err, "%s", text);
}
