// SPDX-License-Identifier: GPL-2.0
/*
 * Tests that give the Rust and the C implementation of io_uring's filters the
 * same random programs and the same random requests. The results must be the
 * same.
 *
 * To repeat a run, boot with oracle_test.seed=N, where N is in the log of the
 * run. oracle_test.programs=N makes a run longer or shorter.
 */
#include <kunit/test.h>
#include <linux/delay.h>
#include <linux/filter.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/io_uring.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/prandom.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/socket.h>
#include <linux/uaccess.h>
#include <uapi/linux/io_uring.h>

#include "../../io_uring/io_uring.h"
#include "../../io_uring/bpf_filter.h"
#include "../../io_uring/net.h"
#include "../../io_uring/openclose.h"
#include "oracle.h"

/* The number of test cases among which the random programs are divided */
#define CASES		4
#define REQUESTS	8
/* The number of chains after which a test waits until memory is freed */
#define SETTLE_CHAINS	100

static unsigned int seed;
module_param(seed, uint, 0644);
MODULE_PARM_DESC(seed, "Seed of the random programs, 0 for a random one");

static unsigned int programs = IS_ENABLED(CONFIG_KASAN) ? 3000 : 24000;
module_param(programs, uint, 0644);
MODULE_PARM_DESC(programs, "Total number of random programs");

int oracle_run_rust(struct oracle *o)
{
	struct io_bpf_filters *set = o->rust.bpf_filters;

	if (!set || !io_is_filtered(set->filters, &o->req))
		return 0;
	return __io_uring_run_bpf_filters(set->filters, &o->req);
}

int oracle_run_c(struct oracle *o)
{
	struct io_bpf_filters *set = o->c.bpf_filters;

	if (!set || !set->filters)
		return 0;
	return oracle_run_bpf_filters(set->filters, &o->req);
}

/*
 * Registers a filter with both implementations. Returns false if their results
 * differ, or if user memory cannot be accessed.
 */
bool oracle_add_filter(struct oracle *o, const struct io_uring_bpf *arg,
		       const struct sock_filter *insns, u32 len, int *ret)
{
	struct io_uring_bpf seen[2];
	int rets[2];
	int i;

	if (copy_to_user(o->insns, insns, len * sizeof(*insns)))
		goto fault;

	for (i = 0; i < 2; i++) {
		if (copy_to_user(o->arg, arg, sizeof(*arg)))
			goto fault;
		rets[i] = i ? oracle_register_bpf_filter(&o->c, o->arg) :
			      io_register_bpf_filter(&o->rust, o->arg);
		if (copy_from_user(&seen[i], o->arg, sizeof(seen[i])))
			goto fault;
	}

	*ret = rets[0];
	o->total++;
	if (rets[0])
		o->refused++;

	if (rets[0] != rets[1])
		kunit_err(o->test, "registration: Rust %d, C %d\n", rets[0], rets[1]);
	else if (memcmp(&seen[0], &seen[1], sizeof(seen[0])))
		kunit_err(o->test, "written back: pdu_size Rust %u, C %u\n",
			  seen[0].filter.pdu_size, seen[1].filter.pdu_size);
	else
		return true;
	return false;

fault:
	kunit_err(o->test, "no access to user memory\n");
	return false;
}

/* Runs the filters of both implementations. Returns false if they differ. */
bool oracle_same_verdict(struct oracle *o, int *verdict)
{
	int c = oracle_run_c(o);

	*verdict = oracle_run_rust(o);
	if (*verdict)
		o->denied++;
	else
		o->allowed++;
	if (*verdict == c)
		return true;

	kunit_err(o->test, "opcode %u, user_data %#llx, flags %#llx: Rust %d, C %d\n",
		  o->req.opcode, o->req.cqe.user_data,
		  (__force u64)o->req.flags, *verdict, c);
	return false;
}

void oracle_drop_filters(struct oracle *o)
{
	io_put_bpf_filters(&o->rust);
	oracle_put_bpf_filters(&o->c);
	memset(&o->rust, 0, sizeof(o->rust));
	memset(&o->c, 0, sizeof(o->c));
}

/* Gives work items and RCU callbacks that free programs time to run. */
void oracle_settle(void)
{
	rcu_barrier();
	msleep(20);
}

static void show_programs(struct oracle *o)
{
	unsigned int i, pc;

	print_hex_dump(KERN_ERR, "cmd: ", DUMP_PREFIX_OFFSET, 16, 4, &o->req.cmd,
		       sizeof(o->req.cmd), false);
	print_hex_dump(KERN_ERR, "addr: ", DUMP_PREFIX_OFFSET, 16, 4, &o->addr,
		       sizeof(o->addr), false);
	for (i = 0; i < o->nr; i++) {
		struct program *p = &o->programs[i];

		kunit_err(o->test, "program %u: opcode %u, flags %#x, pdu_size %u, filter_len %u: %d\n",
			  i, p->arg.filter.opcode, p->arg.filter.flags,
			  p->arg.filter.pdu_size, p->arg.filter.filter_len, p->ret);
		for (pc = 0; pc < p->len; pc++)
			kunit_err(o->test, "%u: { %#04x, %u, %u, %#x }\n", pc,
				  p->insns[pc].code, p->insns[pc].jt,
				  p->insns[pc].jf, p->insns[pc].k);
	}
}

