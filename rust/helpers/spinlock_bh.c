// SPDX-License-Identifier: GPL-2.0

#include <linux/bitops.h>
#include <linux/bottom_half.h>
#include <linux/interrupt.h>
#include <linux/irqflags.h>
#include <linux/spinlock.h>

__rust_helper void rust_helper_spin_lock_bh(spinlock_t *lock)
{
	spin_lock_bh(lock);
}

__rust_helper void rust_helper_spin_unlock_bh(spinlock_t *lock)
{
	spin_unlock_bh(lock);
}

__rust_helper int rust_helper_spin_trylock_bh(spinlock_t *lock)
{
	return spin_trylock_bh(lock);
}

__rust_helper bool rust_helper_irqs_disabled(void)
{
	return irqs_disabled();
}

/*
 * Unlocks while interrupts are disabled. spin_unlock_bh() would run pending
 * softirqs, which enables interrupts. Here, they are not run; instead, one of
 * them is raised again, which wakes ksoftirqd to run all of them. On
 * PREEMPT_RT, spin_unlock_bh() itself leaves pending softirqs to ksoftirqd.
 */
__rust_helper void rust_helper_spin_unlock_bh_irqs_disabled(spinlock_t *lock)
{
#ifdef CONFIG_PREEMPT_RT
	spin_unlock_bh(lock);
#else
	spin_unlock(lock);
	_local_bh_enable();
	if (local_softirq_pending())
		raise_softirq_irqoff(__ffs(local_softirq_pending()));
#endif
}
