// SPDX-License-Identifier: GPL-2.0
/*
 * Knobs of the software NIC, in one folder of debugfs per port. They say how
 * the port misbehaves (see struct zsim_knobs), what its device can do, and
 * whether a network device is plugged in, and they make its driver do something
 * by itself. Unplugging and plugging in leaves the knobs as they are, but a
 * network device that was just plugged in has large buffers and all queues.
 */

#include <linux/debugfs.h>
#include <linux/dma-mapping.h>
#include <linux/error-injection.h>
#include <linux/rtnetlink.h>
#include <linux/xarray.h>
#include <net/netdev_lock.h>

#include "zcrx_sim.h"

/*
 * Publishes an interface queue. Its place in the array was reserved, so that no
 * allocation fails there: fail_function has to make it fail.
 */
ALLOW_ERROR_INJECTION(xa_store, ERRNO);

static int zsim_plugged_get(void *data, u64 *value)
{
	struct zsim_port *port = data;

	*value = !!rcu_access_pointer(port->dev);
	return 0;
}

static int zsim_plugged_set(void *data, u64 value)
{
	if (value)
		return zsim_plug(data);
	zsim_unplug(data);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(zsim_plugged_fops, zsim_plugged_get, zsim_plugged_set, "%llu\n");

/* Calls @drive on the network device of a port, under its locks. */
static int zsim_drive(struct zsim_port *port,
		      int (*drive)(struct net_device *dev, u64 value), u64 value)
{
	struct net_device *dev;
	int err = -ENODEV;

	rtnl_lock();
	dev = rtnl_dereference(port->dev);
	if (dev) {
		netdev_lock(dev);
		err = drive(dev, value);
		netdev_unlock(dev);
	}
	rtnl_unlock();
	return err;
}

/* Sets whether buffers may be larger than a page. */
static int zsim_drive_large_buffers(struct net_device *dev, u64 value)
{
	dev->queue_mgmt_ops = value ? &zsim_queue_ops : &zsim_queue_ops_page_only;
	return 0;
}

static int zsim_large_buffers_set(void *data, u64 value)
{
	return zsim_drive(data, zsim_drive_large_buffers, value);
}
DEFINE_DEBUGFS_ATTRIBUTE(zsim_large_buffers_fops, NULL, zsim_large_buffers_set, "%llu\n");

/* Sets the number of queues without checks, as if firmware granted fewer. */
static int zsim_drive_queues(struct net_device *dev, u64 value)
{
	if (!value || value > ZSIM_QUEUES)
		return -EINVAL;
	return zsim_set_queues(dev, value);
}

static int zsim_queues_set(void *data, u64 value)
{
	return zsim_drive(data, zsim_drive_queues, value);
}
DEFINE_DEBUGFS_ATTRIBUTE(zsim_queues_fops, NULL, zsim_queues_set, "%llu\n");

static int zsim_drive_reset(struct net_device *dev, u64 value)
{
	struct zsim_nic *nic = netdev_priv(dev);

	if (value >= dev->real_num_rx_queues)
		return -EINVAL;
	if (!netif_running(dev))
		return -ENETDOWN;
	return zsim_queue_reset(&nic->queues[value]);
}

static int zsim_reset_set(void *data, u64 value)
{
	return zsim_drive(data, zsim_drive_reset, value);
}
DEFINE_DEBUGFS_ATTRIBUTE(zsim_reset_fops, NULL, zsim_reset_set, "%llu\n");

static int zsim_iommu_get(void *data, u64 *value)
{
	*value = zsim_has_iommu(data);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(zsim_iommu_fops, zsim_iommu_get, NULL, "%llu\n");

static int zsim_max_seg_size_get(void *data, u64 *value)
{
	struct zsim_port *port = data;

	*value = dma_get_max_seg_size(port->slot);
	return 0;
}

static int zsim_max_seg_size_set(void *data, u64 value)
{
	struct zsim_port *port = data;

	if (value < PAGE_SIZE || value > UINT_MAX)
		return -EINVAL;
	dma_set_max_seg_size(port->slot, value);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(zsim_max_seg_size_fops, zsim_max_seg_size_get,
			 zsim_max_seg_size_set, "%llu\n");

void zsim_debugfs_add(struct zsim_port *port, struct dentry *parent)
{
	struct zsim_knobs *knobs = &port->knobs;
	struct dentry *dir;
	char name[16];

	snprintf(name, sizeof(name), "zsim%u", port->number);
	dir = debugfs_create_dir(name, parent);
	debugfs_create_file("plugged", 0600, dir, port, &zsim_plugged_fops);
	debugfs_create_file("large_buffers", 0200, dir, port, &zsim_large_buffers_fops);
	debugfs_create_file("max_seg_size", 0600, dir, port, &zsim_max_seg_size_fops);
	debugfs_create_file("queues", 0200, dir, port, &zsim_queues_fops);
	debugfs_create_file("reset", 0200, dir, port, &zsim_reset_fops);
	debugfs_create_file("iommu", 0400, dir, port, &zsim_iommu_fops);
	debugfs_create_atomic_t("dma_faults", 0600, dir, &port->dma_faults);
	debugfs_create_atomic_t("page_frags", 0600, dir, &knobs->page_frags);
	debugfs_create_atomic_t("fail_alloc", 0600, dir, &knobs->fail_alloc);
	debugfs_create_atomic_t("fail_mem_alloc", 0600, dir, &knobs->fail_mem_alloc);
	debugfs_create_atomic_t("fail_start", 0600, dir, &knobs->fail_start);
	debugfs_create_atomic_t("fail_stop", 0600, dir, &knobs->fail_stop);
	debugfs_create_u32("spared", 0600, dir, &knobs->spared);
	debugfs_create_u32("fail_close", 0600, dir, &knobs->fail_close);
	debugfs_create_u32("retry", 0600, dir, &knobs->retry);
	debugfs_create_u32("delay", 0600, dir, &knobs->delay);
	debugfs_create_u32("pack", 0600, dir, &knobs->pack);
	debugfs_create_u32("pool_order", 0600, dir, &knobs->pool_order);
	debugfs_create_bool("pool_bidirectional", 0600, dir, &knobs->pool_bidirectional);
	debugfs_create_bool("pool_unmapped", 0600, dir, &knobs->pool_unmapped);
	debugfs_create_bool("pool_foreign", 0600, dir, &knobs->pool_foreign);
	debugfs_create_bool("ignore_provider", 0600, dir, &knobs->ignore_provider);
	debugfs_create_bool("frag_list", 0600, dir, &knobs->frag_list);
	debugfs_create_bool("header_ring", 0600, dir, &knobs->header_ring);
}
