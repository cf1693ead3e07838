/* SPDX-License-Identifier: MIT */
/*
 * virtioif.h - virtio over xenbus
 *
 * Shared memory interface between a virtio driver in one domain (the
 * frontend) and a virtio device in another (the backend). This header is the
 * one definition of the layout; protocol.rst in Documentation is the norm for
 * what the fields mean.
 *
 * All fields are little-endian. Every field has one writer; the other side
 * reads it once, checks the copy and uses the copy. Reserved fields are
 * written as zero and not read.
 */
#ifndef __XEN_PUBLIC_IO_VIRTIOIF_H__
#define __XEN_PUBLIC_IO_VIRTIOIF_H__

/* Other systems define __u8, __u16, __u32, __s32 and __u64 instead. */
#include <linux/types.h>

/*
 * Xenstore
 * ========
 *
 * Device directories are those that xl writes for its "virtio" and
 * "virtio_disk" devices: device/<type>/<n> in the frontend's and
 * backend/<type>/<frontend-id>/<n> in the backend's part of the store.
 *
 * The backend writes, before it switches to InitWait:
 */
/* Protocol versions it speaks: decimal numbers separated by spaces. */
#define VIRTIO_XENBUS_KEY_VERSIONS	"virtio-xenbus-versions"
/* Address modes it takes, best first, separated by spaces. */
#define VIRTIO_XENBUS_KEY_MODES		"address-modes"
/* The number of virtqueues the device has. */
#define VIRTIO_XENBUS_KEY_MAX_QUEUES	"max-queues"
/* The largest pool it will map, in pages. */
#define VIRTIO_XENBUS_KEY_MAX_POOL	"max-pool-pages"

/*
 * The frontend writes, in one transaction, before it switches to Initialised:
 */
/* The protocol version it has chosen. */
#define VIRTIO_XENBUS_KEY_VERSION	"virtio-xenbus-version"
/* The address mode it has chosen. */
#define VIRTIO_XENBUS_KEY_MODE		"address-mode"
/* The grant reference of the control page. */
#define VIRTIO_XENBUS_KEY_CONTROL_REF	"control-ref"
/* The control event channel, allocated by the frontend. */
#define VIRTIO_XENBUS_KEY_EVTCHN	"event-channel"
/* In mode "machine": what frame numbers are; "guest" if it is missing. */
#define VIRTIO_XENBUS_KEY_FRAMES	"address-frames"

/* Address modes. */
#define VIRTIO_XENBUS_MODE_POOL		"pool"
#define VIRTIO_XENBUS_MODE_GRANT	"grant"
#define VIRTIO_XENBUS_MODE_MACHINE	"machine"

/* Frame numbers: the host's (PV guest), or those of a translated guest. */
#define VIRTIO_XENBUS_FRAMES_MACHINE	"machine"
#define VIRTIO_XENBUS_FRAMES_GUEST	"guest"

/*
 * Addresses
 * =========
 *
 * Bits 63 and 62 of an address in a descriptor or a queue register tell what
 * the rest is:
 *
 *   01  byte offset into the pool (every mode)
 *   1x  grant: grant reference << 12 | offset in the page; the pages of a
 *       longer buffer have consecutive references (mode "grant")
 *   00  frame number << 12 | offset in the page, of the kind that
 *       "address-frames" names; the pages of a longer buffer have consecutive
 *       frames (mode "machine")
 *
 * Rings and indirect descriptor tables are in the pool in every mode.
 */
#define VIRTIO_XENBUS_ADDR_GRANT	0x8000000000000000ULL
#define VIRTIO_XENBUS_ADDR_POOL		0x4000000000000000ULL
#define VIRTIO_XENBUS_ADDR_SHIFT	12

/*
 * Control page
 * ============
 */
#define VIRTIO_XENBUS_VERSION		1
#define VIRTIO_XENBUS_PAGE_SIZE		4096
/* "VXEN", read as bytes. */
#define VIRTIO_XENBUS_MAGIC		0x4e455856
#define VIRTIO_XENBUS_MAX_QUEUES	48
#define VIRTIO_XENBUS_CONFIG_SIZE	2048
#define VIRTIO_XENBUS_FEATURE_WORDS	4
/* Directory pages, and grant references in each of them. */
#define VIRTIO_XENBUS_MAX_DIRECTORY	32
#define VIRTIO_XENBUS_REFS_PER_PAGE	1024
#define VIRTIO_XENBUS_WRITE_SIZE	32

