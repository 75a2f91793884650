#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The catalogue of all tests, read from their sources: the tables of tests/src/suite,
the KUnit suites of io_uring_rs/, rust/ and kunit/, and the tests of this machine in
tests/pure, tests/loom, tests/src/model.rs and tools/ringfence. A test's documentation says
what it shows:

- The first paragraph is "Checks that …". For KUnit tests and tests of this machine, the
  name is a sentence, and the paragraph may be another one that explains it.
- A paragraph that begins with "In C, " says what is different there.

`list` prints one line for each test. `rst` writes test-catalogue.rst, and `stale` fails
if that file is not up to date. `check WORDS` fails if a word names nothing. `host
WORDS` prints the tests of this machine that the words choose, as cargo calls them.

A word chooses the test with that path or tag, the tests of that module, or the tests of
the group with that tag. `kunit` and `host` are modules, too. KUnit suites may be
patterns, as in `kunit::rust_kernel_net*`."""

import argparse
import dataclasses
import fnmatch
import os
import pathlib
import re
import sys
import textwrap

TOP = pathlib.Path(__file__).resolve().parent.parent
SUITE = TOP / "tests/src/suite"
PAGE = TOP / "Documentation/io_uring_rs/test-catalogue.rst"

GROUP = re.compile(r'Group \{\s*tag: "(\w+)",\s*name: "([^"]+)",\s*tests: &\[([^\]]*)\]')
TABLE = re.compile(r"const TESTS: &\[Test\] = tests! \{\n(.*?)^\};", re.M | re.S)
MODULE = re.compile(r'^    "([\w:]+)" \{\n(.*?)^    \}', re.M | re.S)
ENTRY = re.compile(r"^ +(\w+) (\w+)(?: \(\d+ s\))?;$", re.M)
RUST_SUITE = re.compile(r"^\s*#\[(?:\w+::)*kunit_tests\((\w+)\)\]", re.M)
RUST_TEST = re.compile(r"((?:^ *///.*\n)*)^ *#\[test\]\n(?:^ *#\[.*\n)*^ *fn (\w+)", re.M)
C_SUITE = re.compile(r'^static struct kunit_suite \w+ = \{\s*\.name = "([^"]+)"', re.M)
C_TEST = re.compile(r"\bKUNIT_CASE\w*\((\w+)")
# Documentation examples are a suite that is made while the kernel is built.
EXAMPLES = "rust_doctests_kernel"


class CatalogueError(Exception):
    """A source that cannot be read, or a word that names nothing."""


@dataclasses.dataclass(frozen=True)
class Test:
    path: str
    shows: str
    in_c: str = ""
    tag: str = ""
    group: str = ""
    title: str = ""  # of the group
    cargo: str = ""  # the name of a test of this machine

    def name(self):
        """Returns the name that KTAP has, too."""
        return f"{self.path} ({self.tag})" if self.tag else self.path

    def is_chosen(self, word):
        module, rest = word.split("::", 1) if "::" in word else (word, "*")
        if self.path.startswith("kunit::"):
            _, suite, name = self.path.split("::")
            pattern, _, sentence = rest.partition("::")
            return module == "kunit" and fnmatch.fnmatchcase(suite, pattern) and sentence in ("", name)
        return word in (self.tag, self.group, self.path) or self.path.startswith(f"{word}::")


def described(documentation, name):
    """Returns what a test shows, and what is different in C. `documentation` may have
    the comment's marks."""
    text = re.sub(r"^[ \t]*(?:///|/\*+|\*+/?)[ \t]?|[ \t]*\*/$", "", documentation, flags=re.M)
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]
    shows = paragraphs[0].removeprefix("Checks that ")
    if shows == paragraphs[0]:
        shows = f"{name.replace('_', ' ')}. {shows}".strip()
    in_c = next((part for part in paragraphs if part.startswith("In C, ")), "")
    return shows[0].upper() + shows[1:], in_c


def user_space():
    """Yields the tests of the suite, in its order."""
    for group, title, tables in GROUP.findall((SUITE / "mod.rs").read_text()):
        for file in re.findall(r"(\w+)::TESTS", tables):
            text = (SUITE / f"{file}.rs").read_text()
            table = TABLE.search(text)
            if not table:
                raise CatalogueError(f"tests/src/suite/{file}.rs has no table TESTS; see tests! in mod.rs")
            for module, entries in MODULE.findall(table[1]):
                for tag, name in ENTRY.findall(entries):
                    function = re.search(rf"((?:^///.*\n)+)^fn {name}\(", text, re.M)
                    if not function:
                        raise CatalogueError(f"tests/src/suite/{file}.rs: {tag} does not say what it shows; "
                                             f"add 'Checks that …' before fn {name}")
                    yield Test(f"{module}::{name}", *described(function[1], name), tag, group, title)


