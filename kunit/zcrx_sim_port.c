// SPDX-License-Identifier: GPL-2.0
/*
 * Ports of the software NIC: the module, the network devices, and how packets
 * are sent. The slots of network devices are in zcrx_sim_slot.c, receive queues
 * are in zcrx_sim_queue.c.
 */

#include <linux/debugfs.h>
#include <linux/etherdevice.h>
#include <linux/module.h>
#include <linux/rtnetlink.h>
#include <linux/slab.h>
#include <net/gso.h>
#include <net/netdev_lock.h>

#include "zcrx_sim.h"

static unsigned int pairs = 1;
module_param(pairs, uint, 0444);
MODULE_PARM_DESC(pairs, "Number of pairs of ports (default 1)");

static struct zsim_port *ports;
static struct dentry *debugfs;

/* Hands a packet to a queue of the peer, and takes over the packet. */
static void zsim_enqueue(struct zsim_queue *queue, struct sk_buff *skb)
{
	u32 delay = READ_ONCE(queue->nic->port->knobs.delay);
	bool taken = false;

	/*
	 * A packet that waits here counts as sent. TCP does not retransmit one
	 * that it believes to be waiting in its own device.
	 */
	if (delay)
		skb_orphan(skb);

	spin_lock(&queue->backlog.lock);
	if (queue->up && skb_queue_len(&queue->backlog) < ZSIM_BACKLOG) {
		__skb_queue_tail(&queue->backlog, skb);
		if (!delay)
			napi_schedule(&queue->napi);
		else if (!hrtimer_is_queued(&queue->interrupt))
			hrtimer_start(&queue->interrupt, us_to_ktime(delay),
				      HRTIMER_MODE_REL_SOFT);
		taken = true;
	} else {
		queue->stats.overrun++;
	}
	spin_unlock(&queue->backlog.lock);
	if (!taken)
		dev_kfree_skb_any(skb);
}

/* Returns whether the receiver wants the segments of a packet one by one. */
static bool zsim_must_segment(const struct zsim_queue *queue,
			      const struct sk_buff *skb)
{
	const struct zsim_nic *nic = queue->nic;

	if (!skb_is_gso(skb))
		return false;
	return !(nic->dev->features & NETIF_F_GRO_HW) ||
	       DIV_ROUND_UP(skb->len, PAGE_SIZE) > READ_ONCE(nic->ring_size);
}

static netdev_tx_t zsim_xmit(struct sk_buff *skb, struct net_device *dev)
{
	struct zsim_nic *nic = netdev_priv(dev);
	struct sk_buff *segment, *next;
	struct net_device *other;
	struct zsim_queue *queue;
	struct zsim_flow flow;

	guard(rcu)();
	other = rcu_dereference(nic->port->peer->dev);
	if (!other || !netif_running(other))
		goto drop;

	skb_tx_timestamp(skb);
	dev_sw_netstats_tx_add(dev, 1, skb->len);
	zsim_parse(skb, &flow);
	queue = zsim_steer(netdev_priv(other), skb, &flow);
	if (!zsim_must_segment(queue, skb)) {
		zsim_enqueue(queue, skb);
		return NETDEV_TX_OK;
	}

	segment = skb_gso_segment(skb, NETIF_F_SG | NETIF_F_HW_CSUM);
	if (IS_ERR_OR_NULL(segment))
		goto drop;
	consume_skb(skb);
	skb_list_walk_safe(segment, segment, next) {
		skb_mark_not_on_list(segment);
		zsim_enqueue(queue, segment);
	}
	return NETDEV_TX_OK;
drop:
	dev_core_stats_tx_dropped_inc(dev);
	dev_kfree_skb_any(skb);
	return NETDEV_TX_OK;
}

static int zsim_open(struct net_device *dev)
{
	struct zsim_nic *nic = netdev_priv(dev);
	unsigned int i;
	int err;

	for (i = 0; i < dev->real_num_rx_queues; i++) {
		err = zsim_queue_open(&nic->queues[i]);
		if (err)
			goto err_close;
	}
	netif_tx_start_all_queues(dev);
	return 0;

err_close:
	while (i--)
		zsim_queue_close(&nic->queues[i]);
	return err;
}

static int zsim_stop(struct net_device *dev)
{
	struct zsim_nic *nic = netdev_priv(dev);
	unsigned int i;

	netif_tx_disable(dev);
	for (i = 0; i < dev->real_num_rx_queues; i++)
		zsim_queue_close(&nic->queues[i]);
	return 0;
}

