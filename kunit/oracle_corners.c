// SPDX-License-Identifier: GPL-2.0
/*
 * Filters that test corner cases, with the verdict that both implementations
 * must give. These are test cases of oracle_test.c.
 */
#include <linux/slab.h>

#include "oracle.h"

#define LD_WORD(k)	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, k)
#define LD_IMM(k)	BPF_STMT(BPF_LD | BPF_IMM, k)
#define LDX_IMM(k)	BPF_STMT(BPF_LDX | BPF_IMM, k)
#define LD_MEM(k)	BPF_STMT(BPF_LD | BPF_MEM, k)
#define LDX_MEM(k)	BPF_STMT(BPF_LDX | BPF_MEM, k)
#define ST(k)		BPF_STMT(BPF_ST, k)
#define STX(k)		BPF_STMT(BPF_STX, k)
#define ALU_K(op, k)	BPF_STMT(BPF_ALU | (op) | BPF_K, k)
#define ALU_X(op)	BPF_STMT(BPF_ALU | (op) | BPF_X, 0)
#define TXA		BPF_STMT(BPF_MISC | BPF_TXA, 0)
#define TAX		BPF_STMT(BPF_MISC | BPF_TAX, 0)
#define RET(k)		BPF_STMT(BPF_RET | BPF_K, k)
#define RET_A		BPF_STMT(BPF_RET | BPF_A, 0)

/* Programs, in the order of registration: the last one is run first. */
static const struct corner {
	const char		*name;
	int			verdict;
	struct sock_filter	programs[3][8];
} corners[] = {
	{ "division by zero ends a program with zero", -EACCES,
	  { { LDX_IMM(0), LD_IMM(5), ALU_X(BPF_DIV), RET(1) } } },
	{ "division by zero in the older of two", -EACCES,
	  { { LD_IMM(5), ALU_X(BPF_DIV), RET(1) }, { RET(1) } } },
	{ "left shift by 32", 0,
	  { { LDX_IMM(32), LD_IMM(1), ALU_X(BPF_LSH), ALU_K(BPF_AND, 1), RET_A } } },
	{ "left shift by 33", 0,
	  { { LDX_IMM(33), LD_IMM(1), ALU_X(BPF_LSH), ALU_K(BPF_AND, 2), RET_A } } },
	{ "right shift by 2^32 - 1", 0,
	  { { LDX_IMM(~0U), LD_IMM(0x80000000), ALU_X(BPF_RSH),
	      ALU_K(BPF_AND, 1), RET_A } } },
	{ "denied by the older of two", -EACCES, { { RET(0) }, { RET(1) } } },
	{ "denied by the newer of two", -EACCES, { { RET(1) }, { RET(0) } } },
	{ "denied by the second of three", -EACCES,
	  { { RET(1) }, { RET(0) }, { RET(1) } } },
	{ "any other number allows", 0, { { RET(0x80000000) }, { RET(~0U) } } },
	{ "A is zero at the start", -EACCES, { { RET_A } } },
	{ "X is zero at the start", -EACCES, { { TXA, RET_A } } },
	{ "A and X are zero after a newer program", 0,
	  { { BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 3), TXA,
	      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1), RET(1), RET(0) },
	    { LD_IMM(5), LDX_IMM(7), RET(1) } } },
	{ "A of a newer program does not allow", -EACCES,
	  { { RET_A }, { LD_IMM(5), LDX_IMM(7), RET_A } } },
	{ "each program has its own M[]", 0,
	  { { LD_IMM(1), ST(0), LDX_IMM(0), STX(15), LD_MEM(0), RET_A },
	    { LD_IMM(0), ST(0), LDX_IMM(2), STX(15), LD_MEM(15), RET_A },
	    { LD_IMM(0), ST(15), ALU_K(BPF_ADD, 3), ST(0), LDX_MEM(0), TXA, RET_A } } },
	{ "a word of M[] that holds zero", -EACCES,
	  { { LD_IMM(0), ST(3), LD_IMM(9), LD_MEM(3), RET_A },
	    { LD_IMM(9), ST(3), LD_MEM(3), RET_A } } },
	{ "addition wraps", -EACCES, { { LD_IMM(~0U), ALU_K(BPF_ADD, 1), RET_A } } },
	{ "multiplication wraps", -EACCES,
	  { { LD_IMM(0x10000), TAX, ALU_X(BPF_MUL), RET_A } } },
	{ "comparison is unsigned", 0,
	  { { LD_IMM(0x80000000), BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 1, 0, 1),
	      RET(1), RET(0) } } },
	{ "negation", 0,
	  { { LD_IMM(1), BPF_STMT(BPF_ALU | BPF_NEG, 0),
	      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ~0U, 0, 1), RET(1), RET(0) } } },
	{ "the length is the context's", 0,
	  { { BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0), BPF_STMT(BPF_LDX | BPF_W | BPF_LEN, 0),
	      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_X, 0, 0, 2),
	      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 40, 0, 1), RET(1), RET(0) } } },
	{ "no arguments are zero", -EACCES,
	  { { LD_WORD(12), TAX, LD_WORD(16), ALU_X(BPF_OR), TAX, LD_WORD(36),
	      ALU_X(BPF_OR), RET_A } } },
};

