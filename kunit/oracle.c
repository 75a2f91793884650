// SPDX-License-Identifier: GPL-2.0
/*
 * The C implementation of io_uring's filters, built beside the Rust one under
 * other names, so that tests can compare the two: see oracle_test.c.
 */
#include <linux/kernel.h>
#include <linux/io_uring.h>
#include <linux/socket.h>
#include <uapi/linux/io_uring.h>

#include "oracle.h"

/* With these, bpf_filter.h declares the other names as well. */
#define __io_uring_run_bpf_filters	oracle_run_bpf_filters
#define io_register_bpf_filter		oracle_register_bpf_filter
#define io_put_bpf_filters		oracle_put_bpf_filters
#define io_bpf_filter_clone		oracle_bpf_filter_clone

#include "../../io_uring/io_uring.h"
#include "../../io_uring/opdef.h"

/* The real table is not used, because its callbacks are in Rust. */
static const struct io_issue_def oracle_issue_defs[IORING_OP_LAST];

#define io_issue_defs			oracle_issue_defs

#include "../../io_uring/bpf_filter.c"

/*
 * Callbacks that write the arguments of a request that filters must see, byte
 * by byte at the offsets of the uapi.
 */
static void oracle_socket_populate(struct io_uring_bpf_ctx *bctx,
				   struct io_kiocb *req)
{
	const struct io_socket *cmd = io_kiocb_to_cmd(req, struct io_socket);
	const u32 words[] = { cmd->domain, cmd->type & 0xf, cmd->protocol };

	memcpy((u8 *)bctx + 16, words, sizeof(words));
}

static void oracle_openat_populate(struct io_uring_bpf_ctx *bctx,
				   struct io_kiocb *req)
{
	const struct io_open *cmd = io_kiocb_to_cmd(req, struct io_open);

	memcpy((u8 *)bctx + 16, &cmd->how, 24);
}

static void oracle_connect_populate(struct io_uring_bpf_ctx *bctx,
				    struct io_kiocb *req)
{
	const struct io_connect *cmd = io_kiocb_to_cmd(req, struct io_connect);
	const u8 *addr = req->async_data;
	u8 *pdu = (u8 *)bctx + 16;
	u16 family = 0;
	u32 word;

	if (cmd->addr_len >= 2)
		memcpy(&family, addr, 2);
	word = family;
	memcpy(pdu, &word, 4);

	if (family == AF_INET && cmd->addr_len >= 16) {
		memcpy(pdu + 4, addr + 2, 2);
		memcpy(pdu + 8, addr + 4, 4);
	} else if (family == AF_INET6 && cmd->addr_len >= 24) {
		memcpy(pdu + 4, addr + 2, 2);
		memcpy(pdu + 8, addr + 8, 16);
	}
}

static const struct io_issue_def oracle_issue_defs[IORING_OP_LAST] = {
	[IORING_OP_CONNECT] = {
		.filter_pdu_size	= sizeof_field(struct io_uring_bpf_ctx, connect),
		.filter_populate	= oracle_connect_populate,
	},
	[IORING_OP_SOCKET] = {
		.filter_pdu_size	= sizeof_field(struct io_uring_bpf_ctx, socket),
		.filter_populate	= oracle_socket_populate,
	},
	[IORING_OP_OPENAT] = {
		.filter_pdu_size	= sizeof_field(struct io_uring_bpf_ctx, open),
		.filter_populate	= oracle_openat_populate,
	},
	[IORING_OP_OPENAT2] = {
		.filter_pdu_size	= sizeof_field(struct io_uring_bpf_ctx, open),
		.filter_populate	= oracle_openat_populate,
	},
};
