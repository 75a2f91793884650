# SPDX-License-Identifier: GPL-2.0
"""Tests of the failures that run-tests must find: unexpected skips, and reports of the
kernel. Also tests how words choose tests. `make lint ONLY=harness` runs them."""

import argparse
import contextlib
import importlib.machinery
import importlib.util
import io
import pathlib
import sys
import tempfile
import threading
import time
import tomllib
import unittest
import unittest.mock

sys.dont_write_bytecode = True
import alive
import catalogue
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


def load_or_skip(script):
    """Imports a script. Skips the tests if a module that it needs is not there."""
    try:
        return load(script)
    except ModuleNotFoundError as error:
        raise unittest.SkipTest(f"{script}: {error}")


def load_mutations():
    return [mutation for path in (TESTS / "mutations").glob("*.toml")
            for mutation in tomllib.loads(path.read_text())["mutation"]]


def reports(*lines):
    """Returns the first line of each report that the watch finds in these lines, and
    the announced reports that did not come."""
    watch = console.ConsoleReader()
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


class Display(unittest.TestCase):
    """Tests of the display of long work."""

    def test_long_work_shows_that_it_goes_on(self):
        words = iter(("first", "second " + 200 * "x", ""))
        enough = threading.Event()

        def at_work():
            word = next(words, None)
            if word is None:
                enough.set()
            return word

        with contextlib.redirect_stdout(io.StringIO()) as shown, \
                unittest.mock.patch.object(alive.Alive, "PERIOD", 0.01), alive.Alive("boot", at_work, begin=time.monotonic() - 83):
            self.assertTrue(enough.wait(10))
        lines = shown.getvalue().splitlines()[:3]
        self.assertEqual(lines, ["  1:23  boot … first", "  1:23  boot … second " + 93 * "x", "  1:23  boot … "])

    def test_short_work_shows_nothing(self):
        with contextlib.redirect_stdout(io.StringIO()) as shown, alive.Alive("boot", lambda: "word"):
            pass
        self.assertEqual(shown.getvalue(), "")


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
        self.assertEqual(self.problems(["a::test (A1)"], ["a::nother (A12)"]), [])

    def test_a_skip_that_nobody_expects_is_a_failure(self):
        got = self.problems(["a::test (A1)", "a::nother (A12)"], [])
        self.assertEqual(len(got), 1)
        self.assertRegex(got[0], r"^a::nother \(A12\): skipped")

    def test_a_test_that_is_named_and_runs_is_a_failure(self):
        got = self.problems([], ["a::test (A1)"])
        self.assertEqual(len(got), 1)
        self.assertRegex(got[0], r"^a::test \(A1\): not skipped.*: why$")

    def test_a_name_without_a_test_is_a_failure_where_all_were_run(self):
        self.assertEqual(len(self.problems([], ["b::other (B2)"])), 1)
        self.assertEqual(self.problems([], ["b::other (B2)"], complete=False), [])

    def test_the_file_names_tests_of_the_suite(self):
        known = {test.tag or test.path.rpartition("::")[2] for test in catalogue.everything()}
        lines = skips.parse((TESTS / "skips").read_text())
        for _, tests, _ in lines:
            for test in tests:
                with self.subTest(test):
                    self.assertIn(test, known)
        # Each test is named once for a guest, as a second line would have no effect.
        for impl in skips.KINDS[0]:
            for checkers in skips.KINDS[1]:
                for memory in skips.KINDS[2]:
                    guest = {impl, checkers, memory}
                    named = [test for words, tests, _ in lines if words <= guest for test in tests]
                    self.assertEqual(len(named), len(set(named)), guest)


