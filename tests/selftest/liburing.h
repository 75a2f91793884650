/* SPDX-License-Identifier: GPL-2.0 */
/*
 * For the kernel's iou-zcrx.c, which needs a newer liburing than Debian has:
 * includes the kernel's uapi header instead of the library's, and adds the parts
 * of zero-copy receive that the library lacks.
 */
#ifndef _SELFTEST_LIBURING_H
#define _SELFTEST_LIBURING_H

#include <linux/io_uring.h>
#include_next <liburing.h>

/* A refill queue in the mapping of the program. */
struct io_uring_zcrx_rq {
	__u32 *khead;
	__u32 *ktail;
	struct io_uring_zcrx_rqe *rqes;
	__u32 rq_tail;
	__u32 ring_entries;
};

static inline int io_uring_register_ifq(struct io_uring *ring, void *reg)
{
	return io_uring_register(ring->ring_fd, IORING_REGISTER_ZCRX_IFQ, reg, 1);
}

#endif
