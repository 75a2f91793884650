#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Rust files as they are at one step of a series.

A file declares the modules whose files exist at that step. An outline is less: the
header of the file, its inner attributes, and those declarations. In an outline, and in a
file of which a part is unused, the compiler is told not to mind.

outline.py FULL REPO <LIST: for each line "outline PATH", "unused PATH" or "full PATH" of
LIST, writes REPO/PATH, made from FULL/PATH. The files that exist are those in LIST.
"""

import os
import re
import sys

DECLARATION = re.compile(r"(?:pub(?:\([a-z ]+\))? )?mod (\w+);")
PATH = re.compile(r'#\[path = "([^"]+)"\]')
# The roots of crates look for modules beside them, other files in a folder of their name.
ROOTS = ("mod.rs", "lib.rs", "io_uring_rs.rs")
ALLOW = "#![allow(dead_code)]\n"
OUTLINE = "// Nothing uses these modules before this file is complete.\n" + ALLOW
UNUSED = "// Later patches use the rest of this file.\n" + ALLOW


def module_files(path, name, attributes):
    """Returns the files in which the module may be that the file at `path` declares."""
    folder, file = os.path.split(path)
    for line in attributes:
        if match := PATH.match(line):
            return [os.path.join(folder, match.group(1))]
    if file not in ROOTS:
        folder = path.removesuffix(".rs")
    return [os.path.join(folder, name + ".rs"), os.path.join(folder, name, "mod.rs")]


def blocks(text):
    """Splits a file into declarations of modules, with the attributes and comments right
    before them, and other lines. Yields the name of the module, or None, and the lines."""
    waiting = []
    in_attribute = False
    for line in text.splitlines(keepends=True):
        if in_attribute or line.startswith("#[") or (line.startswith("//") and not line.startswith("//!")):
            waiting.append(line)
            if in_attribute or line.startswith("#["):
                in_attribute = not line.rstrip().endswith("]")
            continue
        match = DECLARATION.fullmatch(line.rstrip())
        if match:
            yield match.group(1), waiting + [line]
        else:
            for other in waiting + [line]:
                yield None, [other]
        waiting = []
    for other in waiting:
        yield None, [other]


def declared(path, text, exists):
    """Returns the file without the declarations of modules that do not exist yet."""
    lines = []
    dropped = False
    for name, block in blocks(text):
        if name and not any(exists(file) for file in module_files(path, name, block)):
            dropped = True
        elif not (dropped and block == lines[-1:] == ["\n"]):
            # Otherwise there would be two empty lines.
            dropped = False
            lines += block
    return "".join(lines).rstrip("\n") + "\n"


def head(text, allow):
    """Returns the header of the file and its inner attributes, with those in `allow`, and
    the rest of the file."""
    header = []
    attributes = []
    lines = text.splitlines(keepends=True)
    for line in lines:
        if line.startswith("#!["):
            attributes.append(line)
        elif line != "\n" and (attributes or not line.startswith("//")):
            break
        elif not attributes:
            header.append(line)
    if not attributes:
        # A comment that follows the documentation belongs to the code after it.
        while len(header) > 1 and not header[-1].startswith("//!"):
            header.pop()
    rest = "".join(lines[len(header) + len(attributes) :]) if not attributes else text.split(attributes[-1], 1)[1]
    return "".join(header).rstrip("\n") + "\n\n" + "".join(attributes) + allow, rest.lstrip("\n")


def outline(path, text, exists):
    """Returns the outline of the file."""
    modules = [line for name, block in blocks(text) if name for line in block]
    modules = declared(path, "".join(modules), exists).strip("\n")
    return head(text, OUTLINE)[0] + (f"\n{modules}\n" if modules else "")


def unused(path, text, exists):
    """Returns the file, of which a part is unused."""
    return "\n".join(head(declared(path, text, exists), UNUSED))


WRITERS = {"outline": outline, "unused": unused, "full": declared}


def main():
    full, repo = sys.argv[1:]
    files = [line.split() for line in sys.stdin]
    there = {path for _, path in files}
    for state, path in files:
        with open(os.path.join(full, path), encoding="utf-8") as file:
            text = file.read()
        if path.endswith(".rs"):
            text = WRITERS[state](path, text, there.__contains__)
        place = os.path.join(repo, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main()
