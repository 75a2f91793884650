// SPDX-License-Identifier: GPL-2.0
/*
 * A plugin of QEMU that counts how many instructions of each block of code run
 * between two no-ops that the guest's program executes, see timed() in
 * tests/src/bin/bench/main.rs. run-profile uses it.
 *
 * Its argument, out=FILE, names the file for the result. The first line of the
 * file is the number of times that counting began. Each other line has the
 * address of a block and the number of its instructions that ran.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is used of version 7 of the interface of plugins, whose header Debian does not have. */
typedef uint64_t plugin_id;
struct tb;
struct insn;

typedef void (*on_exec)(unsigned int cpu, void *data);

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*cb)(struct tb *tb, void *data),
					   void *data);
void qemu_plugin_register_vcpu_tb_exec_cb(struct tb *tb, on_exec cb, int flags, void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct insn *insn, on_exec cb, int flags, void *data);
void qemu_plugin_register_atexit_cb(plugin_id id, void (*cb)(void *data), void *data);
size_t qemu_plugin_tb_n_insns(const struct tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct tb *tb);
struct insn *qemu_plugin_tb_get_insn(const struct tb *tb, size_t index);
size_t qemu_plugin_insn_data(const struct insn *insn, void *dest, size_t len);
size_t qemu_plugin_insn_size(const struct insn *insn);

int qemu_plugin_version = 7;

struct block {
	struct block *next;
	uint64_t address, insns, runs;
};

static struct block *blocks;
static const char *out;
static unsigned long times;
static int on;

static void begin(unsigned int cpu, void *data)
{
	times++;
	on = 1;
}

static void end(unsigned int cpu, void *data)
{
	on = 0;
}

static void run(unsigned int cpu, void *data)
{
	((struct block *)data)->runs += on;
}

static void translate(struct tb *tb, void *data)
{
	struct block *block = calloc(1, sizeof(*block));
	size_t n = qemu_plugin_tb_n_insns(tb);

	for (size_t i = 0; i < n; i++) {
		struct insn *insn = qemu_plugin_tb_get_insn(tb, i);
		char code[8];

		if (qemu_plugin_insn_size(insn) != sizeof(code))
			continue;
		qemu_plugin_insn_data(insn, code, sizeof(code));
		if (!memcmp(code, "\x0f\x1f\x84\x00" "bgn!", sizeof(code)))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, begin, 0, NULL);
		if (!memcmp(code, "\x0f\x1f\x84\x00" "end!", sizeof(code)))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, end, 0, NULL);
	}
	*block = (struct block) { blocks, qemu_plugin_tb_vaddr(tb), n, 0 };
	blocks = block;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, run, 0, block);
}

static void finish(void *data)
{
	FILE *file = fopen(out, "w");

	if (!file)
		return;
	fprintf(file, "%lu\n", times);
	for (struct block *block = blocks; block; block = block->next)
		if (block->runs)
			fprintf(file, "%lx %lu\n", block->address, block->insns * block->runs);
	fclose(file);
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
	if (argc != 1 || strncmp(argv[0], "out=", 4))
		return 1;
	out = strdup(argv[0] + 4);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translate, NULL);
	qemu_plugin_register_atexit_cb(id, finish, NULL);
	return 0;
}
