# SPDX-License-Identifier: GPL-2.0
"""A display that shows that long work goes on, as `step` of lib.sh does."""

import sys
import threading
import time


class Alive(threading.Thread):
    """Shows a label, the time since the start and what is at work until the `with` block
    ends: every half minute as a line, or every second in place if `in_place` is set and
    the output is a terminal."""

    PERIOD = 30

    def __init__(self, label, at_work, begin=None, in_place=False):
        """`at_work` returns a few words, or nothing. The work began at the monotonic time
        `begin`, or begins with the `with` block."""
        super().__init__(daemon=True)
        self.label, self.at_work = label, at_work
        self.begin = time.monotonic() if begin is None else begin
        self.in_place = in_place and sys.stdout.isatty()
        self.over = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()
        if self.in_place:
            print("\r\033[K", end="", flush=True)

    def run(self):
        # A line that is replaced in place must fit into the terminal.
        width = 60 if self.in_place else 100
        while not self.over.wait(1 if self.in_place else self.PERIOD):
            seconds = int(time.monotonic() - self.begin)
            clock = f"{seconds // 60}:{seconds % 60:02}"
            text = f"{clock:>6}  {self.label} … {(self.at_work() or '')[:width]}"
            print(f"\r\033[K{text}" if self.in_place else text, end="" if self.in_place else "\n", flush=True)
