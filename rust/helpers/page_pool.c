// SPDX-License-Identifier: GPL-2.0

#include <linux/dma-mapping.h>
#include <net/page_pool/types.h>

#ifdef CONFIG_PAGE_POOL

__rust_helper bool rust_helper_page_pool_maps_dma(const struct page_pool *pool)
{
	return pool->dma_map;
}

/* Whether its buffers must be synced for its device. */
__rust_helper bool
rust_helper_page_pool_syncs_dma(const struct page_pool *pool)
{
	return pool->dma_sync && dma_dev_need_sync(pool->p.dev);
}

__rust_helper void rust_helper_page_pool_stop_sync(struct page_pool *pool)
{
	pool->dma_sync = false;
	pool->dma_sync_for_cpu = false;
}

__rust_helper bool rust_helper_dma_dev_need_sync(const struct device *dev)
{
	return dma_dev_need_sync(dev);
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

#endif
