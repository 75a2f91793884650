// SPDX-License-Identifier: GPL-2.0
/*
 * The DMA engine of the software NIC. It knows no more of a buffer than its DMA
 * address, and writes to wherever that leads, through the IOMMU if there is one.
 * An address that leads nowhere, or is not what hardware takes, is a fault: it is
 * counted, nothing is written, and the first one is told of on the console.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/align.h>
#include <linux/dma-direct.h>
#include <linux/iommu.h>
#include <linux/pfn.h>
#include <net/page_pool/helpers.h>

#include "zcrx_sim.h"

/* Whether what the device writes is translated, page by page. */
bool zsim_has_iommu(const struct zsim_port *port)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(port->slot);

	return domain && domain->type & __IOMMU_DOMAIN_PAGING;
}

/*
 * Finds what is at a DMA address, or NULL if the device can reach nothing there.
 * Without an IOMMU most of what is not mapped is reached all the same.
 */
static void *zsim_dma_target(struct device *dev, dma_addr_t address)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(dev);
	phys_addr_t phys;

	if (domain)
		phys = iommu_iova_to_phys(domain, address);
	else
		phys = dma_to_phys(dev, address);
	if (!phys || !pfn_valid(PHYS_PFN(phys)))
		return NULL;
	return phys_to_virt(phys);
}

static int zsim_dma_fault(struct zsim_queue *queue, dma_addr_t address,
			  const char *why)
{
	struct zsim_port *port = queue->nic->port;

	if (atomic_inc_return(&port->dma_faults) == 1)
		pr_err("DMA fault: zsim%u, queue %u: address %pad %s\n",
		       port->number, queue->index, &address, why);
	return -EFAULT;
}

/*
 * Writes @len bytes of a packet, from @at on, to @offset of a buffer of @pool.
 * Hardware that takes the number of a buffer ignores the lower bits of addresses.
 */
int zsim_dma_write(struct zsim_queue *queue, struct page_pool *pool,
		   netmem_ref netmem, unsigned int offset,
		   const struct sk_buff *skb, unsigned int at, unsigned int len)
{
	dma_addr_t address = page_pool_get_dma_addr_netmem(netmem);
	struct device *dev = queue->nic->port->slot;
	unsigned int done, part;
	void *to;

	if (!address)
		return zsim_dma_fault(queue, address, "is of no mapping");
	if (!IS_ALIGNED(address, PAGE_SIZE << pool->p.order))
		return zsim_dma_fault(queue, address, "is not aligned to the buffer's size");
	address += offset;
	for (done = 0; done < len; done += part) {
		part = min(len - done, PAGE_SIZE - offset_in_page(address + done));
		to = zsim_dma_target(dev, address + done);
		if (!to)
			return zsim_dma_fault(queue, address + done, "is not mapped");
		WARN_ON_ONCE(skb_copy_bits(skb, at + done, to, part));
	}
	page_pool_dma_sync_netmem_for_cpu(pool, netmem, offset, len);
	return 0;
}
