# SPDX-License-Identifier: GPL-2.0
"""What the kernel says on its console when something is wrong with it, and what
tests say beforehand of what it is going to say."""

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
    r"|soft lockup|hard LOCKUP|workqueue lockup|blocked for more than|detected stall|rcu.*stall"
    r"|unregister_netdevice: waiting for|stalled pool shutdown"
    r"|leaked reference|ref_tracker: .* users|reference already released"
    r"|^zcrx_sim: DMA fault"
    r"|rust_kernel: panicked|panicked at|stack overflow|Bad page|Bad rss|slab.*(?:corrupt|overwritten|still in use)")
PANIC = re.compile(r"Kernel panic|\bOops\b")
# Such a report is one line, and what comes next is none of it.
LINE = re.compile(r"^zcrx_sim: |unregister_netdevice: waiting for|stalled pool shutdown")
CUT = re.compile(r"^-+\[ cut here \]-+")
# A test announces in /dev/kmsg that one report is to come in which these words are.
EXPECTED = re.compile(r"^expected report: (.+)$")
INIT_STARTS = re.compile(r"^Run /init as init process")
STAMP = re.compile(r"^(?:<\d+>)?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ?")
# A report goes on for about a screenful, and a report within it is the same.
REPORT_LINES = 40


class Watch:
    """Takes the console's lines one by one and gathers the reports in them. Those
    that a test has announced are none; those that did not come are left over."""

    def __init__(self):
        self.reports = []
        self.expected = []
        self._report = []
        self._left = 0

    def line(self, text):
        message = STAMP.sub("", text)
        if announced := EXPECTED.match(message):
            self.expected.append(announced[1])
            return
        if self._left == 0:
            if not REPORT.search(message):
                return
            self._report = []
            self.reports.append(self._report)
            self._left = REPORT_LINES
        self._report.append(message)
        self._left -= 1
        if len(self._report) == 1 + bool(CUT.match(self._report[0])):
            self._begun(message)
        if "---[ end trace" in message or LINE.search(self._report[0]):
            self._left = 0

    def _begun(self, message):
        """Takes the first line of a report that says what it is about."""
        for words in self.expected:
            if words in message:
                self.expected.remove(words)
                self.reports.pop()
                return
        print(f"        KERNEL REPORT: {message}", flush=True)