/* Who the device is. The backend writes it before it switches to Connected. */
struct virtio_xenbus_identity {
	__u32 magic;
	__u32 version;
	__u32 device_id;		/* as in the virtio specification */
	__u32 vendor_id;
	/* Offered features; bit n is bit n % 32 of word n / 32. */
	__u32 features[VIRTIO_XENBUS_FEATURE_WORDS];
	__u16 num_queues;
	__u16 config_length;		/* bytes of config[] that exist */
	__u32 reserved;
	/* Largest size of each queue, a power of two; 0: no such queue. */
	__u16 queue_size_max[VIRTIO_XENBUS_MAX_QUEUES];
	__u8 pad[56];
};

/* What the backend says while it runs. */
struct virtio_xenbus_device_regs {
	/* Status byte it has applied, or DEVICE_NEEDS_RESET (0x40) added. */
	__u32 status;
	/* Odd while config[] is being changed, otherwise even. */
	__u32 config_generation;
	/* Grows by one for each configuration change interrupt. */
	__u32 config_interrupts;
	/* Answer: result first, then the sequence number of the request. */
	__s32 response_result;		/* 0 or a negative errno value */
	__u32 response_seq;
	/* Names what the backend has recorded of this connection; not read. */
	__u32 record;
	__u8 pad[40];
};

/* What the frontend has set up: state that a restarted backend goes on with. */
struct virtio_xenbus_driver_regs {
	__u32 status;			/* virtio device status byte */
	__u32 pool_pages;
	__u32 features[VIRTIO_XENBUS_FEATURE_WORDS];	/* accepted */
	__u32 reserved[2];
	/* Grant references of the pages that hold the pool's references. */
	__u32 pool_directory[VIRTIO_XENBUS_MAX_DIRECTORY];
	__u8 pad[32];
};

/* Operations of the request slot. */
#define VIRTIO_XENBUS_OP_RESET		1	/* whole device; a barrier */
#define VIRTIO_XENBUS_OP_STATUS		2	/* driver.status was written */
#define VIRTIO_XENBUS_OP_FEATURES	3	/* driver.features were written */
#define VIRTIO_XENBUS_OP_QUEUE_ENABLE	4	/* queues[queue] was written */
#define VIRTIO_XENBUS_OP_QUEUE_RESET	5	/* one queue; a barrier */
#define VIRTIO_XENBUS_OP_CONFIG_WRITE	6	/* data to config[offset] */

/* One request at a time: arguments first, then the sequence number. */
struct virtio_xenbus_request {
	__u32 seq;
	__u32 op;
	__u32 queue;
	__u32 offset;			/* of CONFIG_WRITE */
	__u32 length;			/* of CONFIG_WRITE */
	__u8 data[VIRTIO_XENBUS_WRITE_SIZE];
	__u8 pad[12];
};

/* A virtqueue, as the frontend has set it up. */
struct virtio_xenbus_queue {
	__u64 desc;			/* descriptor area */
	__u64 driver;			/* driver area: available ring */
	__u64 device;			/* device area: used ring */
	__u32 event_channel;		/* both directions */
	__u16 size;
	__u16 enabled;			/* 0 or 1 */
};

struct virtio_xenbus_control_page {
	struct virtio_xenbus_identity identity;			/* 0x000 */
	struct virtio_xenbus_device_regs device;		/* 0x0c0 */
	struct virtio_xenbus_driver_regs driver;		/* 0x100 */
	struct virtio_xenbus_request request;			/* 0x1c0 */
	struct virtio_xenbus_queue queues[VIRTIO_XENBUS_MAX_QUEUES]; /* 0x200 */
	__u8 config[VIRTIO_XENBUS_CONFIG_SIZE];			/* 0x800 */
};

#endif /* __XEN_PUBLIC_IO_VIRTIOIF_H__ */
