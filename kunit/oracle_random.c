// SPDX-License-Identifier: GPL-2.0
/*
 * Random filters and requests for oracle_test.c. Most programs are valid and
 * decide on values in which requests differ. The kernel refuses a few others.
 */
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/io_uring.h>

#include "../../io_uring/io_uring.h"
#include "../../io_uring/bpf_filter.h"
#include "../../io_uring/net.h"
#include "../../io_uring/openclose.h"
#include "oracle.h"

static u32 rnd(struct oracle *o)
{
	return prandom_u32_state(&o->rnd);
}

/* Returns a random number below @ceil, which must not be zero. */
u32 oracle_below(struct oracle *o, u32 ceil)
{
	return rnd(o) % ceil;
}

bool oracle_percent(struct oracle *o, u32 chance)
{
	return oracle_below(o, 100) < chance;
}

u64 oracle_rnd64(struct oracle *o)
{
	return (u64)rnd(o) << 32 | rnd(o);
}

/* Returns a number that is likely to make a difference to some verdict. */
static u32 constant(struct oracle *o)
{
	static const u32 special[] = {
		AF_INET, AF_INET6, 12, 24, 31, 32, 40, 0xff, 0xffff,
		0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff,
	};

	switch (oracle_below(o, 8)) {
	case 0:
		return o->opcodes[oracle_below(o, 2)];
	case 1:
		return oracle_below(o, 4);
	case 2:
		return lower_32_bits(o->user_data[oracle_below(o, 4)]);
	case 3:
		return upper_32_bits(o->user_data[oracle_below(o, 4)]);
	case 4:
		return oracle_below(o, 64);
	case 5:
		return BIT(oracle_below(o, 32));
	case 6:
		return special[oracle_below(o, ARRAY_SIZE(special))];
	default:
		return rnd(o);
	}
}

static u32 context_offset(struct oracle *o)
{
	static const u8 usual[] = { 0, 4, 8, 16, 20, 24 };

	if (oracle_percent(o, 75))
		return usual[oracle_below(o, ARRAY_SIZE(usual))];
	return oracle_below(o, sizeof(struct io_uring_bpf_ctx) / 4) * 4;
}

/* Returns a distance to jump, up to @max, and short in most cases. */
static u32 distance(struct oracle *o, u32 max)
{
	return oracle_below(o, oracle_percent(o, 85) ? min(max, 4u) + 1 : max + 1);
}

static struct sock_filter random_alu(struct oracle *o)
{
	static const u16 ops[] = {
		BPF_ADD, BPF_SUB, BPF_MUL, BPF_DIV, BPF_AND, BPF_OR, BPF_XOR,
		BPF_LSH, BPF_RSH,
	};
	u16 op = ops[oracle_below(o, ARRAY_SIZE(ops))];
	u32 k = constant(o);

	if (oracle_percent(o, 40))
		return (struct sock_filter)BPF_STMT(BPF_ALU | op | BPF_X,
						    oracle_percent(o, 90) ? 0 : k);
	if (op == BPF_DIV && !k)
		k = 1;
	if (op == BPF_LSH || op == BPF_RSH)
		k %= 32;
	return (struct sock_filter)BPF_STMT(BPF_ALU | op | BPF_K, k);
}

static struct sock_filter random_jump(struct oracle *o, u32 max)
{
	static const u16 ops[] = { BPF_JEQ, BPF_JGT, BPF_JGE, BPF_JSET };
	u16 code = BPF_JMP | ops[oracle_below(o, ARRAY_SIZE(ops))];
	u8 jt, jf;

	if (oracle_percent(o, 5))
		return (struct sock_filter)BPF_STMT(BPF_JMP | BPF_JA,
						    distance(o, max));
	max = min(max, 255u);
	jt = distance(o, max);
	jf = oracle_percent(o, 50) ? 0 : distance(o, max);
	code |= oracle_percent(o, 35) ? BPF_X : BPF_K;
	return (struct sock_filter)BPF_JUMP(code, constant(o), jt, jf);
}

