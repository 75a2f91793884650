#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The mutations in tests/mutations/*.toml, for scripts/mutants. Each has

- file and line: the line that is changed, without its indentation,
- in: text of a line above the right one, if the file has several such lines,
- becomes: the new line, or nothing to remove the line,
- tests: tags of the user-space tests, or groups of them, that may notice it, besides KUnit,
- equivalent: the reason why nothing can notice it, if nothing can,
- alone: the reason why it cannot be in one kernel with others, if the compiler does not
  say so in a way that scripts/mutation_batch.py understands.

A test that notices one is recorded in tests/mutations/noticed. That file is part of the
project, so that a run goes on where another one ended, on any machine; remove it to run
all mutations again.

`pending [PREFIX…]` prints the keys of mutations that no test has noticed yet, or of
those in files whose names after io_uring_rs/ or rust/kernel/ start with a PREFIX.
`summary [PREFIX…]` lists them in words, counts all, and fails if any are left. `apply
KEY TREE` makes a mutation in a kernel tree. `show KEY` prints it in words. Runs in the
build root."""

import argparse
import hashlib
import pathlib
import sys
import tomllib

import machine

TABLES = machine.TOP / "tests/mutations"
NOTICED = TABLES / "noticed"
AROUND = 12  # lines before a mutation and after it
FIELDS = {"file", "line", "becomes", "in", "tests", "equivalent", "alone"}


class Mutation:
    def __init__(self, entry, table):
        unknown = entry.keys() - FIELDS
        if unknown or not {"file", "line", "becomes", "tests"} <= entry.keys():
            machine.die(f"{table}: a mutation needs file, line, becomes and tests, and {unknown or 'nothing'} "
                        "else is there; see scripts/mutation.py")
        self.file = entry["file"]
        self.old, self.new = entry["line"], entry["becomes"]
        self.after = entry.get("in")
        self.tests = entry["tests"]
        self.equivalent = entry.get("equivalent", "")
        self.alone = "alone" in entry
        self.text = (machine.TOP / self.file).read_text()
        # A result stays valid as long as the mutation and the code around it do.
        number = self.number()
        around = self.text.splitlines()[max(number - AROUND, 0):number + AROUND]
        code = [line for line in around if not line.lstrip().startswith("//")]
        content = "\0".join([self.file, self.old, self.new, self.after or "", *code])
        self.key = hashlib.sha256(content.encode()).hexdigest()[:16]

    def number(self):
        """Returns the index of the line that is changed."""
        lines = self.text.splitlines()
        start = 0
        if self.after:
            above = [index for index, line in enumerate(lines) if self.after in line]
            if not above:
                machine.die(f"{self.file} has no line with '{self.after}'; change that in tests/mutations")
            start = above[0]
        found = [index for index, line in enumerate(lines) if index >= start and line.strip() == self.old]
        if not found or (len(found) > 1 and not self.after):
            machine.die(f"{self.file} has {len(found) or 'no'} lines '{self.old}'; change that in tests/mutations")
        return found[0]

    def mutated(self):
        lines = self.text.splitlines()
        index = self.number()
        indent = lines[index][:len(lines[index]) - len(lines[index].lstrip())]
        lines[index] = indent + self.new if self.new else ""
        return "\n".join(lines) + "\n"

    def words(self):
        return f"{self.file}:{self.number() + 1}: {self.old}  →  {self.new or '(nothing)'}"


def mutations():
    return [Mutation(entry, path.name) for path in sorted(TABLES.glob("*.toml"))
            for entry in tomllib.loads(path.read_text())["mutation"]]


def noticed():
    """Returns the tests that noticed mutations, by the mutations' keys."""
    if not NOTICED.exists():
        return {}
    return dict(line.split(" ", 1) for line in NOTICED.read_text().splitlines() if not line.startswith("#"))


def note(key, test):
    """Records that a test noticed a mutation, and forgets mutations that are no more."""
    results = noticed() | {key: f"{find(key).file}: {test}"}
    lines = [f"{mutation.key} {results[mutation.key]}\n" for mutation in mutations() if mutation.key in results]
    new = NOTICED.with_suffix(".new")
    new.write_text("# SPDX-License-Identifier: GPL-2.0\n# Written by make mutants: a mutation, its file, and the "
                   "test that noticed it\n" + "".join(sorted(set(lines), key=lambda line: line.split(" ", 1)[1])))
    new.replace(NOTICED)


def find(key):
    return next(mutation for mutation in mutations() if mutation.key == key)


def chosen(prefixes):
    """Returns the mutations in files whose names start with one of `prefixes`, or all."""
    found = [mutation for mutation in mutations()
             if mutation.file.removeprefix("io_uring_rs/").removeprefix("rust/kernel/").startswith(prefixes or ("",))]
    if not found:
        machine.die(f"no mutation is in a file whose name starts with {' or '.join(prefixes)}; "
                    "see tests/mutations, or leave ONLY out")
    return found


def summary(found):
    """Prints what became of mutations. Returns the exit status."""
    results = noticed()
    equivalent = [mutation for mutation in found if mutation.equivalent]
    left = [mutation for mutation in found if not mutation.equivalent and mutation.key not in results]
    for mutation in left:
        print(f"survived: {mutation.words()}")
    print(f"mutants: {len(found)} mutations, {len(found) - len(equivalent) - len(left)} noticed, "
          f"{len(equivalent)} equivalent, {len(left)} survived")
    return 1 if left else 0


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=("pending", "summary", "apply", "show"))
    options.add_argument("arguments", nargs="*")
    options = options.parse_args()

    if options.what == "apply":
        key, tree = options.arguments
        mutation = find(key)
        path = pathlib.Path(tree) / mutation.file
        path.unlink()  # The file may be a hard link to one that other builds use.
        path.write_text(mutation.mutated())
        return 0
    if options.what == "show":
        print(find(options.arguments[0]).words())
        return 0
    found = chosen(tuple(options.arguments))
    if options.what == "summary":
        return summary(found)
    results = noticed()
    for mutation in found:
        if not mutation.equivalent and mutation.key not in results:
            print(mutation.key)
    return 0


if __name__ == "__main__":
    sys.exit(main())
