// SPDX-License-Identifier: GPL-2.0
/*
 * The DMA engine of the software NIC. It only knows the DMA address of a
 * buffer, and writes to the memory at that address, through the IOMMU if there
 * is one. An address that has no memory, or that hardware would not take, is a
 * fault: the write ends there, the fault is counted, and the first one is
 * logged.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/align.h>
#include <linux/dma-direct.h>
#include <linux/iommu.h>
#include <linux/pfn.h>
#include <net/page_pool/helpers.h>

#include "zcrx_sim.h"

/* Returns whether an IOMMU translates the addresses that a port uses. */
bool zsim_has_iommu(const struct zsim_port *port)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(port->slot);

	return domain && domain->type & __IOMMU_DOMAIN_PAGING;
}

/*
 * Finds the memory at a DMA address. Returns NULL if the device can reach none
 * there. Without an IOMMU, it can reach most memory that is not mapped as well.
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
 * The buffer must be aligned to its size, as for hardware that takes the number
 * of a buffer and ignores the lower bits of its address.
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
		return zsim_dma_fault(queue, address, "belongs to no mapping");
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
