// SPDX-License-Identifier: GPL-2.0
#include <linux/mm.h>
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

void vxb_dev_fatal(struct xenbus_device *dev, int err, const char *text)
{
	xenbus_dev_fatal(dev, err, "%s", text);
}
