#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The mutations in tests/mutations/*.toml, for scripts/mutants. Each has

- file and line: the line that is changed, without its indentation,
- in: text of a line above the right one, if the file has several such lines,
- becomes: the new line, or nothing to remove the line,
- tests: tags of the user-space tests, or groups of them, that may notice it, besides KUnit,
- equivalent: the reason why nothing can notice it, if nothing can.

`list [PREFIX…]` prints one line for each mutation, or for each in a file whose name
after io_uring_rs/ or rust/kernel/ starts with a PREFIX: its key, file, tests, and the
reason why it is equivalent, with SEPARATOR between them, as some may be empty. `apply
KEY TREE` makes the mutation in a kernel tree. `show KEY` prints it in words. Runs in the
build root."""

import argparse
import hashlib
import pathlib
import sys
import tomllib

import machine

TABLES = machine.TOP / "tests/mutations"
SEPARATOR = "\x1f"
FIELDS = {"file", "line", "becomes", "in", "tests", "equivalent"}


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
        self.text = (machine.TOP / self.file).read_text()
        # A result stays valid as long as the mutation and the code of its file do.
        code = [line for line in self.text.splitlines() if not line.lstrip().startswith("//")]
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


def find(key):
    return next(mutation for mutation in mutations() if mutation.key == key)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=("list", "apply", "show"))
    options.add_argument("arguments", nargs="*")
    options = options.parse_args()

    if options.what == "apply":
        key, tree = options.arguments
        mutation = find(key)
        path = pathlib.Path(tree) / mutation.file
        path.unlink()  # The file may be a hard link to one that other builds use.
        path.write_text(mutation.mutated())
    elif options.what == "show":
        print(find(options.arguments[0]).words())
    else:
        prefixes = tuple(options.arguments) or ("",)
        for mutation in mutations():
            short = mutation.file.removeprefix("io_uring_rs/").removeprefix("rust/kernel/")
            mutation.number()
            if short.startswith(prefixes):
                print(mutation.key, mutation.file, mutation.tests, mutation.equivalent, sep=SEPARATOR)
    return 0


if __name__ == "__main__":
    sys.exit(main())
