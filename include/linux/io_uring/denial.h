/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The reasons for which a request is denied, as the trace event io_uring_denied
 * reports them.
 */
#ifndef _LINUX_IO_URING_DENIAL_H
#define _LINUX_IO_URING_DENIAL_H

enum io_denial {
	/* The list of restrictions does not have the opcode. */
	IO_DENIAL_OPCODE,
	/* The list has the opcode, but does not allow the flags. */
	IO_DENIAL_FLAGS,
	/* IO_URING_BPF_FILTER_DENY_REST was given when the opcode had no filter. */
	IO_DENIAL_REST,
	/* Filters deny each request with the opcode; none was run. */
	IO_DENIAL_FILTER,
	/* Filters deny each request with the opcode and the flags; none was run. */
	IO_DENIAL_FILTER_FLAGS,
	/* A filter was run, and denied the request. */
	IO_DENIAL_PROGRAM,
};

#endif
