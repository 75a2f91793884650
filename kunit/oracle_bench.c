// SPDX-License-Identifier: GPL-2.0
/*
 * A benchmark that runs the filters in C and in Rust in turn, in a loop in the
 * kernel. It is meant for ARCH=um, where the code runs natively and not under
 * QEMU, which counts instructions. It logs a line of JSON for each case.
 *
 * By default, the rounds are so short that only the verdicts are tested. Boot
 * with oracle_bench.requests=300000 to measure times.
 */
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sort.h>

#include "oracle.h"

#define ROUNDS		51

#define LD_WORD(k)	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, k)
#define RET(k)		BPF_STMT(BPF_RET | BPF_K, k)
#define UNLESS(k)	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, k, 0, 1)

static unsigned int requests = 1000;
module_param(requests, uint, 0444);
MODULE_PARM_DESC(requests, "Number of requests in a round");

static const struct timing {
	const char		*name;
	u8			opcode;
	/* The opcode that the filters are for */
	u8			filtered;
	unsigned int		nr;
	int			verdict;
	u32			len;
	struct sock_filter	insns[4];
} timings[] = {
	{ "filter for another opcode", IORING_OP_NOP, IORING_OP_FSYNC, 1, 0,
	  4, { LD_WORD(0), UNLESS(0xdead), RET(0), RET(1) } },
	{ "always allows", IORING_OP_NOP, IORING_OP_NOP, 1, 0, 1, { RET(1) } },
	{ "16 always allow", IORING_OP_NOP, IORING_OP_NOP, 16, 0, 1, { RET(1) } },
	{ "tests user_data", IORING_OP_NOP, IORING_OP_NOP, 1, 0,
	  4, { LD_WORD(0), UNLESS(0xdead), RET(0), RET(1) } },
	{ "4 test user_data", IORING_OP_NOP, IORING_OP_NOP, 4, 0,
	  4, { LD_WORD(0), UNLESS(0xdead), RET(0), RET(1) } },
	{ "16 test user_data", IORING_OP_NOP, IORING_OP_NOP, 16, 0,
	  4, { LD_WORD(0), UNLESS(0xdead), RET(0), RET(1) } },
	{ "tests family", IORING_OP_SOCKET, IORING_OP_SOCKET, 1, 0,
	  4, { LD_WORD(16), UNLESS(45), RET(0), RET(1) } },
	{ "tests flags", IORING_OP_OPENAT, IORING_OP_OPENAT, 1, 0,
	  4, { LD_WORD(16), UNLESS(0x40), RET(0), RET(1) } },
	{ "denied", IORING_OP_NOP, IORING_OP_NOP, 1, -EACCES, 1, { RET(0) } },
};

static void describe(const struct timing *timing, char *desc)
{
	strscpy(desc, timing->name, KUNIT_PARAM_DESC_SIZE);
}

KUNIT_ARRAY_PARAM(timings, timings, describe);

static int compare(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

/* Returns the average time of a request in picoseconds. */
static u64 time_round(struct oracle *o, int (*run)(struct oracle *), int verdict)
{
	unsigned int i, other = 0;
	u64 begin = ktime_get_ns(), took;

	for (i = 0; i < requests; i++)
		other += run(o) != verdict;
	took = ktime_get_ns() - begin;
	KUNIT_EXPECT_EQ(o->test, other, 0);
	return div_u64(took * 1000, requests ?: 1);
}

static void time_filters(struct kunit *test)
{
	static int (*const runs[2])(struct oracle *) = { oracle_run_c, oracle_run_rust };
	const struct timing *timing = test->param_value;
	struct oracle *o = oracle_new(test);
	struct io_uring_bpf arg = {
		.cmd_type = IO_URING_BPF_CMD_FILTER,
		.filter = {
			.opcode		= timing->filtered,
			.filter_len	= timing->len,
			.filter_ptr	= (uintptr_t)o->insns,
		},
	};
	unsigned int i, impl;
	u64 (*took)[ROUNDS];
	int ret;

	took = kunit_kzalloc(test, 2 * sizeof(*took), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, took);
	o->req.opcode = timing->opcode;
	o->req.cqe.user_data = 7;

	for (i = 0; i < timing->nr; i++) {
		KUNIT_ASSERT_TRUE(test, oracle_add_filter(o, &arg, timing->insns,
							  timing->len, &ret));
		KUNIT_ASSERT_EQ(test, ret, 0);
	}
	for (i = 0; i < ROUNDS; i++) {
		for (impl = 0; impl < 2; impl++)
			took[impl][i] = time_round(o, runs[impl], timing->verdict);
		cond_resched();
	}
	oracle_drop_filters(o);

	for (impl = 0; impl < 2; impl++) {
		u64 *sorted = took[impl];

		sort(sorted, ROUNDS, sizeof(*sorted), compare, NULL);
		kunit_info(test, "{\"case\": \"%s\", \"impl\": \"%s\", \"min\": %llu, \"quarter\": %llu, \"median\": %llu, \"three_quarters\": %llu}\n",
			   timing->name, impl ? "rust" : "c", sorted[0], sorted[ROUNDS / 4],
			   sorted[ROUNDS / 2], sorted[ROUNDS * 3 / 4]);
	}
}

static struct kunit_case io_uring_filter_bench_cases[] = {
	KUNIT_CASE_PARAM_ATTR(time_filters, timings_gen_params,
			      { .speed = KUNIT_SPEED_SLOW }),
	{}
};

static struct kunit_suite io_uring_filter_bench = {
	.name = "io_uring_filter_bench",
	.test_cases = io_uring_filter_bench_cases,
};

kunit_test_suite(io_uring_filter_bench);

MODULE_DESCRIPTION("Times io_uring's filters in Rust and in C");
MODULE_LICENSE("GPL");
