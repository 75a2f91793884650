# SPDX-License-Identifier: GPL-2.0
"""The reports of errors that the kernel prints on its console, and the announcements
of tests that such a report is about to come."""

import re

# Each of these starts a report by a checker of the kernel. They are searched for after
# the time stamp, and only at the start of the message if they could be part of a
# harmless one.
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
# Such a report is one line, and the next line is not part of it.
LINE = re.compile(r"^zcrx_sim: |unregister_netdevice: waiting for|stalled pool shutdown")
CUT = re.compile(r"^-+\[ cut here \]-+")
# A test announces in /dev/kmsg that one report with these words is about to come.
EXPECTED = re.compile(r"^expected report: (.+)$")
INIT_STARTS = re.compile(r"^Run /init as init process")
STAMP = re.compile(r"^(?:<\d+>)?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ?")
# A report takes about a screenful of lines, and a report within it belongs to it.
REPORT_LINES = 40


class ConsoleReader:
    """A reader of the console's lines that collects the reports in them. It leaves out
    reports that a test has announced; announcements without a report stay in `expected`."""

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
        """Handles the first line of a report that says what the report is about: drops
        the report if it was announced, and prints the line otherwise."""
        for words in self.expected:
            if words in message:
                self.expected.remove(words)
                self.reports.pop()
                return
        print(f"        KERNEL REPORT: {message}", flush=True)
