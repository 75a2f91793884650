/* SPDX-License-Identifier: GPL-2.0 */
/*
 * For the kernel's iou-zcrx.c, which wants a newer liburing than Debian has: the
 * kernel's own description of the interface takes the place of the library's, and
 * what the library did not know yet of zero-copy receive is added.
 */
#ifndef _SELFTEST_LIBURING_H
#define _SELFTEST_LIBURING_H

#include <linux/io_uring.h>
#include_next <liburing.h>

/* A refill queue, as the program has mapped it. */
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