static const struct net_device_ops zsim_netdev_ops = {
	.ndo_open		= zsim_open,
	.ndo_stop		= zsim_stop,
	.ndo_start_xmit		= zsim_xmit,
	.ndo_set_mac_address	= eth_mac_addr,
	.ndo_validate_addr	= eth_validate_addr,
};

static void zsim_setup(struct net_device *dev, struct zsim_port *port)
{
	struct zsim_nic *nic = netdev_priv(dev);
	unsigned int i;

	snprintf(dev->name, sizeof(dev->name), "zsim%u", port->number);
	SET_NETDEV_DEV(dev, port->slot);
	eth_hw_addr_random(dev);
	dev->netdev_ops = &zsim_netdev_ops;
	dev->ethtool_ops = &zsim_ethtool_ops;
	dev->queue_mgmt_ops = &zsim_queue_ops;
	dev->pcpu_stat_type = NETDEV_PCPU_STAT_TSTATS;
	dev->max_mtu = ZSIM_MTU_MAX;
	dev->hw_features = NETIF_F_SG | NETIF_F_HW_CSUM | NETIF_F_RXCSUM |
			   NETIF_F_TSO | NETIF_F_TSO6 | NETIF_F_GRO_HW |
			   NETIF_F_NTUPLE;
	dev->features = dev->hw_features | NETIF_F_HIGHDMA;
	netif_set_tso_max_size(dev, ZSIM_TSO_MAX);

	nic->port = port;
	nic->dev = dev;
	nic->ring_size = ZSIM_RING_DEFAULT;
	netdev_rss_key_fill(nic->key, sizeof(nic->key));
	zsim_spread(nic, ZSIM_QUEUES);
	for (i = 0; i < ZSIM_QUEUES; i++)
		zsim_queue_init(nic, i);
}

/* Plugs a network device into the slot if there is none. */
int zsim_plug(struct zsim_port *port)
{
	struct net_device *dev;
	int err = 0;

	dev = alloc_etherdev_mq(sizeof(struct zsim_nic), ZSIM_QUEUES);
	if (!dev)
		return -ENOMEM;
	zsim_setup(dev, port);

	rtnl_lock();
	if (rtnl_dereference(port->dev)) {
		rtnl_unlock();
		free_netdev(dev);
		return 0;
	}
	err = register_netdevice(dev);
	if (!err)
		rcu_assign_pointer(port->dev, dev);
	rtnl_unlock();
	if (err)
		free_netdev(dev);
	return err;
}

/* Unplugs the network device, in any state and in any namespace. */
void zsim_unplug(struct zsim_port *port)
{
	struct net_device *dev;

	rtnl_lock();
	dev = rtnl_dereference(port->dev);
	if (dev) {
		RCU_INIT_POINTER(port->dev, NULL);
		unregister_netdevice(dev);
	}
	rtnl_unlock();
	if (dev)
		free_netdev(dev);
}

/* Finds the port that has @slot. Returns NULL if no port has it. */
struct zsim_port *zsim_port_on(const struct device *slot)
{
	unsigned int i;

	for (i = 0; i < 2 * pairs; i++)
		if (ports[i].slot == slot)
			return &ports[i];
	return NULL;
}

static int zsim_port_add(struct zsim_port *port, unsigned int number)
{
	int err;

	port->number = number;
	port->peer = &ports[number ^ 1];
	err = zsim_slot_add(port);
	if (err)
		return err;
	err = zsim_plug(port);
	if (err)
		return err;
	zsim_debugfs_add(port, debugfs);
	return 0;
}

static void zsim_remove(void)
{
	unsigned int i;

	debugfs_remove(debugfs);
	for (i = 0; i < 2 * pairs; i++)
		zsim_unplug(&ports[i]);
	for (i = 0; i < 2 * pairs; i++)
		zsim_slot_remove(&ports[i]);
	zsim_slots_unregister();
	kfree(ports);
}

static int __init zsim_init(void)
{
	unsigned int i;
	int err;

	if (!pairs || pairs > 64)
		return -EINVAL;
	ports = kcalloc(2 * pairs, sizeof(*ports), GFP_KERNEL);
	if (!ports)
		return -ENOMEM;
	err = zsim_slots_register();
	if (err) {
		kfree(ports);
		return err;
	}
	debugfs = debugfs_create_dir("zcrx_sim", NULL);

	for (i = 0; i < 2 * pairs; i++) {
		err = zsim_port_add(&ports[i], i);
		if (err) {
			zsim_remove();
			return err;
		}
	}
	return 0;
}
module_init(zsim_init);

static void __exit zsim_exit(void)
{
	zsim_remove();
}
module_exit(zsim_exit);

MODULE_DESCRIPTION("Software NIC for tests of io_uring's zero-copy receive");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("NETDEV_INTERNAL");