/*
 * Returns an instruction that is not the last one. It may jump over up to @max
 * others, and load the words of M[] in @stored.
 */
static struct sock_filter random_insn(struct oracle *o, u16 stored, u32 max)
{
	u16 load = oracle_percent(o, 60) ? BPF_LD : BPF_LDX;
	u32 slot;

	switch (oracle_below(o, 32)) {
	case 0 ... 6:
		return (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
						    context_offset(o));
	case 7:
		return (struct sock_filter)BPF_STMT(load | BPF_W | BPF_LEN, 0);
	case 8 ... 9:
		return (struct sock_filter)BPF_STMT(load | BPF_IMM, constant(o));
	case 10 ... 12:
		for (slot = oracle_below(o, BPF_MEMWORDS); stored; slot++) {
			slot %= BPF_MEMWORDS;
			if (stored & BIT(slot))
				return (struct sock_filter)
					BPF_STMT(load | BPF_MEM, slot);
		}
		fallthrough;
	case 13 ... 15:
		return (struct sock_filter)BPF_STMT(oracle_percent(o, 60) ? BPF_ST : BPF_STX,
						    oracle_below(o, BPF_MEMWORDS));
	case 16:
		return (struct sock_filter)BPF_STMT(BPF_ALU | BPF_NEG, 0);
	case 17 ... 18:
		return (struct sock_filter)BPF_STMT(BPF_MISC | BPF_TAX, 0);
	case 19:
		return (struct sock_filter)BPF_STMT(BPF_MISC | BPF_TXA, 0);
	case 20 ... 24:
		return random_jump(o, max);
	default:
		return random_alu(o);
	}
}

static struct sock_filter random_ret(struct oracle *o)
{
	u32 k;

	if (oracle_percent(o, 40))
		return (struct sock_filter)BPF_STMT(BPF_RET | BPF_A, 0);
	k = oracle_below(o, 5);
	return (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, k > 3 ? rnd(o) : !!k);
}

static void random_program(struct oracle *o, struct program *p)
{
	u16 *masks = o->masks, stored = 0;
	u32 pc, max;

	p->len = 1 + oracle_below(o, oracle_percent(o, 95) ? 40 : LEN_MAX);
	memset(masks, 0xff, sizeof(o->masks));

	for (pc = 0; pc + 1 < p->len; pc++) {
		struct sock_filter *insn = &p->insns[pc];

		max = p->len - pc - 2;
		stored &= masks[pc];
		*insn = oracle_percent(o, 2) ? random_ret(o) :
					random_insn(o, stored, max);

		switch (BPF_CLASS(insn->code)) {
		case BPF_ST:
		case BPF_STX:
			stored |= BIT(insn->k);
			break;
		case BPF_JMP:
			if (BPF_OP(insn->code) == BPF_JA) {
				masks[pc + 1 + insn->k] &= stored;
			} else {
				masks[pc + 1 + insn->jt] &= stored;
				masks[pc + 1 + insn->jf] &= stored;
			}
			stored = ~0;
			break;
		}
	}
	p->insns[pc] = random_ret(o);

	/* Often, some bits of the computed number decide. */
	if (pc && oracle_percent(o, 40)) {
		struct sock_filter *insn = &p->insns[pc - 1];

		/* Stores and loads stay, so that loads from M[] stay valid. */
		if (BPF_CLASS(insn->code) == BPF_ALU ||
		    BPF_CLASS(insn->code) == BPF_JMP)
			*insn = (struct sock_filter)
				BPF_STMT(BPF_ALU | BPF_AND | BPF_K,
					 oracle_percent(o, 25) ? BIT(oracle_below(o, 32)) :
							  rnd(o) & rnd(o));
		p->insns[pc] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_A, 0);
	}
}

