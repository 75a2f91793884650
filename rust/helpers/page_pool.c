// SPDX-License-Identifier: GPL-2.0

#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <net/page_pool/helpers.h>

#ifdef CONFIG_PAGE_POOL

/*
 * Returns the DMA address. If it does not fit in the field of a buffer, it is
 * stored shifted right, and is shifted back here.
 */
__rust_helper dma_addr_t
rust_helper_page_pool_get_dma_addr_netmem(netmem_ref netmem)
{
	return page_pool_get_dma_addr_netmem(netmem);
}

__rust_helper bool rust_helper_dev_is_dma_coherent(struct device *dev)
{
	return dev_is_dma_coherent(dev);
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
