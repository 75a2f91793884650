// SPDX-License-Identifier: GPL-2.0

#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/rtnetlink.h>
#include <net/net_namespace.h>
#include <net/netdev_rx_queue.h>
#include <net/page_pool/helpers.h>

#ifdef CONFIG_PAGE_POOL

__rust_helper bool rust_helper_page_pool_maps_dma(const struct page_pool *pool)
{
	return pool->dma_map;
}

/* Returns whether the pool's buffers must be synced for its device. */
__rust_helper bool
rust_helper_page_pool_syncs_dma(const struct page_pool *pool)
{
	return pool->dma_sync && dma_dev_need_sync(pool->p.dev);
}

/*
 * Returns the DMA address. Where it does not fit in the field of a buffer, it
 * is stored shifted right, and is shifted back here.
 */
__rust_helper dma_addr_t
rust_helper_page_pool_get_dma_addr_netmem(netmem_ref netmem)
{
	return page_pool_get_dma_addr_netmem(netmem);
}

/*
 * Returns whether the pool's device needs any syncs. Pools of unit tests have
 * no device.
 */
__rust_helper bool
rust_helper_page_pool_dev_needs_sync(const struct page_pool *pool)
{
	return pool->p.dev && dma_dev_need_sync(pool->p.dev);
}

/*
 * Returns whether the driver has destroyed the pool. From then on, the pool
 * only waits for its buffers to come back: it asks its provider for no more
 * buffers, and gives none to the driver.
 */
__rust_helper bool
rust_helper_page_pool_is_destroyed(const struct page_pool *pool)
{
	return READ_ONCE(pool->destroy_cnt);
}

/*
 * Stops the pool from syncing, unless its device is cache-coherent: syncs then
 * touch no cache, and only copy to and from bounce buffers.
 */
__rust_helper void rust_helper_page_pool_sync_bounced_only(struct page_pool *pool)
{
	if (!dev_is_dma_coherent(pool->p.dev)) {
		pool->dma_sync = false;
		pool->dma_sync_for_cpu = false;
	}
}

__rust_helper void
rust_helper_dma_sync_single_for_device(struct device *dev, dma_addr_t addr,
				       size_t size,
				       enum dma_data_direction dir)
{
	dma_sync_single_for_device(dev, addr, size, dir);
}

__rust_helper unsigned int rust_helper_dma_get_max_seg_size(struct device *dev)
{
	return dma_get_max_seg_size(dev);
}

#ifdef CONFIG_IO_URING_RS_KUNIT_TEST

/*
 * Creates a pool that gets its buffers from the provider @p, for unit tests.
 * The pool has no DMA device. Its network device is the loopback device, which
 * stays for as long as any buffers of the pool are in use.
 */
__rust_helper struct page_pool *
rust_helper_page_pool_create_provided(const struct pp_memory_provider_params *p)
{
	struct net_device *dev = init_net.loopback_dev;
	struct page_pool_params params = {
		.pool_size = 64,
		.nid = NUMA_NO_NODE,
		.dma_dir = DMA_FROM_DEVICE,
		.max_len = PAGE_SIZE,
		.netdev = dev,
		.flags = PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV |
			 PP_FLAG_ALLOW_UNREADABLE_NETMEM,
	};
	struct netdev_rx_queue *queue = __netif_get_rx_queue(dev, 0);
	struct page_pool *pool;

	/* Other readers of this device's queues hold RTNL. */
	rtnl_lock();
	netdev_lock(dev);
	queue->mp_params = *p;
	pool = page_pool_create(&params);
	if (!IS_ERR(pool)) {
		/* The pool has no DMA device to sync for. */
		pool->dma_sync = false;
		pool->dma_sync_for_cpu = false;
	}
	queue->mp_params = (struct pp_memory_provider_params){};
	netdev_unlock(dev);
	rtnl_unlock();
	return pool;
}

#endif

#endif