/*
 * Compares one random chain of programs on random requests. Returns false if
 * the implementations differ, which ends the test.
 */
static bool random_chain(struct oracle *o)
{
	unsigned int i, nr;
	bool ok = true;
	int verdict;

	for (i = 0; i < ARRAY_SIZE(o->user_data); i++)
		o->user_data[i] = oracle_percent(o, 30) ? oracle_below(o, 100) : oracle_rnd64(o);
	/* Otherwise, opcodes whose arguments filters see would be rare. */
	for (i = 0; i < ARRAY_SIZE(o->opcodes); i++) {
		static const u8 usual[] = {
			IORING_OP_SOCKET, IORING_OP_CONNECT, IORING_OP_OPENAT,
			IORING_OP_OPENAT2,
		};

		o->opcodes[i] = oracle_percent(o, 40) ? usual[oracle_below(o, ARRAY_SIZE(usual))] :
						 oracle_below(o, IORING_OP_LAST);
	}
	if (oracle_percent(o, 75))
		o->opcodes[1] = o->opcodes[0];

	o->chain++;
	o->nr = 0;
	/* Mostly short ones, as long ones deny nearly all requests. */
	nr = 1 + oracle_below(o, 1 + oracle_below(o, CHAIN_MAX));
	for (i = 0; ok && i < nr; i++) {
		struct program *p = &o->programs[o->nr++];

		oracle_random_filter(o, p);
		ok = oracle_add_filter(o, &p->arg, p->insns, p->len, &p->ret);
	}
	for (i = 0; ok && i < REQUESTS; i++) {
		oracle_random_request(o);
		ok = oracle_same_verdict(o, &verdict);
	}

	oracle_drop_filters(o);
	if (!ok) {
		kunit_err(o->test, "seed %u, chain %u\n", o->seed, o->chain);
		show_programs(o);
	}
	return ok;
}

struct oracle *oracle_new(struct kunit *test)
{
	size_t size = PAGE_SIZE + BPF_MAXINSNS * sizeof(struct sock_filter);
	struct oracle *o = kunit_kzalloc(test, sizeof(*o), GFP_KERNEL);
	unsigned long addr;

	KUNIT_ASSERT_NOT_NULL(test, o);
	addr = kunit_vm_mmap(test, NULL, 0, size, PROT_READ | PROT_WRITE,
			     MAP_ANONYMOUS | MAP_PRIVATE, 0);
	KUNIT_ASSERT_NE(test, addr, 0);
	KUNIT_ASSERT_LT(test, addr, (unsigned long)TASK_SIZE);

	o->test = test;
	o->arg = (struct io_uring_bpf __user *)addr;
	o->insns = (struct sock_filter __user *)(addr + PAGE_SIZE);
	o->req.async_data = &o->addr;
	return o;
}

static void random_programs_match_c(struct kunit *test)
{
	const unsigned int *number = test->param_value;
	struct oracle *o = oracle_new(test);

	o->seed = seed + *number;
	prandom_seed_state(&o->rnd, o->seed);
	kunit_info(test, "seed %u: repeat with oracle_test.seed=%u\n", o->seed, seed);

	while (o->total < programs / CASES) {
		if (!random_chain(o)) {
			KUNIT_FAIL(test, "Rust and C differ\n");
			break;
		}
		cond_resched();
		if (o->chain % SETTLE_CHAINS == 0)
			oracle_settle();
	}
	oracle_settle();

	kunit_info(test, "%u chains of %u programs, %u of them refused; %u requests allowed, %u denied\n",
		   o->chain, o->total, o->refused, o->allowed, o->denied);
	KUNIT_EXPECT_GT(test, o->refused, 0);
	KUNIT_EXPECT_GT(test, o->allowed, 0);
	KUNIT_EXPECT_GT(test, o->denied, 0);
}

static int pick_seed(struct kunit_suite *suite)
{
	if (!seed)
		seed = get_random_u32() ?: 1;
	return 0;
}

static const unsigned int numbers[CASES] = { 0, 1, 2, 3 };

static void describe(const unsigned int *number, char *desc)
{
	snprintf(desc, KUNIT_PARAM_DESC_SIZE, "seed+%u", *number);
}

KUNIT_ARRAY_PARAM(numbers, numbers, describe);

static struct kunit_case io_uring_filter_oracle_cases[] = {
	KUNIT_CASE(oracle_corner_cases_match_c),
	KUNIT_CASE(oracle_longest_programs_match_c),
	KUNIT_CASE_PARAM_ATTR(random_programs_match_c, numbers_gen_params,
			      { .speed = KUNIT_SPEED_SLOW }),
	{}
};

static struct kunit_suite io_uring_filter_oracle = {
	.name = "io_uring_filter_oracle",
	.suite_init = pick_seed,
	.test_cases = io_uring_filter_oracle_cases,
};

kunit_test_suite(io_uring_filter_oracle);

MODULE_DESCRIPTION("Compares io_uring's filters in Rust with those in C");
MODULE_LICENSE("GPL");
