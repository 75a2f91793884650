# SPDX-License-Identifier: GPL-2.0
"""Tests of how several mutations are put into one kernel. `make lint ONLY=harness` runs
them."""

import sys
import textwrap
import types
import unittest
import unittest.mock

sys.dont_write_bytecode = True
import mutation
import mutation_batch

FILE = "rust/kernel/example.rs"
TEXT = textwrap.dedent("""\
    const LIMIT: u32 = 3;

    impl Example {
        const fn constant() -> u32 {
            4
        }

        fn initializer(
            value: u32,
        ) -> impl PinInit<Self> {
            five(value)
        }

        pub(super) unsafe extern "C" fn long(
            first: u32,
        ) -> u32
        where
            Self: Sized,
        {
            fn inner() -> u32 {
                7
            }

            first + 6 + inner()
        }
    }
    """)


def mutate(old, new):
    """Returns a mutation of one line of TEXT."""
    lines = TEXT.splitlines()
    number = next(number for number, line in enumerate(lines) if line.strip() == old)
    mutated = lines[:number] + [new] + lines[number + 1:]
    return types.SimpleNamespace(key=f"{old} → {new}", file=FILE, text=TEXT, alone=False, number=lambda: number,
                                 mutated=lambda: "\n".join(mutated) + "\n")


def batch(*mutations):
    """Returns a batch of all of these that can be in one."""
    with unittest.mock.patch.object(mutation, "mutations", return_value=mutations):
        return mutation_batch.Batch({one.key for one in mutations})


class Batches(unittest.TestCase):
    def test_the_body_of_a_function_is_repeated(self):
        made = batch(mutate("first + 6 + inner()", "60"), mutate("Self: Sized,", "Self: Send,"),
                     mutate("first + 6 + inner()", "61"))
        lines = [line.strip() for line in made.texts[FILE].splitlines()]
        start = lines.index("match crate::mutant::number() {")
        body = ["fn inner() -> u32 {", "7", "}", ""]
        self.assertEqual(lines[start - 1], "{")
        self.assertEqual(lines[start:], [
            "match crate::mutant::number() {",
            "1 => {", *body, "60", "}", "2 => {", *body, "61", "}",
            "_ => {", *body, "first + 6 + inner()", "}", "}", "}", "}"])
        self.assertEqual(list(made.numbers.values()), [1, 2])

    def test_some_functions_cannot_be_repeated(self):
        made = batch(mutate("const LIMIT: u32 = 3;", "const LIMIT: u32 = 4;"), mutate("4", "5"),
                     mutate("five(value)", "six(value)"))
        self.assertEqual((made.numbers, made.texts), ({}, {}))

    def test_a_function_in_one_that_is_repeated_is_left(self):
        made = batch(mutate("first + 6 + inner()", "60"), mutate("7", "8"))
        self.assertEqual(list(made.numbers), ["first + 6 + inner() → 60"])

    def test_errors_name_the_mutations_of_their_function(self):
        made = batch(mutate("first + 6 + inner()", "60"))
        number = made.texts[FILE].splitlines().index("60") + 1
        error = f"warning: unused\n  --> {FILE}:9:5\nerror[E0308]: mismatched types\n  --> ../linux/{FILE}:{{}}:5\n"
        self.assertEqual(made.failed(error.format(number)), ["first + 6 + inner() → 60"])
        self.assertEqual(made.failed(error.format(2)), [])
        self.assertEqual(made.failed(error.format(number).replace("error", "warning")), [])


if __name__ == "__main__":
    unittest.main()
