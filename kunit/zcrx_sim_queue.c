// SPDX-License-Identifier: GPL-2.0
/*
 * Receive queues of the software NIC: their page pools and rings of buffers,
 * and how the core exchanges the memory of a queue. Receiving into the buffers
 * is in zcrx_sim_rx.c.
 */

#include <linux/log2.h>
#include <linux/slab.h>
#include <net/netdev_lock.h>
#include <net/netdev_rx_queue.h>
#include <net/page_pool/helpers.h>

#include "zcrx_sim.h"

/* The largest buffer: a huge page */
#define ZSIM_BUF_MAX	(2U << 20)

/* Returns whether a queue is to lose the provided memory that it runs on. */
static bool zsim_loses_provider(const struct zsim_queue *queue)
{
	struct net_device *dev = queue->nic->dev;

	return queue->up && queue->mem.pool->mp_ops &&
	       !__netif_get_rx_queue(dev, queue->index)->mp_params.mp_ops;
}

/* Creates a pool of pages for headers, which the kernel must read. */
static int zsim_headers_create(struct zsim_nic *nic, struct zsim_queue_mem *mem)
{
	struct page_pool_params params = {
		.pool_size	= mem->size,
		.nid		= NUMA_NO_NODE,
		.dev		= nic->port->slot,
		.dma_dir	= DMA_FROM_DEVICE,
		.max_len	= PAGE_SIZE,
		.netdev		= nic->dev,
		.flags		= PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV,
	};
	struct page_pool *pool;

	if (!READ_ONCE(nic->port->knobs.header_ring))
		return 0;
	pool = page_pool_create(&params);
	if (IS_ERR(pool))
		return PTR_ERR(pool);
	mem->headers = pool;
	return 0;
}

static int zsim_queue_mem_alloc(struct net_device *dev,
				struct netdev_queue_config *qcfg,
				void *per_queue_mem, int idx)
{
	struct zsim_nic *nic = netdev_priv(dev);
	struct zsim_knobs *knobs = &nic->port->knobs;
	struct zsim_queue_mem *mem = per_queue_mem;
	struct page_pool_params params = {};
	u32 error = READ_ONCE(knobs->fail_close);
	unsigned int order;
	int err;

	if (zsim_knob(&nic->queues[idx], &knobs->fail_mem_alloc))
		return -ENOMEM;
	if (error && zsim_loses_provider(&nic->queues[idx]))
		return -(int)min(error, MAX_ERRNO);

	memset(mem, 0, sizeof(*mem));
	mem->size = nic->ring_size;
	order = min(READ_ONCE(knobs->pool_order), ilog2(ZSIM_BUF_MAX));
	mem->buf_len = min_t(u64, (u64)qcfg->rx_page_size << order, ZSIM_BUF_MAX);
	mem->ring = kvcalloc(mem->size, sizeof(*mem->ring), GFP_KERNEL);
	if (!mem->ring)
		return -ENOMEM;

	params.order = ilog2(mem->buf_len) - PAGE_SHIFT;
	params.pool_size = mem->size;
	params.nid = NUMA_NO_NODE;
	params.dev = nic->port->slot;
	if (READ_ONCE(knobs->pool_foreign))
		params.dev = nic->port->peer->slot;
	params.dma_dir = DMA_FROM_DEVICE;
	if (READ_ONCE(knobs->pool_bidirectional))
		params.dma_dir = DMA_BIDIRECTIONAL;
	params.max_len = mem->buf_len;
	params.netdev = dev;
	params.queue_idx = idx;
	if (!READ_ONCE(knobs->pool_unmapped))
		params.flags = PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV;
	if (!READ_ONCE(knobs->ignore_provider))
		params.flags |= PP_FLAG_ALLOW_UNREADABLE_NETMEM;

	mem->pool = page_pool_create(&params);
	if (IS_ERR(mem->pool)) {
		err = PTR_ERR(mem->pool);
		goto err_free_ring;
	}
	err = zsim_headers_create(nic, mem);
	if (err)
		goto err_destroy_pool;
	return 0;

err_destroy_pool:
	page_pool_destroy(mem->pool);
err_free_ring:
	kvfree(mem->ring);
	return err;
}

