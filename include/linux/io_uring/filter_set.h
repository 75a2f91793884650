/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The part of a set of filters that C reads for each request. The rest is in
 * rust/kernel/io_uring/filter_set.rs.
 */
#ifndef _LINUX_IO_URING_FILTER_SET_H
#define _LINUX_IO_URING_FILTER_SET_H

#include <linux/bitops.h>
#include <linux/build_bug.h>
#include <linux/io_uring_types.h>
#include <uapi/linux/io_uring.h>

/* The number of values that the flags of a request's SQE can have. */
#define IO_SQE_FLAG_VALUES	128

/* They are the values of the first byte of a request's flags. */
static_assert(IO_SQE_FLAG_VALUES == 1 << (IOSQE_CQE_SKIP_SUCCESS_BIT + 1));
static_assert(IO_SQE_FLAG_VALUES <= 1 << REQ_F_FAIL_BIT);

/*
 * The beginning of what io_ring_ctx::bpf_filters points to: for each opcode, a
 * bit for each value of the flags, set if such requests need no filter.
 */
struct io_unfiltered {
	unsigned long bits[IORING_OP_LAST][IO_SQE_FLAG_VALUES / BITS_PER_LONG];
};

/* Returns whether a request must be passed to the filters of its ring. */
static __always_inline bool
io_is_filtered(struct io_bpf_filter __rcu **filters,
	       const struct io_kiocb *req)
{
	const struct io_unfiltered *unfiltered = (const void *)filters;

	if (!IS_ENABLED(CONFIG_IO_URING_BPF_RUST))
		return filters;
	return filters &&
	       !test_bit(req->opcode * IO_SQE_FLAG_VALUES + (__force u8)req->flags,
			 &unfiltered->bits[0][0]);
}

#endif
