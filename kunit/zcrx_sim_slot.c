// SPDX-License-Identifier: GPL-2.0
/*
 * Slots of the software NIC: the devices for which its buffers are mapped. They
 * are platform devices without hardware, or PCI devices of QEMU that have no
 * other use, for tests behind an IOMMU. Unbinding a slot from its driver in
 * sysfs unplugs its network device. Another one can be plugged in afterwards,
 * and its parent then has no driver.
 */

#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/platform_device.h>

#include "zcrx_sim.h"

static bool pci;
module_param(pci, bool, 0444);
MODULE_PARM_DESC(pci, "Put each port on a pci-testdev of QEMU (default off)");

/* Unplugs the network device of a slot that loses its driver. */
static void zsim_slot_unbound(struct device *slot)
{
	struct zsim_port *port = zsim_port_on(slot);

	if (port)
		zsim_unplug(port);
}

static void zsim_platform_remove(struct platform_device *pdev)
{
	zsim_slot_unbound(&pdev->dev);
}

static struct platform_driver zsim_platform_driver = {
	.remove		= zsim_platform_remove,
	.driver = {
		.name		= "zcrx_sim",
		.probe_type	= PROBE_FORCE_SYNCHRONOUS,
	},
};

#define ZSIM_PCI_DEVICE	0x0005	/* pci-testdev */

static const struct pci_device_id zsim_pci_ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_REDHAT, ZSIM_PCI_DEVICE) },
	{}
};

static int zsim_pci_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	return dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
}

static void zsim_pci_remove(struct pci_dev *pdev)
{
	zsim_slot_unbound(&pdev->dev);
}

static struct pci_driver zsim_pci_driver = {
	.name		= "zcrx_sim",
	.id_table	= zsim_pci_ids,
	.probe		= zsim_pci_probe,
	.remove		= zsim_pci_remove,
	.driver = {
		.probe_type	= PROBE_FORCE_SYNCHRONOUS,
	},
};

int zsim_slots_register(void)
{
	if (pci)
		return pci_register_driver(&zsim_pci_driver);
	return platform_driver_register(&zsim_platform_driver);
}

void zsim_slots_unregister(void)
{
	if (pci)
		pci_unregister_driver(&zsim_pci_driver);
	else
		platform_driver_unregister(&zsim_platform_driver);
}

/* Takes a reference to the first device that no port has. */
static struct device *zsim_pci_slot(void)
{
	struct pci_dev *pdev = NULL;

	while ((pdev = pci_get_device(PCI_VENDOR_ID_REDHAT, ZSIM_PCI_DEVICE, pdev))) {
		if (pdev->dev.driver == &zsim_pci_driver.driver && !zsim_port_on(&pdev->dev))
			return &pdev->dev;
	}
	return ERR_PTR(-ENODEV);
}

static struct device *zsim_platform_slot(const struct zsim_port *port)
{
	const struct platform_device_info info = {
		.name		= "zcrx_sim",
		.id		= port->number,
		.dma_mask	= DMA_BIT_MASK(64),
	};
	struct platform_device *pdev = platform_device_register_full(&info);

	return IS_ERR(pdev) ? ERR_CAST(pdev) : &pdev->dev;
}

int zsim_slot_add(struct zsim_port *port)
{
	struct device *slot = pci ? zsim_pci_slot() : zsim_platform_slot(port);

	if (IS_ERR(slot))
		return PTR_ERR(slot);
	/* Each buffer is addressed by itself, so segments have no limit. */
	dma_set_max_seg_size(slot, UINT_MAX);
	port->slot = slot;
	return 0;
}

void zsim_slot_remove(struct zsim_port *port)
{
	if (!port->slot)
		return;
	if (pci)
		put_device(port->slot);
	else
		platform_device_unregister(to_platform_device(port->slot));
	port->slot = NULL;
}
