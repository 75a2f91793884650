# SPDX-License-Identifier: GPL-2.0
"""The tests that must be skipped in a guest according to tests/skips, compared with
those that were skipped."""

import re

# The words that describe a guest. One word of each kind is true of it.
KINDS = ({"rust", "c"}, {"plain", "debug"}, {"direct", "bounced", "iommu"})
WORDS = {"any"}.union(*KINDS)
LINE = re.compile(r"^([a-z ]+):((?: +[^\s#]+)+) +# (.+)$")


class SkipsError(Exception):
    """A line of the file that cannot be read."""


def parse(text):
    """Reads the file's text. Returns a list of (words, tests, reason)."""
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.match(line)
        if not match:
            raise SkipsError(f"line {number}: not in the form 'WORDS: TESTS # WHY'")
        words = set(match[1].split())
        if unknown := words - WORDS:
            raise SkipsError(f"line {number}: unknown words: {' '.join(sorted(unknown))}; see the head of tests/skips")
        lines.append((words - {"any"}, match[2].split(), match[3].strip()))
    return lines


def expected(lines, guest):
    """Returns the tests that must be skipped in a guest of which the words `guest` are
    true, each with the reason."""
    return {test: why for words, tests, why in lines if words <= guest for test in tests}


def identifier(name):
    """Returns the part of a test's name that the file uses: the tag, or the name of a
    KUnit test."""
    return name.rpartition(" (")[2].removesuffix(")")


def problems(expect, skipped, ran, complete):
    """Compares the tests that must be skipped with the names of those that were
    `skipped` and of those that `ran`. `complete` says whether these are all tests.
    Returns the problems, one line each."""
    skipped = {identifier(name): name for name in skipped}
    ran = {identifier(name): name for name in ran}
    found = [f"{name}: skipped, for which tests/skips has no reason in this guest"
             for test, name in skipped.items() if test not in expect]
    for test, why in expect.items():
        if test in ran:
            found.append(f"{ran[test]}: not skipped, which tests/skips says it must be: {why}")
        elif complete and test not in skipped:
            found.append(f"{test}: tests/skips says that it must be skipped, and there is no such test")
    return found
