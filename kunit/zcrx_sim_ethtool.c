// SPDX-License-Identifier: GPL-2.0
/*
 * ethtool operations of the software NIC: rings and header split, channels,
 * steering of packets, and statistics.
 */

#include <linux/bitops.h>
#include <linux/device.h>
#include <linux/ethtool.h>
#include <net/netdev_lock.h>
#include <net/netdev_rx_queue.h>

#include "zcrx_sim.h"

static void zsim_get_drvinfo(struct net_device *dev, struct ethtool_drvinfo *info)
{
	struct zsim_nic *nic = netdev_priv(dev);

	strscpy(info->driver, "zcrx_sim");
	strscpy(info->bus_info, dev_name(nic->port->slot));
}

static void zsim_get_ringparam(struct net_device *dev,
			       struct ethtool_ringparam *ring,
			       struct kernel_ethtool_ringparam *kernel_ring,
			       struct netlink_ext_ack *extack)
{
	struct zsim_nic *nic = netdev_priv(dev);

	ring->rx_pending = nic->ring_size;
	ring->rx_max_pending = ZSIM_RING_MAX;
	kernel_ring->hds_thresh_max = ZSIM_THRESH_MAX;
}

static int zsim_set_ringparam(struct net_device *dev,
			      struct ethtool_ringparam *ring,
			      struct kernel_ethtool_ringparam *kernel_ring,
			      struct netlink_ext_ack *extack)
{
	struct zsim_nic *nic = netdev_priv(dev);
	unsigned int before = nic->ring_size;
	unsigned int i;
	int err;

	if (!ring->rx_pending)
		return -EINVAL;

	WRITE_ONCE(nic->ring_size, ring->rx_pending);
	if (netif_running(dev) && nic->ring_size != before) {
		for (i = 0; i < dev->real_num_rx_queues; i++) {
			err = netdev_rx_queue_restart(dev, i);
			if (err) {
				WRITE_ONCE(nic->ring_size, before);
				return err;
			}
		}
	}
	WRITE_ONCE(nic->split, kernel_ring->tcp_data_split ==
			       ETHTOOL_TCP_DATA_SPLIT_ENABLED);
	WRITE_ONCE(nic->hds_thresh, kernel_ring->hds_thresh);
	return 0;
}

static void zsim_get_channels(struct net_device *dev, struct ethtool_channels *ch)
{
	ch->max_combined = ZSIM_QUEUES;
	ch->combined_count = dev->real_num_rx_queues;
}

/* Sets the number of queues in use. Others are closed in whatever state. */
int zsim_set_queues(struct net_device *dev, unsigned int count)
{
	unsigned int before = dev->real_num_rx_queues;
	struct zsim_nic *nic = netdev_priv(dev);
	unsigned int i = before;
	int err;

	if (netif_running(dev)) {
		for (; i < count; i++) {
			err = zsim_queue_open(&nic->queues[i]);
			if (err)
				goto err_close;
		}
	}
	err = netif_set_real_num_queues(dev, count, count);
	if (err)
		goto err_close;

	if (!netif_is_rxfh_configured(dev))
		zsim_spread(nic, count);
	if (netif_running(dev)) {
		for (i = count; i < before; i++)
			zsim_queue_close(&nic->queues[i]);
	}
	return 0;

err_close:
	while (i-- > before)
		zsim_queue_close(&nic->queues[i]);
	return err;
}

static int zsim_set_channels(struct net_device *dev, struct ethtool_channels *ch)
{
	return zsim_set_queues(dev, ch->combined_count);
}

/* Steering */

/* Spreads packets over the first @queues queues. */
void zsim_spread(struct zsim_nic *nic, unsigned int queues)
{
	unsigned int i;

	for (i = 0; i < ZSIM_INDIR; i++)
		WRITE_ONCE(nic->indir[i], ethtool_rxfh_indir_default(i, queues));
}

/* Returns the queue that a packet goes to. */
struct zsim_queue *zsim_steer(struct zsim_nic *nic, struct sk_buff *skb,
			      const struct zsim_flow *flow)
{
	union zsim_rule rule;
	unsigned int i;

	if (flow->headers && nic->dev->features & NETIF_F_NTUPLE) {
		for (i = 0; i < ZSIM_RULES; i++) {
			rule.word = READ_ONCE(nic->rules[i].word);
			if (rule.port == flow->port && rule.port &&
			    rule.version == flow->version)
				return &nic->queues[rule.queue];
		}
	}
	i = READ_ONCE(nic->indir[skb_get_hash(skb) % ZSIM_INDIR]);
	return &nic->queues[i];
}

