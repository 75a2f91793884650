// SPDX-License-Identifier: GPL-2.0

#include <linux/mm.h>
#include <linux/skbuff.h>

__rust_helper unsigned int rust_helper_skb_headlen(const struct sk_buff *skb)
{
	return skb_headlen(skb);
}

__rust_helper struct skb_shared_info *
rust_helper_skb_shinfo(const struct sk_buff *skb)
{
	return skb_shinfo(skb);
}

__rust_helper int rust_helper_skb_tailroom(const struct sk_buff *skb)
{
	return skb_tailroom(skb);
}

__rust_helper struct page *rust_helper_skb_frag_page(const skb_frag_t *frag)
{
	return skb_frag_page(frag);
}

__rust_helper struct net_iov *
rust_helper_skb_frag_net_iov(const skb_frag_t *frag)
{
	return skb_frag_net_iov(frag);
}

__rust_helper unsigned int rust_helper_skb_frag_off(const skb_frag_t *frag)
{
	return skb_frag_off(frag);
}

__rust_helper unsigned int rust_helper_skb_frag_size(const skb_frag_t *frag)
{
	return skb_frag_size(frag);
}

__rust_helper int rust_helper_PageHighMem(const struct page *page)
{
	return PageHighMem(page);
}

__rust_helper void *rust_helper_lowmem_page_address(const struct page *page)
{
	return lowmem_page_address(page);
}

__rust_helper void rust_helper_put_page(struct page *page)
{
	put_page(page);
}

__rust_helper void rust_helper_skb_add_rx_frag_netmem(struct sk_buff *skb,
						      int i, netmem_ref netmem,
						      int off, int size,
						      unsigned int truesize)
{
	skb_add_rx_frag_netmem(skb, i, netmem, off, size, truesize);
}
