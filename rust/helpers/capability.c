// SPDX-License-Identifier: GPL-2.0

#include <linux/capability.h>
#include <linux/sched.h>

#ifndef CONFIG_MULTIUSER
__rust_helper bool rust_helper_capable(int cap)
{
	return capable(cap);
}

__rust_helper bool rust_helper_ns_capable_noaudit(struct user_namespace *ns, int cap)
{
	return ns_capable_noaudit(ns, cap);
}
#endif

__rust_helper bool rust_helper_task_no_new_privs(struct task_struct *task)
{
	return task_no_new_privs(task);
}