static u32 zsim_get_rx_ring_count(struct net_device *dev)
{
	return dev->real_num_rx_queues;
}

static int zsim_get_rule(struct zsim_nic *nic, struct ethtool_rx_flow_spec *fs)
{
	const union zsim_rule *rule;

	if (fs->location >= ZSIM_RULES || !nic->rules[fs->location].port)
		return -ENOENT;
	rule = &nic->rules[fs->location];
	fs->ring_cookie = rule->queue;
	if (rule->version == 4) {
		fs->flow_type = TCP_V4_FLOW;
		fs->h_u.tcp_ip4_spec.pdst = rule->port;
		fs->m_u.tcp_ip4_spec.pdst = htons(0xffff);
	} else {
		fs->flow_type = TCP_V6_FLOW;
		fs->h_u.tcp_ip6_spec.pdst = rule->port;
		fs->m_u.tcp_ip6_spec.pdst = htons(0xffff);
	}
	return 0;
}

static int zsim_get_rxnfc(struct net_device *dev, struct ethtool_rxnfc *info,
			  u32 *locations)
{
	struct zsim_nic *nic = netdev_priv(dev);
	unsigned int i, count = 0;

	switch (info->cmd) {
	case ETHTOOL_GRXCLSRLCNT:
		for (i = 0; i < ZSIM_RULES; i++)
			count += !!nic->rules[i].port;
		info->rule_cnt = count;
		info->data = ZSIM_RULES | RX_CLS_LOC_SPECIAL;
		return 0;
	case ETHTOOL_GRXCLSRULE:
		return zsim_get_rule(nic, &info->fs);
	case ETHTOOL_GRXCLSRLALL:
		for (i = 0; i < ZSIM_RULES; i++) {
			if (!nic->rules[i].port)
				continue;
			if (count == info->rule_cnt)
				return -EMSGSIZE;
			locations[count++] = i;
		}
		info->rule_cnt = count;
		info->data = ZSIM_RULES;
		return 0;
	default:
		return -EOPNOTSUPP;
	}
}

/* Parses a rule, which may be for a destination port and nothing else. */
static int zsim_parse_rule(const struct ethtool_rx_flow_spec *fs,
			   union zsim_rule *rule)
{
	union ethtool_flow_union mask = fs->m_u;
	__be16 ports;

	switch (fs->flow_type) {
	case TCP_V4_FLOW:
		rule->version = 4;
		rule->port = fs->h_u.tcp_ip4_spec.pdst;
		ports = mask.tcp_ip4_spec.pdst;
		mask.tcp_ip4_spec.pdst = 0;
		break;
	case TCP_V6_FLOW:
		rule->version = 6;
		rule->port = fs->h_u.tcp_ip6_spec.pdst;
		ports = mask.tcp_ip6_spec.pdst;
		mask.tcp_ip6_spec.pdst = 0;
		break;
	default:
		return -EOPNOTSUPP;
	}
	if (ports != htons(0xffff) || memchr_inv(&mask, 0, sizeof(mask)))
		return -EOPNOTSUPP;
	return rule->port ? 0 : -EINVAL;
}

static int zsim_add_rule(struct zsim_nic *nic, struct ethtool_rx_flow_spec *fs)
{
	union zsim_rule rule = {};
	unsigned int at;
	int err;

	if (fs->ring_cookie >= nic->dev->real_num_rx_queues)
		return -EINVAL;
	err = zsim_parse_rule(fs, &rule);
	if (err)
		return err;
	rule.queue = fs->ring_cookie;

	at = fs->location;
	if (at & RX_CLS_LOC_SPECIAL) {
		for (at = 0; at < ZSIM_RULES && nic->rules[at].port;)
			at++;
	}
	if (at >= ZSIM_RULES)
		return -ENOSPC;
	WRITE_ONCE(nic->rules[at].word, rule.word);
	fs->location = at;
	return 0;
}

static int zsim_set_rxnfc(struct net_device *dev, struct ethtool_rxnfc *info)
{
	struct zsim_nic *nic = netdev_priv(dev);

	switch (info->cmd) {
	case ETHTOOL_SRXCLSRLINS:
		return zsim_add_rule(nic, &info->fs);
	case ETHTOOL_SRXCLSRLDEL:
		if (info->fs.location >= ZSIM_RULES ||
		    !nic->rules[info->fs.location].port)
			return -ENOENT;
		WRITE_ONCE(nic->rules[info->fs.location].word, 0);
		return 0;
	default:
		return -EOPNOTSUPP;
	}
}

