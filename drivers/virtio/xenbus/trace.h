/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The tracepoints. The name of a tracepoint is a symbol of the whole kernel,
 * and the IOMMU core has a "map" and an "unmap": hence the prefix.
 *
 * Rust code tests the static branch of each itself, see sys/trace.rs.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM virtio_xenbus

#if !defined(VIRTIO_XENBUS_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define VIRTIO_XENBUS_TRACE_H

#include <linux/dma-direction.h>
#include <linux/tracepoint.h>
#include <linux/types.h>

#include <asm/page.h>

#include <xen/xenbus.h>

TRACE_DEFINE_ENUM(DMA_BIDIRECTIONAL);
TRACE_DEFINE_ENUM(DMA_TO_DEVICE);
TRACE_DEFINE_ENUM(DMA_FROM_DEVICE);

/* A request of the control page has been answered, or not in time. */
TRACE_EVENT(virtio_xenbus_request,
	    TP_PROTO(const struct xenbus_device *dev, const char *request,
		     size_t request_len, u64 argument, int result,
		     u64 latency_us),
	    TP_ARGS(dev, request, request_len, argument, result, latency_us),

	    TP_STRUCT__entry(__string(device, dev->nodename)
			     __string_len(request, request, request_len)
			     __field(u64, argument)
			     __field(int, result)
			     __field(u64, latency_us)),

	    TP_fast_assign(__assign_str(device);
			   __assign_str(request);
			   __entry->argument = argument;
			   __entry->result = result;
			   __entry->latency_us = latency_us;),

	    TP_printk("device=%s request=%s argument=%#llx result=%d latency_us=%llu",
		      __get_str(device), __get_str(request), __entry->argument,
		      __entry->result, __entry->latency_us)
);

DECLARE_EVENT_CLASS(virtio_xenbus_event,
		    TP_PROTO(const struct xenbus_device *dev, u16 queue),
		    TP_ARGS(dev, queue),

		    TP_STRUCT__entry(__string(device, dev->nodename)
				     __field(u16, queue)),

		    TP_fast_assign(__assign_str(device);
				   __entry->queue = queue;),

		    TP_printk("device=%s queue=%u",
			      __get_str(device), __entry->queue)
);

/* The backend is notified. */
DEFINE_EVENT(virtio_xenbus_event, virtio_xenbus_kick,
	     TP_PROTO(const struct xenbus_device *dev, u16 queue),
	     TP_ARGS(dev, queue)
);

/* The backend has notified a queue, whose callback comes next. */
DEFINE_EVENT(virtio_xenbus_event, virtio_xenbus_interrupt,
	     TP_PROTO(const struct xenbus_device *dev, u16 queue),
	     TP_ARGS(dev, queue)
);

DECLARE_EVENT_CLASS(virtio_xenbus_buffer,
		    TP_PROTO(const struct xenbus_device *dev, u16 queue,
			     unsigned long buffer, u64 dma, size_t length,
			     enum dma_data_direction direction, int result),
		    TP_ARGS(dev, queue, buffer, dma, length, direction, result),

		    TP_STRUCT__entry(__string(device, dev->nodename)
				     __field(u16, queue)
				     __field(u64, address)
				     __field(u64, dma)
				     __field(u64, length)
				     __field(int, direction)
				     __field(int, result)),

		    TP_fast_assign(__assign_str(device);
				   __entry->queue = queue;
				   __entry->address = buffer ? __pa(buffer) : 0;
				   __entry->dma = dma;
				   __entry->length = length;
				   __entry->direction = direction;
				   __entry->result = result;),

		    TP_printk("device=%s queue=%u address=%#llx dma=%#llx length=%llu direction=%s result=%d",
			      __get_str(device), __entry->queue, __entry->address,
			      __entry->dma, __entry->length,
			      __print_symbolic(__entry->direction,
					       { DMA_BIDIRECTIONAL, "BIDIRECTIONAL" },
					       { DMA_TO_DEVICE, "TO_DEVICE" },
					       { DMA_FROM_DEVICE, "FROM_DEVICE" }),
			      __entry->result)
);

/* A buffer has got an address for the device, or there is no room for it. */
DEFINE_EVENT(virtio_xenbus_buffer, virtio_xenbus_map,
	     TP_PROTO(const struct xenbus_device *dev, u16 queue,
		      unsigned long buffer, u64 dma, size_t length,
		      enum dma_data_direction direction, int result),
	     TP_ARGS(dev, queue, buffer, dma, length, direction, result)
);

/* It has been taken back. */
DEFINE_EVENT(virtio_xenbus_buffer, virtio_xenbus_unmap,
	     TP_PROTO(const struct xenbus_device *dev, u16 queue,
		      unsigned long buffer, u64 dma, size_t length,
		      enum dma_data_direction direction, int result),
	     TP_ARGS(dev, queue, buffer, dma, length, direction, result)
);

#endif /* VIRTIO_XENBUS_TRACE_H */

/* Found by -I$(src), in and out of a kernel tree. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
