#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The record of what cargo-mutants found, for scripts/mutants-host:
tests/mutations/noticed-host. Each line has a checksum of the mutated file, and the name
that cargo-mutants gives the mutation, which has the place in that file. A line is valid
while the file stays the same. The record is part of the project, so that a run goes on
where another one ended, on any machine.

`load FOLDER` makes cargo-mutants skip what is recorded, in the folder of its results.
`save FOLDER` adds to the record what was noticed there, or could not be built. The copy of
the project that was mutated is beside the folder."""

import argparse
import functools
import hashlib
import os
import pathlib

import machine

RECORD = machine.TOP / "tests/mutations/noticed-host"
HEADER = "# SPDX-License-Identifier: GPL-2.0\n# Written by make mutants: checksum of the file, and the mutation\n"
SKIPPED = "previously_caught.txt"


@functools.cache
def checksum(path):
    """Returns a checksum of a file, or None if it is not there any more."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else None


def line(name, top=machine.TOP):
    """Returns the record of a mutation of the files in `top`. cargo-mutants names the kernel's
    files by way of the crate that includes them."""
    return f"{checksum(top / os.path.normpath(name.partition(':')[0]))} {name}"


def recorded():
    """Returns the names of the mutations whose record is valid."""
    lines = set(RECORD.read_text().splitlines()) if RECORD.exists() else set()
    names = {each.partition(" ")[2] for each in lines if not each.startswith("#")}
    return {name for name in names if line(name) in lines}


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=("load", "save"))
    options.add_argument("folder", type=pathlib.Path)
    options = options.parse_args()

    names = recorded()
    if options.what == "load":
        options.folder.mkdir(parents=True, exist_ok=True)
        (options.folder / SKIPPED).write_text("".join(f"{name}\n" for name in sorted(names)))
        return
    lines = {line(name) for name in names}
    for found in ("caught.txt", "unviable.txt"):
        if (options.folder / found).exists():
            found = (options.folder / found).read_text().splitlines()
            lines |= {line(name, options.folder.parent / "tree") for name in found}
    lines = sorted(lines, key=lambda each: each.partition(" ")[2])
    RECORD.write_text(HEADER + "".join(f"{each}\n" for each in lines))


if __name__ == "__main__":
    machine.interruptible(main)