class Words(unittest.TestCase):
    """Tests of the words that choose tests."""

    TESTS = [
        catalogue.Test("a::b::one", "One.", tag="A1", group="D1"),
        catalogue.Test("a::b::one_more", "More.", tag="A12", group="D1"),
        catalogue.Test("a::bc::two", "Two.", tag="A2", group="D10"),
        catalogue.Test("kunit::net_iov::three", "Three."),
        catalogue.Test("kunit::net_iov::four", "Four."),
        catalogue.Test("kunit::fs::five", "Five."),
        catalogue.Test("host::model::six", "Six."),
    ]

    def chosen(self, *words):
        return [test.path.rpartition("::")[2] for test in catalogue.choose(words, self.TESTS)]

    def test_names_are_taken_whole(self):
        for word, names in (
                ("A1", ["one"]), ("D1", ["one", "one_more"]), ("D10", ["two"]), ("a::b", ["one", "one_more"]),
                ("a::b::one", ["one"]), ("a", ["one", "one_more", "two"]), ("host", ["six"]), ("host::model", ["six"]),
                ("kunit", ["three", "four", "five"]), ("kunit::net*", ["three", "four"]), ("kunit::fs", ["five"]),
                ("kunit::net_iov::four", ["four"])):
            with self.subTest(word):
                self.assertEqual(self.chosen(word), names)
        self.assertEqual(self.chosen("D10", "A1"), ["one", "two"])

    def test_a_word_that_names_nothing_is_an_error(self):
        for word in ("A", "D", "D2", "a::b::on", "one", "kunit::net", "kunit::fs::fiv", "hos"):
            with self.subTest(word), self.assertRaisesRegex(catalogue.CatalogueError, f"called '{word}'.* D1 D10 .*LIST=1"):
                catalogue.choose(["A1", word], self.TESTS)

    def test_the_kernel_gets_patterns(self):
        self.assertEqual(catalogue.patterns(["A1", "kunit", "kunit::net*", "kunit::fs::five"]), ["*", "net*", "fs.five"])
        self.assertEqual(catalogue.patterns(["D1", "kunittest"]), [])

    def test_names_and_tags_are_unique(self):
        tests = catalogue.everything()
        for names in ([test.path for test in tests], [test.tag for test in tests if test.tag]):
            self.assertEqual(len(names), len(set(names)))
        groups = {test.group for test in tests}
        self.assertFalse(groups.intersection(test.tag for test in tests if test.tag))

    def test_mutations_name_tests(self):
        tests = catalogue.everything()
        for mutation in load_mutations():
            with self.subTest(mutation["line"]):
                catalogue.choose(mutation["tests"].split(), tests)


class Guests(unittest.TestCase):
    """Tests of the guests that run-tests boots for some words."""

    @classmethod
    def setUpClass(cls):
        cls.run_tests = load_or_skip("run-tests")

    def guests(self, only, **options):
        given = {"only": only, "impl": "rust", "debug": False, "iommu": False, "coverage": False, "mutant": None,
                 "external": None, "soak": None, "timeout": None, **options}
        return list(self.run_tests.boots(argparse.Namespace(**given), None))

    def boots(self, only, **options):
        return [guest.append for guest in self.guests(only, **options)]

    def test_words_leave_out_what_they_do_not_name(self):
        self.assertEqual(self.boots("D1 filters::inherit"), ["kunit.autorun=0 -- suite D1,filters::inherit"])
        self.assertEqual(self.boots("kunit"), ["kunit.filter_glob=* -- nothing"])
        self.assertEqual(self.boots("D1 kunit::rust_kernel_net* kunit::rust_kernel_bpf"), [
            "kunit.autorun=0 -- suite D1", "kunit.filter_glob=rust_kernel_net* -- nothing",
            "kunit.filter_glob=rust_kernel_bpf -- nothing"])
        self.assertEqual(self.boots("kunit D1 kunit"), ["kunit.filter_glob=* -- suite D1"])
        with self.assertRaises(catalogue.CatalogueError):
            self.boots("D1 D12")

    def test_device_tests_have_more_guests_with_checkers(self):
        def last(*words, **options):
            return [append.partition("-- suite ")[2] for append in self.boots(*words, debug=True, **options)]

        self.assertEqual(last("D1"), ["D1"])
        self.assertEqual(last("zcrx::device::dmabuf"), ["zcrx::device::dmabuf", "ZN23", "ZN17,ZN18,ZN23"])
        self.assertEqual(last("ZN01", iommu=True), ["ZN01"])
        self.assertEqual(last("", iommu=True), ["D10"])
        with self.assertRaises(catalogue.CatalogueError):
            self.boots("ZN01 kunit", iommu=True)
        self.assertEqual(last("")[1:], ["D10,ST", "RP", "ZN23", "ZN01,ZN04,ZN07,ZN17,ZN27,ZN32"])

    def test_only_tests_that_need_larger_programs_have_them(self):
        def with_programs(only):
            return [guest.append.partition("-- suite ")[2] for guest in self.guests(only) if guest.programs]

        self.assertEqual(with_programs(""), ["RP"])
        self.assertEqual(with_programs("D1 RG"), [])
        self.assertEqual(with_programs("D1 RP02"), ["D1,RP02"])

    def test_a_mutation_is_told_to_the_kernel(self):
        chosen = "mutant.number=7 oracle_test.programs=3000 "
        self.assertEqual(self.boots("D1 kunit", mutant=7), [f"{chosen}kunit.filter_glob=* -- suite D1"])
        self.assertEqual(self.boots("ZN23", mutant=7), [
            f"{chosen}kunit.autorun=0 -- suite ZN23", f"{chosen}swiotlb=force kunit.enable=0 -- suite ZN23"])


