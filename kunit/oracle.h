/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The oracle: the C implementation of io_uring's filters under other names
 * (oracle.c), and declarations that are shared by the tests that compare it
 * with the Rust implementation (oracle_test.c).
 */
#ifndef IO_URING_RS_KUNIT_ORACLE_H
#define IO_URING_RS_KUNIT_ORACLE_H

#include <kunit/test.h>
#include <linux/filter.h>
#include <linux/io_uring_types.h>
#include <linux/prandom.h>
#include <linux/socket.h>
#include <uapi/linux/io_uring/bpf_filter.h>

#define CHAIN_MAX	8
#define LEN_MAX		300

int oracle_run_bpf_filters(struct io_bpf_filter __rcu **filters,
			   struct io_kiocb *req);
int oracle_register_bpf_filter(struct io_restriction *res,
			       struct io_uring_bpf __user *arg);
void oracle_put_bpf_filters(struct io_restriction *res);
void oracle_bpf_filter_clone(struct io_restriction *dst,
			     struct io_restriction *src);

struct program {
	struct io_uring_bpf	arg;
	int			ret;
	unsigned int		len;
	struct sock_filter	insns[LEN_MAX];
};

struct oracle {
	struct kunit		*test;
	struct rnd_state	rnd;
	u32			seed;

	/* Addresses in user space */
	struct io_uring_bpf __user	*arg;
	struct sock_filter __user	*insns;

	/* The filters of each implementation */
	struct io_restriction	rust;
	struct io_restriction	c;

	/* The chain, and values that its programs and requests use alike */
	unsigned int		chain;
	unsigned int		nr;
	struct program		programs[CHAIN_MAX];
	u64			user_data[4];
	u32			opcodes[2];

	struct io_kiocb		req;
	struct sockaddr_storage	addr;
	/* Words of M[] that are stored at each instruction, a bit each */
	u16			masks[LEN_MAX];

	unsigned int		total;
	unsigned int		refused;
	unsigned int		allowed;
	unsigned int		denied;
};

/* oracle_test.c */
struct oracle *oracle_new(struct kunit *test);
bool oracle_add_filter(struct oracle *o, const struct io_uring_bpf *arg,
		       const struct sock_filter *insns, u32 len, int *ret);
int oracle_run_rust(struct oracle *o);
int oracle_run_c(struct oracle *o);
bool oracle_same_verdict(struct oracle *o, int *verdict);
void oracle_drop_filters(struct oracle *o);
void oracle_settle(void);

/* oracle_random.c */
u32 oracle_below(struct oracle *o, u32 ceil);
bool oracle_percent(struct oracle *o, u32 chance);
u64 oracle_rnd64(struct oracle *o);
void oracle_random_filter(struct oracle *o, struct program *p);
void oracle_random_request(struct oracle *o);

/* oracle_corners.c */
void oracle_corner_cases_match_c(struct kunit *test);
void oracle_longest_programs_match_c(struct kunit *test);

#endif
