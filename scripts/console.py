# SPDX-License-Identifier: GPL-2.0
"""What the kernel says on its console when something is wrong with it."""

import re

# Each starts a report by a checker of the kernel. They are looked for after
# the time stamp, at the start of the message where they could otherwise be
# part of a harmless one.
REPORT = re.compile(
    r"^(?:rcu: )?(?:WARNING|BUG|INFO): (?!lockdep: fixing up alternatives)"
    r"|^-+\[ cut here \]-+"
    r"|\bOops\b|general protection fault|kernel BUG at|unable to handle"
    r"|Kernel panic|KASAN:|KCSAN:|KMSAN:|KFENCE:|UBSAN:|CFI failure"
    r"|possible (?:circular|recursive) locking|inconsistent lock state|bad unlock balance"
    r"|suspicious RCU|sleeping function called|scheduling while atomic"
    r"|lock held when returning|held lock freed"
    r"|unreferenced object|kmemleak: \d+ new suspected"
    r"|ODEBUG:|DMA-API:.*(?:error|exceed|not|mismatch|leak)|refcount_t:|list_(?:add|del) corruption"
    r"|soft lockup|hard LOCKUP|blocked for more than|detected stall|rcu.*stall"
    r"|rust_kernel: panicked|panicked at|stack overflow|Bad page|Bad rss|slab.*(?:corrupt|overwritten|still in use)")
PANIC = re.compile(r"Kernel panic|\bOops\b")
INIT_STARTS = re.compile(r"^Run /init as init process")
STAMP = re.compile(r"^(?:<\d+>)?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ?")
# A report goes on for about a screenful, and a report within it is the same.
REPORT_LINES = 40


class Watch:
    """Takes the console's lines one by one and gathers the reports in them."""

    def __init__(self):
        self.reports = []
        self._left = 0

    def line(self, text):
        message = STAMP.sub("", text)
        if self._left == 0 and REPORT.search(message):
            self.reports.append([])
            self._left = REPORT_LINES
            print(f"        KERNEL REPORT: {message}", flush=True)
        if self._left:
            self.reports[-1].append(message)
            self._left -= 1
            if "---[ end trace" in message:
                self._left = 0
