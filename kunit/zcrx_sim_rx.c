// SPDX-License-Identifier: GPL-2.0
/*
 * Receiving in the software NIC: a packet that the peer has sent is taken
 * apart, its payload is written into buffers of the queue's ring, and a new
 * packet is made of the headers and these buffers. Writing to buffers is in
 * zcrx_sim_dma.c.
 */

#include <linux/etherdevice.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <net/ip.h>
#include <net/page_pool/helpers.h>

#include "zcrx_sim.h"

/* The state of copying the payload of a packet. */
struct zsim_copy {
	struct zsim_queue	*queue;
	const struct sk_buff	*from;
	unsigned int		at;
	unsigned int		left;
	struct sk_buff		*head;	/* the packet that is being made */
	struct sk_buff		*skb;	/* the last part of that packet */
	bool			pages;
};

/* Finds the length of the headers of a TCP packet, and its destination port. */
void zsim_parse(const struct sk_buff *skb, struct zsim_flow *flow)
{
	unsigned int at = ETH_HLEN;
	union {
		struct ethhdr	eth;
		struct iphdr	ip;
		struct ipv6hdr	ip6;
		struct tcphdr	tcp;
	} space;
	const struct ipv6hdr *ip6;
	const struct tcphdr *tcp;
	const struct ethhdr *eth;
	const struct iphdr *ip;

	memset(flow, 0, sizeof(*flow));
	eth = skb_header_pointer(skb, 0, sizeof(*eth), &space);
	if (!eth)
		return;

	switch (eth->h_proto) {
	case htons(ETH_P_IP):
		ip = skb_header_pointer(skb, at, sizeof(*ip), &space);
		if (!ip || ip->protocol != IPPROTO_TCP || ip_is_fragment(ip))
			return;
		flow->version = 4;
		at += ip->ihl * 4;
		break;
	case htons(ETH_P_IPV6):
		ip6 = skb_header_pointer(skb, at, sizeof(*ip6), &space);
		if (!ip6 || ip6->nexthdr != IPPROTO_TCP)
			return;
		flow->version = 6;
		at += sizeof(*ip6);
		break;
	default:
		return;
	}

	tcp = skb_header_pointer(skb, at, sizeof(*tcp), &space);
	if (!tcp || tcp->doff * 4 < sizeof(*tcp) || at + tcp->doff * 4 > skb->len)
		return;
	flow->port = tcp->dest;
	flow->headers = at + tcp->doff * 4;
}

/* Returns the number of bytes of a packet that are not put into buffers. */
static unsigned int zsim_linear(const struct zsim_nic *nic,
				const struct sk_buff *skb)
{
	struct zsim_flow flow;

	if (!READ_ONCE(nic->split))
		return min(skb->len, ZSIM_COPYBREAK);

	zsim_parse(skb, &flow);
	if (!flow.headers || skb->len - flow.headers <= READ_ONCE(nic->hds_thresh))
		return skb->len;
	return flow.headers;
}

static void zsim_count_frag(struct zsim_queue *queue, netmem_ref netmem)
{
	if (netmem_is_net_iov(netmem))
		queue->stats.niov_frags++;
	else
		queue->stats.page_frags++;
}

/* Adds a page of payload that belongs to no pool. */
static int zsim_add_page(struct zsim_copy *copy)
{
	unsigned int len = min(copy->left, PAGE_SIZE);
	struct sk_buff *skb = copy->skb;
	struct page *page;

	page = alloc_page(GFP_ATOMIC | __GFP_NOWARN);
	if (!page)
		return -ENOMEM;
	WARN_ON_ONCE(skb_copy_bits(copy->from, copy->at, page_address(page), len));
	skb_add_rx_frag(skb, skb_shinfo(skb)->nr_frags, page, 0, len, PAGE_SIZE);
	zsim_count_frag(copy->queue, page_to_netmem(page));
	copy->at += len;
	copy->left -= len;
	return 0;
}

