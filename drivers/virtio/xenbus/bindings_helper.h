/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The C interfaces that sys/ uses and the kernel crate has no bindings for.
 */
#include <linux/device.h>
#include <linux/dma-mapping.h>
#include <linux/group_cpus.h>
#include <linux/interrupt.h>
#include <linux/irq.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <linux/vmalloc.h>

#include <uapi/linux/virtio_blk.h>
#include <uapi/linux/virtio_ids.h>
#include <uapi/linux/virtio_net.h>

#include <xen/events.h>
#include <xen/grant_table.h>
#include <xen/page.h>
#include <xen/xen.h>
#include <xen/xenbus.h>

#include <xen/interface/event_channel.h>
#include <xen/interface/grant_table.h>
#include <xen/interface/io/virtioif.h>
#include <xen/interface/io/xenbus.h>

#include "helpers.h"
#include "trace.h"

/* As integers, for sys/compat.rs. */
enum {
	VXB_DMA_TO_DEVICE = DMA_TO_DEVICE,
	VXB_DMA_FROM_DEVICE = DMA_FROM_DEVICE,
	VXB_IRQ_HANDLED = IRQ_HANDLED,
};
