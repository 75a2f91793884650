// SPDX-License-Identifier: GPL-2.0

#include <linux/io_uring_types.h>
#include <linux/mm.h>
#include <linux/sched/user.h>
#include "../../io_uring/io_uring.h"
#include "../../io_uring/memmap.h"
#include "../../io_uring/rsrc.h"

__rust_helper struct user_struct *rust_helper_get_uid(struct user_struct *u)
{
	return get_uid(u);
}

__rust_helper struct folio *rust_helper_page_folio(struct page *page)
{
	return page_folio(page);
}

__rust_helper unsigned long
rust_helper_folio_nr_pages(const struct folio *folio)
{
	return folio_nr_pages(folio);
}
