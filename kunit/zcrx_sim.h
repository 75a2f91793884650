/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A software NIC for tests of io_uring's zero-copy receive: what its files share.
 *
 * A port is a slot, which is a platform device or one of QEMU's PCI devices and
 * there for as long as the module, and most of the time with a network device in
 * it, which can be pulled out and put in again. Two ports are linked for good.
 *
 * Locks: opening, queue management and ethtool run under the network device's
 * instance lock. What a port sends is put into the backlog of a queue of its
 * peer, under the backlog's lock and only while that queue is up, and so is the
 * timer started that holds its interrupt back; the queue's NAPI alone takes it
 * out, and has the queue's ring to itself, and all counters but overrun.
 */
#ifndef _IO_URING_ZCRX_SIM_H
#define _IO_URING_ZCRX_SIM_H

#include <linux/atomic.h>
#include <linux/bits.h>
#include <linux/ethtool.h>
#include <linux/hrtimer.h>
#include <linux/netdevice.h>
#include <linux/skbuff.h>
#include <net/netdev_queues.h>
#include <net/netmem.h>

struct dentry;
struct device;
struct page_pool;

#define ZSIM_QUEUES		4
#define ZSIM_RULES		16
#define ZSIM_INDIR		128
#define ZSIM_KEY		40
#define ZSIM_RING_DEFAULT	64
#define ZSIM_RING_MAX		1024
#define ZSIM_BACKLOG		1024
#define ZSIM_THRESH_MAX		1024
#define ZSIM_MTU_MAX		9000
/* What is sent at once fits into so many buffers of a page. */
#define ZSIM_TSO_MAX		(15 * 4096)
/* How much of a packet that is not split is not in a buffer. */
#define ZSIM_COPYBREAK		256

/*
 * Misbehaviour to order, from debugfs. Counters say how often it is to happen
 * from now on, on queues that are not spared; below 0 is always.
 */
struct zsim_knobs {
	atomic_t	page_frags;	/* payload goes into pages of nobody's */
	atomic_t	fail_alloc;	/* a buffer cannot be had */
	atomic_t	fail_mem_alloc;	/* a queue cannot be prepared, */
	atomic_t	fail_start;	/* started, */
	atomic_t	fail_stop;	/* or stopped */
	u32		spared;		/* queues, a bit each, that counters leave alone */
	u32		fail_close;	/* errno of taking provided memory off a queue */
	u32		retry;		/* refills more that a packet without buffers tries */
	u32		delay;		/* us that the interrupt for a packet is late */
	u32		pack;		/* bytes per fragment, several in a buffer */
	u32		pool_order;	/* how much larger pages are than asked for */
	bool		pool_bidirectional;
	bool		pool_unmapped;	/* pools map nothing for the device, */
	bool		pool_foreign;	/* or map it for the one of the other port */
	bool		ignore_provider;
	bool		frag_list;	/* each further buffer in a packet of its own */
	bool		header_ring;	/* headers go into buffers of another pool */
};

struct zsim_port {
	struct device			*slot;
	struct zsim_port		*peer;
	struct net_device __rcu		*dev;
	unsigned int			number;
	struct zsim_knobs		knobs;
	atomic_t			dma_faults;
};

/* What the core has allocated and freed beside a queue that runs. */
struct zsim_queue_mem {
	struct page_pool	*pool;
	struct page_pool	*headers;	/* never in provided memory; may be NULL */
	netmem_ref		*ring;		/* of buffers for the device */
	unsigned int		size;
	unsigned int		head;
	unsigned int		filled;
	unsigned int		buf_len;
};

struct zsim_queue_stats {
	u64	packets;
	u64	bytes;
	u64	niov_frags;	/* fragments in memory of a provider */
	u64	page_frags;	/* fragments in pages */
	u64	no_buffer;	/* packets dropped for want of a buffer */
	u64	alloc_fail;	/* times that a refill ended before the ring was full */
	u64	overrun;	/* packets dropped as the backlog was full */
};

struct zsim_queue {
	struct zsim_nic		*nic;
	unsigned int		index;
	bool			up;		/* under backlog.lock */
	struct zsim_queue_mem	mem;
	struct napi_struct	napi;
	struct hrtimer		interrupt;	/* while it is held back */
	struct sk_buff_head	backlog;
	struct zsim_queue_stats	stats;
};

/* A flow that is to go to a queue; port 0 is none. Read without a lock. */
union zsim_rule {
	struct {
		__be16	port;
		u8	version;	/* of IP */
		u8	queue;
	};
	u32	word;
};

struct zsim_nic {
	struct zsim_port	*port;
	struct net_device	*dev;
	unsigned int		ring_size;
	bool			split;
	u32			hds_thresh;
	union zsim_rule		rules[ZSIM_RULES];
	u32			indir[ZSIM_INDIR];
	u8			key[ZSIM_KEY];
	struct zsim_queue	queues[ZSIM_QUEUES];
};

/* What a packet's headers say. */
struct zsim_flow {
	unsigned int	headers;	/* bytes up to TCP's payload, or 0 */
	u8		version;
	__be16		port;
};

/* Whether a knob asks for misbehaviour of a queue now. */
static inline bool zsim_knob(const struct zsim_queue *queue, atomic_t *knob)
{
	if (READ_ONCE(queue->nic->port->knobs.spared) & BIT(queue->index))
		return false;
	return atomic_read(knob) < 0 || atomic_dec_if_positive(knob) >= 0;
}

/* zcrx_sim_slot.c */
int zsim_slots_register(void);
void zsim_slots_unregister(void);
int zsim_slot_add(struct zsim_port *port);
void zsim_slot_remove(struct zsim_port *port);

/* zcrx_sim_port.c */
int zsim_plug(struct zsim_port *port);
void zsim_unplug(struct zsim_port *port);
struct zsim_port *zsim_port_on(const struct device *slot);

/* zcrx_sim_queue.c */
extern const struct netdev_queue_mgmt_ops zsim_queue_ops;
extern const struct netdev_queue_mgmt_ops zsim_queue_ops_page_only;
void zsim_refill(struct zsim_queue *queue, gfp_t gfp);
void zsim_queue_init(struct zsim_nic *nic, unsigned int index);
int zsim_queue_open(struct zsim_queue *queue);
void zsim_queue_close(struct zsim_queue *queue);
int zsim_queue_reset(struct zsim_queue *queue);

/* zcrx_sim_rx.c */
void zsim_parse(const struct sk_buff *skb, struct zsim_flow *flow);
int zsim_poll(struct napi_struct *napi, int budget);

/* zcrx_sim_dma.c */
bool zsim_has_iommu(const struct zsim_port *port);
int zsim_dma_write(struct zsim_queue *queue, struct page_pool *pool,
		   netmem_ref netmem, unsigned int offset,
		   const struct sk_buff *skb, unsigned int at, unsigned int len);

/* zcrx_sim_ethtool.c */
extern const struct ethtool_ops zsim_ethtool_ops;
int zsim_set_queues(struct net_device *dev, unsigned int count);
void zsim_spread(struct zsim_nic *nic, unsigned int queues);
struct zsim_queue *zsim_steer(struct zsim_nic *nic, struct sk_buff *skb,
			      const struct zsim_flow *flow);

/* zcrx_sim_debugfs.c */
void zsim_debugfs_add(struct zsim_port *port, struct dentry *parent);

#endif
