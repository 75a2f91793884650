// SPDX-License-Identifier: GPL-2.0

#include <linux/netdevice.h>
#include <net/netlink.h>

#ifdef CONFIG_PAGE_POOL

__rust_helper void rust_helper_netdev_hold(struct net_device *dev,
					   netdevice_tracker *tracker,
					   gfp_t gfp)
{
	netdev_hold(dev, tracker, gfp);
}

__rust_helper void rust_helper_netdev_put(struct net_device *dev,
					  netdevice_tracker *tracker)
{
	netdev_put(dev, tracker);
}

__rust_helper void rust_helper_netdev_lock(struct net_device *dev)
{
	netdev_lock(dev);
}

__rust_helper void rust_helper_netdev_unlock(struct net_device *dev)
{
	netdev_unlock(dev);
}

__rust_helper struct nlattr *rust_helper_nla_nest_start(struct sk_buff *skb,
							int attrtype)
{
	return nla_nest_start(skb, attrtype);
}

__rust_helper int rust_helper_nla_nest_end(struct sk_buff *skb,
					   struct nlattr *start)
{
	return nla_nest_end(skb, start);
}

__rust_helper void rust_helper_nla_nest_cancel(struct sk_buff *skb,
					       struct nlattr *start)
{
	nla_nest_cancel(skb, start);
}

__rust_helper int rust_helper_nla_put_uint(struct sk_buff *skb, int attrtype,
					   u64 value)
{
	return nla_put_uint(skb, attrtype, value);
}

#endif
