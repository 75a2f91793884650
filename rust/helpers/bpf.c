// SPDX-License-Identifier: GPL-2.0

#include <linux/bpf.h>
#include <linux/filter.h>

/* Runs a program like bpf_prog_run(), without statistics and cant_migrate(). */
__rust_helper u32 rust_helper_bpf_prog_run_no_stats(const struct bpf_prog *prog,
						    const void *ctx)
{
	return bpf_dispatcher_nop_func(ctx, prog->insnsi, prog->bpf_func);
}