static void zsim_queue_mem_free(struct net_device *dev, void *per_queue_mem)
{
	struct zsim_queue_mem *mem = per_queue_mem;

	for (; mem->filled; mem->filled--) {
		page_pool_put_full_netmem(mem->pool, mem->ring[mem->head], false);
		mem->head = (mem->head + 1) % mem->size;
	}
	page_pool_destroy(mem->pool);
	page_pool_destroy(mem->headers);
	kvfree(mem->ring);
}

/* Fills the ring as far as there are buffers. */
void zsim_refill(struct zsim_queue *queue, gfp_t gfp)
{
	struct zsim_queue_mem *mem = &queue->mem;
	netmem_ref netmem;

	for (; mem->filled < mem->size; mem->filled++) {
		if (zsim_knob(queue, &queue->nic->port->knobs.fail_alloc))
			netmem = 0;
		else
			netmem = page_pool_alloc_netmems(mem->pool, gfp | __GFP_NOWARN);
		if (!netmem) {
			queue->stats.alloc_fail++;
			return;
		}
		mem->ring[(mem->head + mem->filled) % mem->size] = netmem;
	}
}

static int zsim_queue_start(struct net_device *dev,
			    struct netdev_queue_config *qcfg,
			    void *per_queue_mem, int idx)
{
	struct zsim_nic *nic = netdev_priv(dev);
	struct zsim_queue *queue = &nic->queues[idx];

	if (zsim_knob(queue, &nic->port->knobs.fail_start))
		return -EIO;

	queue->mem = *(struct zsim_queue_mem *)per_queue_mem;
	zsim_refill(queue, GFP_KERNEL);
	page_pool_enable_direct_recycling(queue->mem.pool, &queue->napi);
	if (queue->mem.headers)
		page_pool_enable_direct_recycling(queue->mem.headers, &queue->napi);
	napi_enable_locked(&queue->napi);

	spin_lock_bh(&queue->backlog.lock);
	queue->up = true;
	spin_unlock_bh(&queue->backlog.lock);
	return 0;
}

/* Takes the memory off a queue that is up. */
static void zsim_queue_take(struct zsim_queue *queue, struct zsim_queue_mem *mem)
{
	spin_lock_bh(&queue->backlog.lock);
	queue->up = false;
	spin_unlock_bh(&queue->backlog.lock);

	hrtimer_cancel(&queue->interrupt);
	napi_disable_locked(&queue->napi);
	page_pool_disable_direct_recycling(queue->mem.pool);
	if (queue->mem.headers)
		page_pool_disable_direct_recycling(queue->mem.headers);
	skb_queue_purge(&queue->backlog);

	*mem = queue->mem;
	memset(&queue->mem, 0, sizeof(queue->mem));
}

static int zsim_queue_stop(struct net_device *dev, void *per_queue_mem, int idx)
{
	struct zsim_nic *nic = netdev_priv(dev);
	struct zsim_queue *queue = &nic->queues[idx];

	/* A queue that could not be restarted is not up. */
	if (!queue->up)
		return -ENETDOWN;
	if (zsim_knob(queue, &nic->port->knobs.fail_stop))
		return -EIO;

	zsim_queue_take(queue, per_queue_mem);
	return 0;
}

/* Raises an interrupt that was delayed. */
static enum hrtimer_restart zsim_interrupt(struct hrtimer *timer)
{
	struct zsim_queue *queue = container_of(timer, struct zsim_queue, interrupt);

	napi_schedule(&queue->napi);
	return HRTIMER_NORESTART;
}

void zsim_queue_init(struct zsim_nic *nic, unsigned int index)
{
	struct zsim_queue *queue = &nic->queues[index];

	queue->nic = nic;
	queue->index = index;
	skb_queue_head_init(&queue->backlog);
	hrtimer_setup(&queue->interrupt, zsim_interrupt, CLOCK_MONOTONIC,
		      HRTIMER_MODE_REL_SOFT);
}

