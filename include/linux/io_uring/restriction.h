/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Functions of io_uring_rs/exports.rs and io_uring_rs/calls/exports.rs that have
 * no prototype elsewhere, because their C counterparts are static or part of
 * another function, or do not exist.
 */
#ifndef _LINUX_IO_URING_RESTRICTION_H
#define _LINUX_IO_URING_RESTRICTION_H

#include <linux/types.h>

struct io_kiocb;
struct io_restriction;
struct io_ring_ctx;
struct io_uring_params;
struct seq_file;
struct task_struct;

#ifdef CONFIG_IO_URING_BPF_CALLS

int io_filter_register(struct io_ring_ctx *ctx, unsigned int opcode,
		       unsigned int nr_args);
int io_filter_setup(const struct io_uring_params *p, u32 entries);

#else

static inline int io_filter_register(struct io_ring_ctx *ctx,
				     unsigned int opcode, unsigned int nr_args)
{
	return 0;
}

static inline int io_filter_setup(const struct io_uring_params *p, u32 entries)
{
	return 0;
}

#endif

#ifdef CONFIG_IO_URING_BPF_RUST

int io_register_restrictions(struct io_ring_ctx *ctx, void __user *arg,
			     unsigned int nr_args);
bool io_ring_refuses(struct io_ring_ctx *ctx, unsigned int opcode);
int io_register_restrictions_task(void __user *arg, unsigned int nr_args);
int io_register_bpf_filter_task(void __user *arg, unsigned int nr_args);
bool io_register_blind_allowed(unsigned int opcode);
void io_show_restrictions(struct io_ring_ctx *ctx, struct seq_file *m);
int io_task_check_restriction(u8 opcode, u64 user_data);
int io_task_run_filters(u8 opcode, u64 user_data);
void __io_trace_restricted(struct io_ring_ctx *ctx, u64 user_data, u8 opcode,
			   u8 flags);
void __io_trace_filtered(struct io_ring_ctx *ctx, struct io_kiocb *req);
void io_ctx_restriction_clone(struct io_ring_ctx *ctx,
			      struct io_restriction *src);
void io_task_restriction_free(struct task_struct *tsk);

/* These are for files that include <trace/events/io_uring.h>. */
#define io_trace_restricted(req)						\
do {										\
	const struct io_kiocb *__req = (req);					\
										\
	if (trace_io_uring_denied_enabled())					\
		__io_trace_restricted(__req->ctx, __req->cqe.user_data,		\
				      __req->opcode, (__force u8)__req->flags);	\
} while (0)

#define io_trace_filtered(req)							\
do {										\
	struct io_kiocb *__req = (req);						\
										\
	if (trace_io_uring_denied_enabled())					\
		__io_trace_filtered(__req->ctx, __req);				\
} while (0)

#else

static inline bool io_ring_refuses(struct io_ring_ctx *ctx, unsigned int opcode)
{
	return false;
}

static inline void io_show_restrictions(struct io_ring_ctx *ctx,
					struct seq_file *m)
{
}

static inline int io_task_check_restriction(u8 opcode, u64 user_data)
{
	return 0;
}

static inline int io_task_run_filters(u8 opcode, u64 user_data)
{
	return 0;
}

static inline void io_trace_restricted(struct io_kiocb *req)
{
}

static inline void io_trace_filtered(struct io_kiocb *req)
{
}

#endif

#endif