class Runs(unittest.TestCase):
    """Tests of run-tests on a guest's output."""

    REPORT = """KTAP version 1
1..1
    KTAP version 1
    # Subtest: D0
    1..3
    ok 1 a::must_be_skipped (A1) # SKIP no checkers
    ok 2 a::must_not (A2) # SKIP something moved
    ok 3 a::runs (A3)
ok 1 D0
"""

    @classmethod
    def setUpClass(cls):
        cls.run_tests = load_or_skip("run-tests")

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
        self.assertRegex(results.problems[0], r"^a::must_not \(A2\): skipped")

    def test_a_mutation_is_noticed_by_the_first_failure(self):
        lines = ["[    1.0] ok 1 a", "    not ok 2 b # SKIP why", "    not ok 3 - c::d (C1)", "not ok 4 e"]
        seen = []
        with self.assertRaises(self.run_tests.MutationNoticed) as noticed:
            for line in self.run_tests.until_failure(lines):
                seen.append(line)
        self.assertEqual((str(noticed.exception), seen), ("c::d", lines[:2]))

    def test_both_ways_fail(self):
        results = self.judged({"A1": "why", "A2": "why", "A3": "why"})
        self.assertEqual(results.failed, 1)
        self.assertRegex(results.problems[0], r"^a::runs \(A3\): not skipped")


class Ends(unittest.TestCase):
    """Tests of how a guest ends. A shell script stands in QEMU's place."""

    @classmethod
    def setUpClass(cls):
        cls.machine = load_or_skip("machine.py")

    @contextlib.contextmanager
    def guest(self, script, limit):
        """Starts the script, whose $1 is the file of the programs' output."""

        def command(*_, serial, **__):
            return ["sh", "-c", script, "sh", serial[3].removeprefix("file:")]

        with tempfile.TemporaryDirectory() as folder, \
             unittest.mock.patch.multiple(self.machine, command=command, use_kvm=lambda image: False,
                                          LOGS=pathlib.Path(folder)):
            guest = self.machine.Guest("image", "initrd", "", limit=limit, log="log", watch=console.ConsoleReader())
            try:
                yield guest
            finally:
                guest.kill()

    def test_results_are_read_long_after_the_end(self):
        with self.guest('echo "# exit 0" >$1', limit=0.5) as guest:
            time.sleep(1)
            self.assertEqual(list(guest.report_lines()), [])
            self.assertEqual(guest.problems(), [])

    def test_a_guest_that_goes_on_for_too_long_is_killed(self):
        with self.guest('exec sleep 60', limit=0.2) as guest:
            self.assertEqual(list(guest.report_lines()), [])
            problems = guest.problems()
            self.assertEqual(len(problems), 1)
            self.assertRegex(problems[0], r"^the guest did not end within 0.2 s")

    def test_the_status_of_qemu_is_told(self):
        with self.guest('echo "# exit 0" >$1; exit 3', limit=60) as guest:
            self.assertEqual(list(guest.report_lines()), [])
            self.assertEqual(guest.problems(), ["QEMU ended with status 3; its message is above"])


if __name__ == "__main__":
    unittest.main()