/* Returns the number of fragments for the @len bytes in one buffer. */
static unsigned int zsim_pieces(const struct zsim_copy *copy, unsigned int len)
{
	unsigned int pack = READ_ONCE(copy->queue->nic->port->knobs.pack);
	unsigned int others = DIV_ROUND_UP(copy->left - len, copy->queue->mem.buf_len);
	unsigned int room = MAX_SKB_FRAGS - skb_shinfo(copy->skb)->nr_frags;

	if (!pack || room <= others)
		return 1;
	return min(DIV_ROUND_UP(len, pack), room - others);
}

/* Adds the next buffer of the ring, with payload. */
static int zsim_add_buffer(struct zsim_copy *copy)
{
	struct zsim_queue_mem *mem = &copy->queue->mem;
	unsigned int len = min(copy->left, mem->buf_len);
	struct sk_buff *skb = copy->skb;
	unsigned int pieces, piece, offset, part;
	netmem_ref netmem;
	int err;

	if (!mem->filled)
		return -ENOBUFS;
	netmem = mem->ring[mem->head];
	mem->head = (mem->head + 1) % mem->size;
	mem->filled--;

	err = zsim_dma_write(copy->queue, mem->pool, netmem, 0, copy->from, copy->at, len);
	if (err) {
		page_pool_put_full_netmem(mem->pool, netmem, false);
		return err;
	}
	pieces = zsim_pieces(copy, len);
	piece = DIV_ROUND_UP(len, pieces);
	pieces = DIV_ROUND_UP(len, piece);
	page_pool_fragment_netmem(netmem, pieces);
	for (offset = 0; offset < len; offset += part) {
		part = min(piece, len - offset);
		skb_add_rx_frag_netmem(skb, skb_shinfo(skb)->nr_frags, netmem,
				       offset, part, mem->buf_len / pieces);
		zsim_count_frag(copy->queue, netmem);
	}
	copy->at += len;
	copy->left -= len;
	return 0;
}

/* Adds an skb to the list of the packet, for the payload that follows. */
static int zsim_next_part(struct zsim_copy *copy)
{
	struct sk_buff *part = napi_alloc_skb(&copy->queue->napi, 0);

	if (!part)
		return -ENOMEM;
	skb_mark_for_recycle(part);
	if (copy->skb == copy->head)
		skb_shinfo(copy->head)->frag_list = part;
	else
		copy->skb->next = part;
	copy->skb = part;
	return 0;
}

static int zsim_copy_payload(struct zsim_copy *copy)
{
	struct zsim_knobs *knobs = &copy->queue->nic->port->knobs;
	struct sk_buff *head = copy->head;
	unsigned int before, truesize;
	int err;

	while (copy->left) {
		if (READ_ONCE(knobs->frag_list) && skb_shinfo(copy->skb)->nr_frags) {
			err = zsim_next_part(copy);
			if (err)
				return err;
		}

		before = copy->left;
		truesize = copy->skb->truesize;
		if (copy->pages)
			err = zsim_add_page(copy);
		else
			err = zsim_add_buffer(copy);
		if (err)
			return err;

		if (copy->skb != head) {
			head->len += before - copy->left;
			head->data_len += before - copy->left;
			head->truesize += copy->skb->truesize - truesize;
		}
	}
	return 0;
}

/* Marks a packet that stands for many, as GRO or hardware with GRO does. */
static void zsim_copy_gso(struct sk_buff *skb, const struct sk_buff *from)
{
	if (!skb_is_gso(from))
		return;
	skb_shinfo(skb)->gso_size = skb_shinfo(from)->gso_size;
	skb_shinfo(skb)->gso_segs = skb_shinfo(from)->gso_segs;
	skb_shinfo(skb)->gso_type = skb_shinfo(from)->gso_type;
}