/* Changes a valid program in a way that mostly makes it invalid. */
static void break_program(struct oracle *o, struct program *p)
{
	struct sock_filter *insn = &p->insns[oracle_below(o, p->len)];
	struct sock_filter *last = &p->insns[p->len - 1];
	u32 k = constant(o);

	switch (oracle_below(o, 14)) {
	case 0:
		insn->code = rnd(o);
		break;
	case 1:
		insn->code = oracle_below(o, 256);
		break;
	case 2:
		*insn = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
						     oracle_percent(o, 50) ? oracle_below(o, 40) :
						     40 + oracle_below(o, 5));
		break;
	case 3:
		*insn = (struct sock_filter)
			BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
				 oracle_percent(o, 50) ? SKF_AD_OFF + oracle_below(o, 72) : k);
		break;
	case 4:
		*insn = (struct sock_filter)
			BPF_STMT(BPF_JMP | BPF_JA, oracle_percent(o, 50) ?
				 last - insn : (u32)(insn - last) + k % 3);
		break;
	case 5:
		*insn = (struct sock_filter)
			BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, k,
				 min(last - insn, 255), oracle_below(o, 2));
		break;
	case 6:
		*insn = (struct sock_filter)
			BPF_JUMP(BPF_JMP | BPF_JSET | BPF_X, k, 0,
				 min(last - insn, 255));
		break;
	case 7:
		*last = random_alu(o);
		break;
	case 8:
		*insn = (struct sock_filter)
			BPF_STMT(BPF_ALU | BPF_MOD | (k & BPF_X), k | 1);
		break;
	case 9:
		insn = p->insns;
		*insn = (struct sock_filter)
			BPF_STMT((k & 1 ? BPF_LD : BPF_LDX) | BPF_MEM, oracle_below(o, 20));
		break;
	case 10:
		*insn = (struct sock_filter)
			BPF_STMT((k & 1 ? BPF_ST : BPF_STX), BPF_MEMWORDS + k % 3);
		break;
	case 11:
		*insn = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_DIV | BPF_K, 0);
		break;
	case 12:
		*insn = (struct sock_filter)
			BPF_STMT(BPF_ALU | (k & 1 ? BPF_LSH : BPF_RSH) | BPF_K,
				 32 + oracle_below(o, 3));
		break;
	default:
		*insn = (struct sock_filter)
			BPF_STMT((k & 1 ? BPF_LD : BPF_LDX) |
				 (k & 2 ? BPF_H : BPF_B) |
				 (k & 4 ? BPF_ABS : k & 8 ? BPF_IND : BPF_MSH),
				 oracle_below(o, 40));
		break;
	}
}

/* Changes a valid argument in a way that mostly makes it invalid. */
static void break_arg(struct oracle *o, struct io_uring_bpf *arg)
{
	switch (oracle_below(o, 10)) {
	case 0:
		arg->cmd_type = oracle_percent(o, 50) ? oracle_below(o, 2) : rnd(o);
		/* These commands exist in Rust only. */
		if (arg->cmd_type == IO_URING_BPF_CMD_REGISTER ||
		    arg->cmd_type == IO_URING_BPF_CMD_SETUP)
			arg->cmd_type = 0;
		break;
	case 1:
		arg->cmd_flags = BIT(oracle_below(o, 16));
		break;
	case 2:
		arg->resv = BIT(oracle_below(o, 32));
		break;
	case 3:
		arg->filter.opcode = IORING_OP_LAST - 1 + oracle_below(o, 3);
		break;
	case 4:
		arg->filter.flags |= BIT(oracle_below(o, 32));
		break;
	case 5:
		arg->filter.filter_len = oracle_percent(o, 40) ? 0 : BPF_MAXINSNS + 1;
		if (oracle_percent(o, 30))
			arg->filter.filter_len += oracle_below(o, 1 << 17);
		break;
	case 6:
		arg->filter.resv[oracle_below(o, 3)] = 1 + oracle_below(o, 255);
		break;
	case 7:
		arg->filter.resv2[oracle_below(o, 5)] = BIT_ULL(oracle_below(o, 64));
		break;
	case 8:
		arg->filter.filter_ptr = oracle_percent(o, 50) ? oracle_below(o, 3) :
					 oracle_rnd64(o) | BIT_ULL(63);
		break;
	default:
		arg->filter.pdu_size = oracle_below(o, 256);
		break;
	}
}

