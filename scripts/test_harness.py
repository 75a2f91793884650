# SPDX-License-Identifier: GPL-2.0
"""Tests of the failures that run-tests must find: unexpected skips, and reports of the
kernel. `make lint ONLY=harness` runs them."""

import contextlib
import importlib.machinery
import importlib.util
import io
import pathlib
import sys
import unittest

sys.dont_write_bytecode = True
import console
import skips

SCRIPTS = pathlib.Path(__file__).resolve().parent
TESTS = SCRIPTS.parent / "tests"


def load(script):
    """Imports a script whose name has no suffix."""
    loader = importlib.machinery.SourceFileLoader(script.replace("-", "_"), str(SCRIPTS / script))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def reports(*lines):
    """Returns the first line of each report that the watch finds in these lines, and
    the announced reports that did not come."""
    watch = console.Watch()
    with contextlib.redirect_stdout(io.StringIO()):
        for number, line in enumerate(lines):
            watch.line(f"[{number:5}.000000] {line}")
    return [report[0] for report in watch.reports], watch.expected


class Console(unittest.TestCase):
    """Tests of the console's watch."""

    # Lines as the kernel prints them.
    REPORTS = (
        "INFO: task suite:123 blocked for more than 122 seconds.",
        "INFO: task suite:123 blocked in I/O wait for more than 122 seconds.",
        "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [suite:123]",
        "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 32s!",
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "unregister_netdevice: waiting for zsim0 to become free. Usage count = 2",
        "page_pool_release_retry() stalled pool shutdown: id 7, 16 inflight 60 sec",
        "leaked reference.",
        "ref_tracker: netdev@00000000d5b6cc0f has 1/2 users at",
        "ref_tracker: netdev@00000000d5b6cc0f skipped reports about 3/4 users.",
        "ref_tracker: reference already released.",
        "list_add corruption. next->prev should be prev (0), but was 1. (next=2).",
        "list_del corruption, 00000000d5b6cc0f->next is LIST_POISON1",
        "page dumped because: VM_BUG_ON_PAGE(page_ref_count(page) == 0)\n------------[ cut here ]------------",
        "DMA-API: zcrx_sim zcrx_sim.0: device driver failed to check map error",
        "zcrx_sim: DMA fault",
        "kmemleak: 2 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    )
    HARMLESS = (
        "zsim0: renamed from eth0",
        "ref_tracker: memory allocation failure, unreliable refcount tracker.",
        "workqueue: round-robin CPU selection forced, expect performance impact",
        "NMI watchdog: Perf NMI watchdog permanently disabled",
        "page_pool: created",
    )

    def test_each_report_is_seen(self):
        for line in self.REPORTS:
            with self.subTest(line):
                first = line.split("\n")
                got, _ = reports(*first)
                self.assertEqual(len(got), 1)

    def test_nothing_else_is_a_report(self):
        self.assertEqual(reports(*self.HARMLESS), ([], []))

    def test_a_report_of_one_line_hides_none(self):
        lines = ("unregister_netdevice: waiting for zsim0 to become free. Usage count = 2",
                 "page_pool_release_retry() stalled pool shutdown: id 7, 16 inflight 60 sec",
                 "BUG: sleeping function called from invalid context")
        self.assertEqual(reports(*lines)[0], list(lines))

    def test_an_announced_report_is_none(self):
        lines = ("expected report: blocked for more than",
                 "INFO: task suite:123 blocked for more than 1 seconds.")
        self.assertEqual(reports(*lines), ([], []))
        self.assertEqual(reports(*lines[:1]), ([], ["blocked for more than"]))
        # An announcement is for one report.
        again = [lines[1]] + ["a stack"] * console.REPORT_LINES + [lines[1]]
        self.assertEqual(reports(lines[0], *again), ([lines[1]], []))


class Skips(unittest.TestCase):
    """Tests of tests that are skipped."""

    FILE = "# what\n\nany: A1   # why\nc debug: B2 B3 # because\nplain: C4 # no faults\n"

    def expected(self, *guest):
        return skips.expected(skips.parse(self.FILE), set(guest))

    def test_words_must_all_fit(self):
        self.assertEqual(self.expected("rust", "debug", "direct"), {"A1": "why"})
        self.assertEqual(self.expected("c", "plain", "direct"), {"A1": "why", "C4": "no faults"})
        self.assertEqual(set(self.expected("c", "debug", "iommu")), {"A1", "B2", "B3"})

    def test_lines_that_say_nothing_are_refused(self):
        for line in ("A1 # why", "any: A1", "any: # why", "any A1 # why", "kasan: A1 # why"):
            with self.subTest(line), self.assertRaises(skips.SkipsError):
                skips.parse(line)

    def problems(self, skipped, ran, complete=True):
        expect = {"A1": "why"}
        return skips.problems(expect, skipped, ran, complete)

    def test_what_is_expected_is_no_problem(self):
        self.assertEqual(self.problems(["A1 a test"], ["A12 another"]), [])

    def test_a_skip_that_nobody_expects_is_a_failure(self):
        got = self.problems(["A1 a test", "A12 another"], [])
        self.assertEqual(len(got), 1)
        self.assertRegex(got[0], "^A12 another: skipped")

    def test_a_test_that_is_named_and_runs_is_a_failure(self):
        got = self.problems([], ["A1 a test"])
        self.assertEqual(len(got), 1)
        self.assertRegex(got[0], "^A1 a test: not skipped.*: why$")

    def test_a_name_without_a_test_is_a_failure_where_all_were_run(self):
        self.assertEqual(len(self.problems([], ["B2 other"])), 1)
        self.assertEqual(self.problems([], ["B2 other"], complete=False), [])

    def test_the_file_names_tests_of_the_suite(self):
        def text(folder):
            return "".join(path.read_text() for path in folder.rglob("*.rs"))

        suite = text(TESTS / "src/suite")
        kunit = text(SCRIPTS.parent / "rust") + text(SCRIPTS.parent / "io_uring_rs")
        lines = skips.parse((TESTS / "skips").read_text())
        for _, tests, _ in lines:
            for test in tests:
                with self.subTest(test):
                    found = f"fn {test}(" in kunit if test[0].islower() else f'"{test} ' in suite
                    self.assertTrue(found, "there is no such test")
        # Each test is named once for a guest, as a second line would have no effect.
        for impl in skips.KINDS[0]:
            for checkers in skips.KINDS[1]:
                for memory in skips.KINDS[2]:
                    guest = {impl, checkers, memory}
                    named = [test for words, tests, _ in lines if words <= guest for test in tests]
                    self.assertEqual(len(named), len(set(named)), guest)


class Runs(unittest.TestCase):
    """Tests of run-tests on a guest's output."""

    REPORT = """KTAP version 1
1..1
    KTAP version 1
    # Subtest: D0
    1..3
    ok 1 A1 that must be skipped # SKIP no checkers
    ok 2 A2 that must not # SKIP something moved
    ok 3 A3 that runs
ok 1 D0
"""

    @classmethod
    def setUpClass(cls):
        try:
            cls.run_tests = load("run-tests")
        except ModuleNotFoundError as error:
            raise unittest.SkipTest(f"no kernel tree: {error}")

    def judged(self, expect):
        results = self.run_tests.Results()
        with contextlib.redirect_stdout(io.StringIO()):
            tests = results.take("tests", iter(self.REPORT.splitlines()),
                                 self.run_tests.kunit_printer.null_printer)
            results.judge_skips(tests, expect, complete=True)
        return results

    def test_only_the_skip_that_nobody_expects_fails(self):
        results = self.judged({"A1": "why"})
        self.assertEqual((results.passed, results.skipped, results.failed), (1, 2, 1))
        self.assertRegex(results.problems[0], "^A2 that must not: skipped")

    def test_both_ways_fail(self):
        results = self.judged({"A1": "why", "A2": "why", "A3": "why"})
        self.assertEqual(results.failed, 1)
        self.assertRegex(results.problems[0], "^A3 that runs: not skipped")


if __name__ == "__main__":
    unittest.main()
