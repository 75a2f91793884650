/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Declarations that are shared by the files of the software NIC, which is for
 * tests of io_uring's zero-copy receive.
 *
 * A port is a slot with, most of the time, a network device in it. The slot is
 * a platform device or one of QEMU's PCI devices, and exists as long as the
 * module. The network device can be unplugged and plugged in again. Two ports
 * are linked for good.
 *
 * Locks: opening, queue management and ethtool run under the instance lock of
 * the network device. A port sends a packet by putting it into the backlog of a
 * queue of its peer, under the backlog's lock and only while that queue is up.
 * The timer that delays the queue's interrupt is started under the same lock.
 * Only the queue's NAPI takes packets out of the backlog, accesses the queue's
 * ring, and changes the queue's counters, except for overrun.
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
/* The largest packet to send, which fits into 15 buffers of a page. */
#define ZSIM_TSO_MAX		(15 * 4096)
/* Bytes that stay out of buffers if headers are not split off */
#define ZSIM_COPYBREAK		256

/*
 * Misbehaviour that debugfs asks for. A counter is the number of times that it
 * is to happen from now on, on queues that are not spared; below 0 means
 * always.
 */
struct zsim_knobs {
	atomic_t	page_frags;	/* payload goes into pages of no pool */
	atomic_t	fail_alloc;	/* allocating a buffer fails */
	atomic_t	fail_mem_alloc;	/* preparing a queue fails */
	atomic_t	fail_start;	/* starting a queue fails */
	atomic_t	fail_stop;	/* stopping a queue fails */
	u32		spared;		/* bitmask of queues left alone */
	u32		fail_close;	/* errno for removal of a provider */
	u32		retry;		/* extra refills if buffers run out */
	u32		delay;		/* delay of interrupts, in us */
	u32		pack;		/* bytes per fragment in a buffer */
	u32		pool_order;	/* order by which pages are too large */
	bool		pool_bidirectional;
	bool		pool_unmapped;	/* pools map nothing for the device */
	bool		pool_foreign;	/* pools map for the peer's device */
	bool		ignore_provider;
	bool		frag_list;	/* one skb for each further buffer */
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

/* A queue's memory, which the core can replace while the queue runs. */
struct zsim_queue_mem {
	struct page_pool	*pool;
	struct page_pool	*headers;	/* never in provided memory; may be NULL */
	netmem_ref		*ring;		/* the device's buffers */
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
	u64	no_buffer;	/* packets dropped: no buffer, or a fault */
	u64	alloc_fail;	/* refills that did not fill the ring */
	u64	overrun;	/* packets dropped: backlog full or down */
};

struct zsim_queue {
	struct zsim_nic		*nic;
	unsigned int		index;
	bool			up;		/* under backlog.lock */
	struct zsim_queue_mem	mem;
	struct napi_struct	napi;
	struct hrtimer		interrupt;	/* delays the interrupt */
	struct sk_buff_head	backlog;
	struct zsim_queue_stats	stats;
};

/* A rule that steers a flow to a queue. Port 0 is none. Read without locks. */
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

/* The flow that the headers of a packet belong to. */
struct zsim_flow {
	unsigned int	headers;	/* bytes before TCP's payload, or 0 */
	u8		version;
	__be16		port;
};

/* Returns whether a knob asks @queue to misbehave now, and counts that. */
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
