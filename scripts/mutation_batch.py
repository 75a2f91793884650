#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Builds many mutations into one kernel, for scripts/mutants: a boot is then all that a
mutation costs.

A function with mutations gets its body several times, and the number on the kernel's
command line, mutant.number=N, chooses one of them. Each mutation of a function that
this cannot be done to (a constant function, or one whose type depends on its body)
needs a kernel of its own.

`write TREE KEY…` writes the mutations with these keys to a kernel tree, and prints the
number and the key of each that is in it. `failed LOG KEY…` prints
the keys in such a batch in whose functions the compiler found errors, according to the
log of the build. Runs in the build root."""

import argparse
import collections
import pathlib
import re

import machine
import mutation

FUNCTION = re.compile(r"^( *)(?:pub(?:\([a-z: ]+\))? )?(?:unsafe )?(?:extern \"C\" )?fn \w+")
PLACE = re.compile(r"^ *--> (\S+\.rs):(\d+):\d+$", re.M)
CHOICE = mutation.TABLES / "mutant.rs"


class Function:
    """The innermost function around a line of a file: the indices of the line that opens
    its body and of the one that closes it. `body` is empty if there is none, or if its
    body cannot be repeated."""

    def __init__(self, lines, index):
        self.body = range(0)
        depth = len(lines[index]) - len(lines[index].lstrip())
        for start in range(index, -1, -1):
            match = FUNCTION.match(lines[start])
            if match and len(match[1]) < depth:
                break
        else:
            return
        indent = match[1]
        opening = next(number for number in range(start, len(lines)) if lines[number].endswith("{"))
        closing = lines.index(indent + "}", opening)
        signature = " ".join(lines[start:opening + 1])
        result = signature.partition("->")[2]
        if opening < index < closing and "impl " not in result and "#![" not in "".join(lines[opening:closing]):
            self.body = range(opening + 1, closing)


class Batch:
    """The mutations that one kernel has. `numbers` is their numbers by key, `texts` the
    mutated files by name, and `functions` has, for each file, the keys of mutations by the
    range of lines of their function."""

    def __init__(self, keys):
        self.numbers, self.texts = {}, {}
        self.functions = collections.defaultdict(list)
        files = collections.defaultdict(lambda: collections.defaultdict(list))
        for one in mutation.mutations():
            if one.key in keys and not one.alone:
                body = Function(one.text.splitlines(), one.number()).body
                if body:
                    files[one.file][body].append(one)
        for file, bodies in files.items():
            self.texts[file] = self.write(file, bodies)

    def write(self, file, bodies):
        """Returns the text of a file with the mutations of each function."""
        lines = next(iter(bodies.values()))[0].text.splitlines()
        crate = "crate" if file.startswith("rust/kernel/") else "kernel"
        new, done = [], 0
        for body in sorted(bodies, key=lambda body: body.start):
            if body.start < done:
                continue  # a function in one that is repeated already
            new += lines[done:body.start]
            first = len(new)
            new.append(f"match {crate}::mutant::number() {{")
            for one in bodies[body]:
                self.numbers[one.key] = len(self.numbers) + 1
                mutated = one.mutated().splitlines()
                new += [f"{self.numbers[one.key]} => {{", *mutated[body.start:body.stop], "}"]
            new += ["_ => {", *lines[body.start:body.stop], "}", "}"]
            self.functions[file].append((range(first + 1, len(new) + 1), [one.key for one in bodies[body]]))
            done = body.stop
        return "\n".join(new + lines[done:]) + "\n"

    def failed(self, log):
        """Returns the keys of mutations in whose functions there are errors."""
        keys = []
        # The lines that are left belong to warnings.
        for error in re.split(r"^(?=error|warning)", log, flags=re.M):
            for file, line in PLACE.findall(error) if error.startswith("error") else ():
                for name, functions in self.functions.items():
                    if file.endswith("/" + name) or file == name:
                        keys += [key for lines, its in functions if int(line) in lines for key in its]
        return sorted(set(keys))


def replace(path, text):
    """Writes a file that may be a hard link to one that other builds use."""
    path.unlink(missing_ok=True)
    path.write_text(text)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=("write", "failed"))
    options.add_argument("place", type=pathlib.Path)
    options.add_argument("keys", nargs="*")
    options = options.parse_args()

    batch = Batch(set(options.keys))
    if options.what == "failed":
        print(*batch.failed(options.place.read_text()), sep="\n")
        return 0
    for file, text in batch.texts.items():
        replace(options.place / file, text)
    root = options.place / "rust/kernel/lib.rs"
    replace(root, root.read_text() + "\npub mod mutant;\n")
    replace(root.with_name("mutant.rs"), CHOICE.read_text())
    for key, number in batch.numbers.items():
        print(number, key)
    return 0


if __name__ == "__main__":
    machine.interruptible(main)
