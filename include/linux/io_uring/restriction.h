/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Functions of io_uring_rs/exports.rs that have no prototype elsewhere, because
 * their C counterparts are static or part of another function.
 */
#ifndef _LINUX_IO_URING_RESTRICTION_H
#define _LINUX_IO_URING_RESTRICTION_H

#include <linux/types.h>

#ifdef CONFIG_IO_URING_BPF_RUST

struct io_restriction;
struct io_ring_ctx;
struct task_struct;

int io_register_restrictions(struct io_ring_ctx *ctx, void __user *arg,
			     unsigned int nr_args);
int io_register_restrictions_task(void __user *arg, unsigned int nr_args);
int io_register_bpf_filter_task(void __user *arg, unsigned int nr_args);
bool io_register_blind_allowed(unsigned int opcode);
void io_ctx_restriction_clone(struct io_ring_ctx *ctx,
			      struct io_restriction *src);
void io_task_restriction_free(struct task_struct *tsk);

#endif

#endif
