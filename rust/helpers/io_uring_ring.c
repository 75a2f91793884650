// SPDX-License-Identifier: GPL-2.0

#include <linux/io_uring_types.h>
#include <linux/percpu-refcount.h>
#include <linux/slab.h>
#include <linux/xarray.h>

#include "../../io_uring/io_uring.h"

__rust_helper int rust_helper_xa_alloc(struct xarray *xa, u32 *id, void *entry,
				       struct xa_limit limit, gfp_t gfp)
{
	return xa_alloc(xa, id, entry, limit, gfp);
}

__rust_helper void rust_helper_percpu_ref_get(struct percpu_ref *ref)
{
	percpu_ref_get(ref);
}

__rust_helper bool rust_helper_percpu_ref_tryget(struct percpu_ref *ref)
{
	return percpu_ref_tryget(ref);
}

__rust_helper void rust_helper_percpu_ref_put(struct percpu_ref *ref)
{
	percpu_ref_put(ref);
}

__rust_helper void *rust_helper_kmem_cache_alloc(struct kmem_cache *cache,
						 gfp_t gfp)
{
	return kmem_cache_alloc(cache, gfp);
}

__rust_helper void rust_helper_io_req_task_work_add(struct io_kiocb *req)
{
	io_req_task_work_add(req);
}

__rust_helper bool
rust_helper_io_defer_get_uncommited_cqe(struct io_ring_ctx *ctx,
					struct io_uring_cqe **cqe)
{
	return io_defer_get_uncommited_cqe(ctx, cqe);
}
