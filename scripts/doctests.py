# SPDX-License-Identifier: GPL-2.0
"""The examples in the documentation of this project's part of the kernel crate. A
kernel with CONFIG_RUST_KERNEL_DOCTESTS, such as that of DEBUG=1, runs them as KUnit
tests, together with those of the rest of the crate."""

import re

SUITE = "rust_doctests_kernel"
# A line of documentation that begins or ends a block of code, and the kind of that
# block.
FENCE = re.compile(r"^\s*//[/!]\s*```(\S*)", re.M)
# The kinds of blocks that are run.
RUN = ("", "rust", "should_panic")


def examples(text):
    """Returns the number of examples in a file that are run."""
    return sum(kind in RUN for kind in FENCE.findall(text)[::2])


def expected(folder):
    """Returns the names of the tests made from the files in this folder, which is
    rust/kernel. A name has the path of the file and a number."""
    names = set()
    for path in folder.rglob("*.rs"):
        file = "_".join(path.relative_to(folder).with_suffix("").parts)
        names |= {f"rust_doctest_kernel_{file}_rs_{number}"
                  for number in range(examples(path.read_text()))}
    return names


def missing(folder, suites):
    """Returns the expected tests that are not among those of these KUnit suites."""
    ran = {test.name for suite in suites if suite.name == SUITE for test in suite.subtests}
    return sorted(expected(folder) - ran)
