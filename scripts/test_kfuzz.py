# SPDX-License-Identifier: GPL-2.0
"""Tests of run-kfuzz: what it reads from guests, and what it takes for a failure."""

import contextlib
import io
import pathlib
import tempfile
import types
import unittest
import unittest.mock

from test_harness import load_or_skip

PROGRAMS = ["Close 0", "Close 1", "Close 2", "Close 3"]


class FakeGuest:
    """A guest that has printed these lines, and has these problems."""

    def __init__(self, lines, problems=()):
        self.lines, self.found = lines, list(problems)
        self.console_log = "console.log"
        self.killed = False

    def report_lines(self):
        yield from self.lines

    def problems(self):
        return self.found

    def kill(self):
        self.killed = True


class KfuzzTest(unittest.TestCase):
    def setUp(self):
        self.kfuzz = load_or_skip("run-kfuzz")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.kfuzz.OUT = pathlib.Path(folder.name)
        self.kfuzz.FOUND = self.kfuzz.OUT / "found"
        self.kfuzz.machine.TOP = self.kfuzz.OUT
        self.enterContext(contextlib.redirect_stdout(io.StringIO()))

    def run_guest(self, guest, reports=()):
        watch = types.SimpleNamespace(reports=list(reports))
        with (unittest.mock.patch.object(self.kfuzz.machine, "Guest", return_value=guest),
              unittest.mock.patch.object(self.kfuzz.machine, "kernel_image"),
              unittest.mock.patch.object(self.kfuzz.console, "ConsoleReader", return_value=watch),
              unittest.mock.patch.object(self.kfuzz.time, "sleep"),
              unittest.mock.patch.object(self.kfuzz, "with_programs")):
            return self.kfuzz.Run("kernel-x", "job", [], "initrd", 1, "test").wait()

    def test_lines_of_a_guest_are_read(self):
        run = self.run_guest(FakeGuest(["try 7 3 Race", "new Close 9", "digests 4 aa - bb", "progress far", "# note"]))
        self.assertEqual((run.last, run.found, run.progress, run.lines), ((7, 3), ["Close 9"], "far", ["# note"]))
        self.assertEqual(run.digests, {4: "aa", 5: "-", 6: "bb"})
        self.assertIsNone(run.problem)

    def test_reports_errors_and_dead_guests_are_problems(self):
        self.assertIn("left something", self.run_guest(FakeGuest(["error: left something"])).problem)
        self.assertIn("did not end", self.run_guest(FakeGuest([], ["the guest did not end"])).problem)
        guest = FakeGuest(["try 7 3 Race"], ["the guest ended before its job did"])
        run = self.run_guest(guest, reports=[["BUG: KASAN: something"]])
        self.assertEqual(run.problem, "kernel-x reported: BUG: KASAN: something")
        self.assertTrue(guest.killed)

    def judge(self, texts):
        results = self.kfuzz.Results()
        reduce = lambda program, text, _: (program, text)
        with (unittest.mock.patch.object(self.kfuzz, "record", return_value=dict(enumerate(texts))),
              unittest.mock.patch.object(self.kfuzz, "reduce_difference", side_effect=reduce)):
            self.kfuzz.judge(list(range(len(texts))), PROGRAMS.__getitem__, None, results)
        return results

    def test_each_kind_of_difference_is_one_failure(self):
        results = self.judge(["different: 3 Close | C: 0; | Rust: -9 (EBADF);", "same",
                              "different: 8 Close | C: 0; | Rust: -9 (EBADF);", "deviation: Chains are bounded"])
        self.assertEqual(len(results.failures), 1)
        self.assertEqual((results.unsteady, results.deviations), (1, {"Chains are bounded": 1}))
        self.assertIn("Close 0", (self.kfuzz.OUT / "failure-1").read_text())

    def test_differences_are_reduced_as_long_as_simpler_programs_differ(self):
        judged = [{0: "same", 1: "different: 0 Close | C: 0; | Rust: ;", 2: "different: x"}, {0: "deviation: y"}]
        with (unittest.mock.patch.object(self.kfuzz, "record", side_effect=judged),
              unittest.mock.patch.object(self.kfuzz, "fuzzer", return_value=PROGRAMS)):
            program, text = self.kfuzz.reduce_difference("Exec", "different: z", None)
        self.assertEqual((program, text), ("Close 1", "different: 0 Close | C: 0; | Rust: ;"))

    def test_the_program_that_crashes_again_is_found_and_reduced(self):
        crash = types.SimpleNamespace(problem="a report", last=(2, 0))
        fine = types.SimpleNamespace(problem=None, last=(3, 5))
        for runs, want in [([crash, fine], ("Close 2", "a report")), ([fine], (None, None))]:
            guest = unittest.mock.Mock()
            guest.return_value.wait.side_effect = runs
            with (unittest.mock.patch.object(self.kfuzz, "Run", guest),
                  unittest.mock.patch.object(self.kfuzz, "fuzzer", return_value=PROGRAMS)):
                self.assertEqual(self.kfuzz.reduce_crash(PROGRAMS, "kernel-x", None), want)


if __name__ == "__main__":
    unittest.main()