/* Brings up a queue of a device that is up or is being brought up. */
int zsim_queue_open(struct zsim_queue *queue)
{
	struct net_device *dev = queue->nic->dev;
	struct netdev_queue_config qcfg;
	struct zsim_queue_mem mem;
	int err;

	netdev_queue_config(dev, queue->index, &qcfg);
	err = zsim_queue_mem_alloc(dev, &qcfg, &mem, queue->index);
	if (err)
		return err;

	netif_napi_add_config_locked(dev, &queue->napi, zsim_poll, queue->index);
	netif_queue_set_napi(dev, queue->index, NETDEV_QUEUE_TYPE_RX, &queue->napi);
	err = zsim_queue_start(dev, &qcfg, &mem, queue->index);
	if (err) {
		netif_queue_set_napi(dev, queue->index, NETDEV_QUEUE_TYPE_RX, NULL);
		netif_napi_del_locked(&queue->napi);
		zsim_queue_mem_free(dev, &mem);
	}
	return err;
}

/* Takes down a queue for good. Unlike stopping it, this cannot fail. */
void zsim_queue_close(struct zsim_queue *queue)
{
	struct net_device *dev = queue->nic->dev;
	struct zsim_queue_mem mem;

	if (queue->up) {
		zsim_queue_take(queue, &mem);
		zsim_queue_mem_free(dev, &mem);
	}
	netif_queue_set_napi(dev, queue->index, NETDEV_QUEUE_TYPE_RX, NULL);
	netif_napi_del_locked(&queue->napi);
}

/* Restarts a queue by itself, as a driver does when it resets its device. */
int zsim_queue_reset(struct zsim_queue *queue)
{
	struct net_device *dev = queue->nic->dev;
	struct netdev_queue_config qcfg;
	struct zsim_queue_mem mem;
	int err;

	if (queue->up) {
		zsim_queue_take(queue, &mem);
		zsim_queue_mem_free(dev, &mem);
	}
	netdev_queue_config(dev, queue->index, &qcfg);
	err = zsim_queue_mem_alloc(dev, &qcfg, &mem, queue->index);
	if (err)
		return err;
	err = zsim_queue_start(dev, &qcfg, &mem, queue->index);
	if (err)
		zsim_queue_mem_free(dev, &mem);
	return err;
}

static void zsim_default_qcfg(struct net_device *dev,
			      struct netdev_queue_config *qcfg)
{
	qcfg->rx_page_size = PAGE_SIZE;
}

static int zsim_validate_qcfg(struct net_device *dev,
			      struct netdev_queue_config *qcfg,
			      struct netlink_ext_ack *extack)
{
	if (!is_power_of_2(qcfg->rx_page_size) ||
	    qcfg->rx_page_size < PAGE_SIZE || qcfg->rx_page_size > ZSIM_BUF_MAX)
		return -EINVAL;
	return 0;
}

/* The caller has not checked @idx yet, so this does not use it. */
static struct device *zsim_queue_dma_dev(struct net_device *dev, int idx)
{
	struct zsim_nic *nic = netdev_priv(dev);

	return nic->port->slot;
}

#define ZSIM_QUEUE_OPS						\
	.ndo_queue_mem_size	= sizeof(struct zsim_queue_mem),	\
	.ndo_queue_mem_alloc	= zsim_queue_mem_alloc,		\
	.ndo_queue_mem_free	= zsim_queue_mem_free,		\
	.ndo_queue_start	= zsim_queue_start,		\
	.ndo_queue_stop		= zsim_queue_stop,		\
	.ndo_default_qcfg	= zsim_default_qcfg,		\
	.ndo_validate_qcfg	= zsim_validate_qcfg,		\
	.ndo_queue_get_dma_dev	= zsim_queue_dma_dev

const struct netdev_queue_mgmt_ops zsim_queue_ops = {
	ZSIM_QUEUE_OPS,
	.supported_params	= QCFG_RX_PAGE_SIZE,
};

const struct netdev_queue_mgmt_ops zsim_queue_ops_page_only = {
	ZSIM_QUEUE_OPS,
};