static u32 zsim_get_rxfh_key_size(struct net_device *dev)
{
	return ZSIM_KEY;
}

static u32 zsim_get_rxfh_indir_size(struct net_device *dev)
{
	return ZSIM_INDIR;
}

static int zsim_get_rxfh(struct net_device *dev, struct ethtool_rxfh_param *rxfh)
{
	struct zsim_nic *nic = netdev_priv(dev);

	rxfh->hfunc = ETH_RSS_HASH_TOP;
	if (rxfh->indir)
		memcpy(rxfh->indir, nic->indir, sizeof(nic->indir));
	if (rxfh->key)
		memcpy(rxfh->key, nic->key, sizeof(nic->key));
	return 0;
}

/* The key is only stored: packets are steered by the hash of the kernel. */
static int zsim_set_rxfh(struct net_device *dev, struct ethtool_rxfh_param *rxfh,
			 struct netlink_ext_ack *extack)
{
	struct zsim_nic *nic = netdev_priv(dev);
	unsigned int i;

	if (rxfh->hfunc != ETH_RSS_HASH_NO_CHANGE && rxfh->hfunc != ETH_RSS_HASH_TOP)
		return -EOPNOTSUPP;
	for (i = 0; rxfh->indir && i < ZSIM_INDIR; i++)
		WRITE_ONCE(nic->indir[i], rxfh->indir[i]);
	if (rxfh->key)
		memcpy(nic->key, rxfh->key, sizeof(nic->key));
	return 0;
}

/* Statistics of each queue, in the order of struct zsim_queue_stats */
static const char * const zsim_stat_names[] = {
	"packets", "bytes", "niov_frags", "page_frags", "no_buffer", "alloc_fail", "overrun",
};

static int zsim_get_sset_count(struct net_device *dev, int set)
{
	BUILD_BUG_ON(ARRAY_SIZE(zsim_stat_names) * sizeof(u64) !=
		     sizeof(struct zsim_queue_stats));

	if (set != ETH_SS_STATS)
		return -EOPNOTSUPP;
	return ZSIM_QUEUES * ARRAY_SIZE(zsim_stat_names);
}

static void zsim_get_strings(struct net_device *dev, u32 set, u8 *data)
{
	unsigned int i, j;

	if (set != ETH_SS_STATS)
		return;
	for (i = 0; i < ZSIM_QUEUES; i++)
		for (j = 0; j < ARRAY_SIZE(zsim_stat_names); j++)
			ethtool_sprintf(&data, "rx%u_%s", i, zsim_stat_names[j]);
}

static void zsim_get_stats(struct net_device *dev, struct ethtool_stats *stats,
			   u64 *data)
{
	struct zsim_nic *nic = netdev_priv(dev);
	const u64 *from;
	unsigned int i, j;

	for (i = 0; i < ZSIM_QUEUES; i++) {
		from = (const u64 *)&nic->queues[i].stats;
		for (j = 0; j < ARRAY_SIZE(zsim_stat_names); j++)
			*data++ = READ_ONCE(from[j]);
	}
}

const struct ethtool_ops zsim_ethtool_ops = {
	.supported_ring_params	= ETHTOOL_RING_USE_TCP_DATA_SPLIT |
				  ETHTOOL_RING_USE_HDS_THRS,
	.op_needs_rtnl		= ETHTOOL_OP_NEEDS_RTNL_SCHANNELS,
	.get_drvinfo		= zsim_get_drvinfo,
	.get_link		= ethtool_op_get_link,
	.get_ringparam		= zsim_get_ringparam,
	.set_ringparam		= zsim_set_ringparam,
	.get_channels		= zsim_get_channels,
	.set_channels		= zsim_set_channels,
	.get_rx_ring_count	= zsim_get_rx_ring_count,
	.get_rxnfc		= zsim_get_rxnfc,
	.set_rxnfc		= zsim_set_rxnfc,
	.get_rxfh_key_size	= zsim_get_rxfh_key_size,
	.get_rxfh_indir_size	= zsim_get_rxfh_indir_size,
	.get_rxfh		= zsim_get_rxfh,
	.set_rxfh		= zsim_set_rxfh,
	.get_sset_count		= zsim_get_sset_count,
	.get_strings		= zsim_get_strings,
	.get_ethtool_stats	= zsim_get_stats,
};