def kunit():
    """Yields the KUnit tests, sorted by file."""
    sources = [path for folder in ("io_uring_rs", "rust") for path in (TOP / folder).rglob("*.rs")]
    for path in sorted(sources):
        # A file may have several suites, one after the other.
        parts = RUST_SUITE.split(path.read_text())[1:]
        for suite, text in zip(parts[::2], parts[1::2]):
            for documentation, name in RUST_TEST.findall(text):
                yield Test(f"kunit::{suite}::{name}", *described(documentation, name))
    for path in sorted((TOP / "kunit").glob("*.c")):
        text = path.read_text()
        if suite := C_SUITE.search(text):
            for name in C_TEST.findall(text):
                comment = re.search(rf"^(/\*(?:(?!\*/).)*\*/)\n+static void {name}\(", text, re.M | re.S)
                yield Test(f"kunit::{suite[1]}::{name}", *described(comment[1] if comment else "", name))


def host():
    """Yields the tests of this machine."""
    folders = [TOP / "tests/pure/src", TOP / "tests/loom/src"]
    ringfence = TOP / "tools/ringfence"
    files = [
        *((path, f"{path.stem}::") for folder in folders for path in sorted(folder.glob("*.rs"))),
        (TOP / "tests/src/model.rs", "model::tests::"),
        *((path, f"{path.stem}::tests::") for path in sorted((ringfence / "src").glob("*.rs"))),
        *((path, "") for path in sorted((ringfence / "tests").glob("*.rs"))),
    ]
    for path, module in files:
        for documentation, name in RUST_TEST.findall(path.read_text()):
            yield Test(f"host::{path.stem}::{name}", *described(documentation, name), cargo=f"{module}{name}")


def everything():
    return [*user_space(), *kunit(), *host()]


def choose(words, tests):
    """Returns those of `tests` that the words choose. Fails if a word chooses none."""
    for word in words:
        if word.startswith(f"kunit::{EXAMPLES}") or any(test.is_chosen(word) for test in tests):
            continue
        groups = dict.fromkeys(test.group for test in tests if test.group)
        modules = dict.fromkeys(test.path.split("::")[0] for test in tests)
        raise CatalogueError(f"no test, module or group is called '{word}'; there are the groups {' '.join(groups)} and the "
                             f"modules {' '.join(modules)}, and 'make test LIST=1' lists all tests")
    return [test for test in tests if any(test.is_chosen(word) for word in words)]


def patterns(words):
    """Returns the patterns by which the kernel finds the KUnit tests that the words
    choose, each once: `SUITE` or `SUITE.TEST`."""
    chosen = [word.removeprefix("kunit").removeprefix("::") or "*"
              for word in words if word == "kunit" or word.startswith("kunit::")]
    return list(dict.fromkeys(word.replace("::", ".") for word in chosen))


def in_markup(text):
    """Returns documentation of Rust as reStructuredText."""
    text = re.sub(r"\[?`([^`]+)`\]?", r"``\1``", text)
    return text.replace("*", r"\*")


def page(tests):
    """Returns the text of test-catalogue.rst."""
    lines = [
        ".. SPDX-License-Identifier: GPL-2.0",
        ".. Written by 'make test LIST=rst' from the tests; do not edit.",
        "",
        "=================",
        "Catalogue of tests",
        "=================",
        "",
        "This page lists all tests, each with its path, its tag if it has one, what it",
        "shows, and what is different in C. ``make test ONLY=…`` takes paths, modules and",
        "tags; see :doc:`testing`. A check that nothing is left behind, ``EN01``, ends each",
        "run of the user-space tests.",
    ]
    lines[3] = lines[5] = "=" * len(lines[4])
    last = None
    for test in tests:
        heading = {"kunit": "KUnit tests", "host": "Tests on the host"}.get(
            test.path.split("::")[0], f"{test.group}: {test.title}")
        if heading != last:
            lines += ["", heading, "=" * len(heading)]
            last = heading
        lines += ["", f"``{test.path}``" + (f" ({test.tag})" if test.tag else "")]
        for text in filter(None, (test.shows, test.in_c)):
            indent = "   " if text == test.shows else "\n   "
            lines.append(textwrap.fill(in_markup(text), 80, initial_indent=indent, subsequent_indent="   ",
                                       break_long_words=False, break_on_hyphens=False))
    return "\n".join(lines) + "\n"


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=("list", "rst", "stale", "check", "host"))
    options.add_argument("words", nargs="?", default="")
    options = options.parse_args()
    words = options.words.split()

    if options.what == "list":
        for test in everything():
            print(" ".join(filter(None, (f"{test.name()}:", test.shows, test.in_c))))
    elif options.what == "rst":
        PAGE.write_text(page(everything()))
    elif options.what == "stale":
        if not PAGE.exists() or PAGE.read_text() != page(everything()):
            raise CatalogueError(f"{PAGE.relative_to(TOP)} is stale; run 'make test LIST=rst'")
    elif options.what == "check":
        choose(words, everything())
    else:
        for test in choose(words, list(host())):
            print(test.cargo)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CatalogueError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        # The reader, such as `head`, has enough. Nothing is left to be written at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