/* Makes a packet whose head is a buffer of the pool of headers. */
static struct sk_buff *zsim_header_skb(struct zsim_queue *queue,
				       const struct sk_buff *from, unsigned int len)
{
	struct page_pool *pool = queue->mem.headers;
	struct sk_buff *skb;
	netmem_ref netmem;

	netmem = page_pool_alloc_netmems(pool, GFP_ATOMIC | __GFP_NOWARN);
	if (!netmem)
		return NULL;
	if (zsim_dma_write(queue, pool, netmem, NET_SKB_PAD, from, 0, len))
		goto err_put;
	skb = napi_build_skb(netmem_address(netmem), PAGE_SIZE);
	if (!skb)
		goto err_put;
	skb_mark_for_recycle(skb);
	skb_reserve(skb, NET_SKB_PAD);
	skb_put(skb, len);
	return skb;

err_put:
	page_pool_put_full_netmem(pool, netmem, false);
	return NULL;
}

/* Makes a packet of the first @len bytes, which are not put into buffers. */
static struct sk_buff *zsim_head(struct zsim_queue *queue,
				 const struct sk_buff *from, unsigned int len)
{
	struct sk_buff *skb;

	if (queue->mem.headers && SKB_HEAD_ALIGN(NET_SKB_PAD + len) <= PAGE_SIZE)
		return zsim_header_skb(queue, from, len);

	skb = napi_alloc_skb(&queue->napi, len);
	if (!skb)
		return NULL;
	skb_mark_for_recycle(skb);
	WARN_ON_ONCE(skb_copy_bits(from, 0, skb_put(skb, len), len));
	return skb;
}

static void zsim_receive(struct zsim_queue *queue, const struct sk_buff *from)
{
	struct zsim_copy copy = { .queue = queue, .from = from };
	struct zsim_queue_mem *mem = &queue->mem;
	struct net_device *dev = queue->nic->dev;
	struct sk_buff *skb;
	unsigned int needed;
	u32 retries;

	copy.at = zsim_linear(queue->nic, from);
	copy.left = from->len - copy.at;
	copy.pages = copy.left && zsim_knob(queue, &queue->nic->port->knobs.page_frags);

	needed = copy.pages ? 0 : DIV_ROUND_UP(copy.left, mem->buf_len);
	if (mem->filled < max(needed, mem->size / 2))
		zsim_refill(queue, GFP_ATOMIC);
	retries = READ_ONCE(queue->nic->port->knobs.retry);
	for (; mem->filled < needed && retries; retries--)
		zsim_refill(queue, GFP_ATOMIC);
	if (mem->filled < needed)
		goto drop;

	skb = zsim_head(queue, from, copy.at);
	if (!skb)
		goto drop;
	copy.head = skb;
	copy.skb = skb;
	if (zsim_copy_payload(&copy)) {
		dev_kfree_skb_any(skb);
		goto drop;
	}

	queue->stats.packets++;
	queue->stats.bytes += from->len;
	dev_sw_netstats_rx_add(dev, from->len);
	zsim_copy_gso(skb, from);
	skb->ip_summed = CHECKSUM_UNNECESSARY;
	skb_record_rx_queue(skb, queue->index);
	skb->protocol = eth_type_trans(skb, dev);
	napi_gro_receive(&queue->napi, skb);
	return;
drop:
	queue->stats.no_buffer++;
	dev_core_stats_rx_dropped_inc(dev);
}

int zsim_poll(struct napi_struct *napi, int budget)
{
	struct zsim_queue *queue = container_of(napi, struct zsim_queue, napi);
	struct sk_buff *skb;
	int done = 0;

	if (budget)
		zsim_refill(queue, GFP_ATOMIC);
	for (; done < budget; done++) {
		skb = skb_dequeue(&queue->backlog);
		if (!skb)
			break;
		zsim_receive(queue, skb);
		napi_consume_skb(skb, budget);
	}
	if (done)
		zsim_refill(queue, GFP_ATOMIC);
	if (done < budget)
		napi_complete_done(napi, done);
	return done;
}