void oracle_random_filter(struct oracle *o, struct program *p)
{
	static const u8 sizes[] = { 0, 1, 11, 12, 23, 24, 25, 255 };
	struct io_uring_bpf_filter *filter = &p->arg.filter;

	random_program(o, p);
	if (oracle_percent(o, 7))
		break_program(o, p);

	memset(&p->arg, 0, sizeof(p->arg));
	p->arg.cmd_type = IO_URING_BPF_CMD_FILTER;
	filter->opcode = o->opcodes[oracle_below(o, 2)];
	filter->filter_len = p->len;
	filter->filter_ptr = (uintptr_t)o->insns;
	if (oracle_percent(o, 10))
		filter->flags |= IO_URING_BPF_FILTER_DENY_REST;
	if (oracle_percent(o, 3))
		filter->flags |= IO_URING_BPF_FILTER_SZ_STRICT;
	if (oracle_percent(o, 4))
		filter->pdu_size = sizes[oracle_below(o, ARRAY_SIZE(sizes))];
	if (oracle_percent(o, 3))
		break_arg(o, &p->arg);
}

void oracle_random_request(struct oracle *o)
{
	static const u8 families[] = { AF_UNSPEC, AF_UNIX, AF_NETLINK };
	struct io_kiocb *req = &o->req;
	struct io_connect *connect;
	struct io_socket *sock;
	struct io_open *open;
	/* No request has this bit: it is neither an SQE's nor the kernel's. */
	u64 flags = oracle_rnd64(o) & ~(u64)0x80;

	prandom_bytes_state(&o->rnd, &req->cmd, sizeof(req->cmd));
	req->opcode = oracle_percent(o, 90) ? o->opcodes[oracle_below(o, 2)] :
				       oracle_below(o, IORING_OP_LAST);
	req->cqe.user_data = oracle_percent(o, 75) ? o->user_data[oracle_below(o, 4)] :
			     oracle_rnd64(o);
	if (oracle_percent(o, 50))
		flags &= SQE_VALID_FLAGS;
	req->flags = (__force io_req_flags_t)flags;

	switch (req->opcode) {
	case IORING_OP_SOCKET:
		sock = io_kiocb_to_cmd(req, struct io_socket);
		sock->domain = constant(o);
		sock->type = constant(o);
		sock->protocol = constant(o);
		break;
	case IORING_OP_OPENAT:
	case IORING_OP_OPENAT2:
		open = io_kiocb_to_cmd(req, struct io_open);
		open->how.flags = (u64)constant(o) << 32 | constant(o);
		open->how.mode = (u64)constant(o) << 32 | constant(o);
		open->how.resolve = (u64)constant(o) << 32 | constant(o);
		break;
	case IORING_OP_CONNECT:
		connect = io_kiocb_to_cmd(req, struct io_connect);
		connect->addr_len = oracle_below(o, sizeof(o->addr) + 1);
		if (oracle_percent(o, 50))
			connect->addr_len %= sizeof(struct sockaddr_in6) + 1;
		prandom_bytes_state(&o->rnd, &o->addr, sizeof(o->addr));
		switch (oracle_below(o, 5)) {
		case 0 ... 1:
			o->addr.ss_family = AF_INET;
			break;
		case 2 ... 3:
			o->addr.ss_family = AF_INET6;
			break;
		default:
			if (oracle_percent(o, 75))
				o->addr.ss_family = families[oracle_below(o, ARRAY_SIZE(families))];
			break;
		}
		break;
	}
}