static bool add_corner(struct oracle *o, const struct sock_filter *insns, u32 len)
{
	struct io_uring_bpf arg = {
		.cmd_type = IO_URING_BPF_CMD_FILTER,
		.filter = {
			.opcode		= IORING_OP_NOP,
			.filter_len	= len,
			.filter_ptr	= (uintptr_t)o->insns,
		},
	};
	int ret = -EIO;

	return oracle_add_filter(o, &arg, insns, len, &ret) && !ret;
}

/* Checks the verdict of a chain that was made if @ok, and frees it. */
static void end_corner(struct oracle *o, bool ok, const char *name, int expected)
{
	int verdict = -EIO;

	ok = ok && oracle_same_verdict(o, &verdict) && verdict == expected;
	oracle_drop_filters(o);
	KUNIT_EXPECT_TRUE_MSG(o->test, ok, "%s: verdict %d, expected %d\n",
			      name, verdict, expected);
}

void oracle_corner_cases_match_c(struct kunit *test)
{
	struct oracle *o = oracle_new(test);
	unsigned int i, j;

	o->req.opcode = IORING_OP_NOP;
	o->req.cqe.user_data = 0x1122334455667788;

	for (i = 0; i < ARRAY_SIZE(corners); i++) {
		const struct corner *corner = &corners[i];
		bool ok = true;

		for (j = 0; ok && j < ARRAY_SIZE(corner->programs); j++) {
			const struct sock_filter *insns = corner->programs[j];
			u32 len = ARRAY_SIZE(corner->programs[j]);

			/* The program ends with the last ret. */
			while (len && BPF_CLASS(insns[len - 1].code) != BPF_RET)
				len--;
			if (len)
				ok = add_corner(o, insns, len);
		}
		end_corner(o, ok, corner->name, corner->verdict);
	}
	oracle_settle();
}

/* Sets the instructions from @from up to @len to @insn. Returns @len. */
static u32 fill(struct sock_filter *insns, u32 from, u32 len, struct sock_filter insn)
{
	for (; from < len; from++)
		insns[from] = insn;
	return len;
}

void oracle_longest_programs_match_c(struct kunit *test)
{
	const struct sock_filter add = ALU_K(BPF_ADD, 1), allow = RET(1), deny = RET(0);
	struct oracle *o = oracle_new(test);
	struct sock_filter *insns;
	unsigned int i;
	bool ok;
	u32 len;

	o->req.opcode = IORING_OP_NOP;
	insns = kunit_kcalloc(test, BPF_MAXINSNS, sizeof(*insns), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, insns);

	insns[0] = (struct sock_filter)BPF_STMT(BPF_JMP | BPF_JA, 300);
	len = fill(insns, 1, 301, deny);
	insns[len++] = allow;
	end_corner(o, add_corner(o, insns, len), "ja over 300", 0);

	insns[0] = (struct sock_filter)BPF_STMT(BPF_JMP | BPF_JA, BPF_MAXINSNS - 2);
	len = fill(insns, 1, BPF_MAXINSNS, allow);
	insns[len - 1] = deny;
	end_corner(o, add_corner(o, insns, len), "the longest ja", -EACCES);

	for (i = 0; i < 2; i++) {
		insns[0] = (struct sock_filter)LD_IMM(7);
		insns[1] = (struct sock_filter)
			BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 7 + i, i ? 0 : 255, i ? 255 : 0);
		len = fill(insns, 2, 257, deny);
		insns[len++] = allow;
		end_corner(o, add_corner(o, insns, len),
			   i ? "jeq with jf 255" : "jeq with jt 255", 0);
	}

	/* Three programs count to 4093; what they subtract decides. */
	for (i = 0; i < 2; i++) {
		insns[0] = (struct sock_filter)LD_IMM(0);
		len = fill(insns, 1, BPF_MAXINSNS - 2, add);
		insns[len++] = (struct sock_filter)ALU_K(BPF_SUB, 4092);
		insns[len++] = (struct sock_filter)RET_A;
		ok = add_corner(o, insns, len) && add_corner(o, insns, len);
		insns[len - 2].k += i;
		ok = ok && add_corner(o, insns, len);
		end_corner(o, ok, "three of 4096 instructions", i ? -EACCES : 0);
	}

	/* The oldest one of three denies. */
	ok = add_corner(o, insns, len);
	insns[len - 2].k--;
	ok = ok && add_corner(o, insns, len) && add_corner(o, insns, len);
	end_corner(o, ok, "the oldest of three of 4096 instructions", -EACCES);
	oracle_settle();
}
