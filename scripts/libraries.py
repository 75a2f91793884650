#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""libraries.py ROOT PROGRAM…: prints the dynamic linkers and shared libraries that ELF
programs need, as paths in the file system in the folder ROOT. Unlike ldd, it only reads
headers and runs nothing. Fails with one line if ROOT lacks a library, or has one that
lacks a version that is needed. Runs in the build root."""

import pathlib
import sys

from elftools.elf.elffile import ELFFile

# The folders that Debian's dynamic linker searches, and those that its configuration
# adds. Other folders come from the programs themselves.
FOLDERS = ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"]
WEAK = 2  # a version that need not exist: VER_FLG_WEAK


class Missing(Exception):
    """What a program needs and ROOT does not have."""


class Root:
    """The file system of a machine, in a folder."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folders = FOLDERS + [line.strip() for path in sorted(self.folder.glob("etc/ld.so.conf.d/*.conf"))
                                  for line in path.read_text().splitlines() if line.startswith("/")]

    def file(self, path):
        """Returns the file at `path` of this machine, through links that may be absolute,
        or None."""
        done, parts = self.folder, list(pathlib.PurePath(path).parts[1:])
        for _ in range(200):
            if not parts:
                return done if done.is_file() else None
            step = parts.pop(0)
            if step == "..":
                done = done.parent if done != self.folder else done
            elif (done / step).is_symlink():
                target = (done / step).readlink()
                if target.is_absolute():
                    done = self.folder
                parts = [part for part in target.parts if part != "/"] + parts
            else:
                done = done / step
        return None

    def find(self, name, folders):
        """Returns the path of the library `name`, and its file."""
        for folder in [*folders, *self.folders]:
            if file := self.file(f"{folder}/{name}"):
                return f"{folder}/{name}", file
        raise Missing(name)


class Object:
    """A program or a library: what its dynamic section asks for."""

    def __init__(self, file, origin):
        self.needed, self.folders, self.interpreter = [], [], None
        self.wanted, self.versions = {}, set()
        with file.open("rb") as stream:
            elf = ELFFile(stream)
            for segment in elf.iter_segments("PT_INTERP"):
                self.interpreter = segment.get_interp_name()
            for segment in elf.iter_segments("PT_DYNAMIC"):
                for tag in segment.iter_tags():
                    if tag.entry.d_tag == "DT_NEEDED":
                        self.needed.append(tag.needed)
                    elif tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
                        paths = tag.rpath if tag.entry.d_tag == "DT_RPATH" else tag.runpath
                        self.folders += [path.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)
                                         for path in paths.split(":")]
            if section := elf.get_section_by_name(".gnu.version_r"):
                for library, versions in section.iter_versions():
                    self.wanted[library.name] = [version.name for version in versions
                                                 if not version["vna_flags"] & WEAK]
            if section := elf.get_section_by_name(".gnu.version_d"):
                for _, names in section.iter_versions():
                    self.versions.add(next(names).name)


def libraries(root, program):
    """Returns the paths of everything that the file `program` needs."""
    # The program alone is moved, to this folder of the guest.
    first = Object(program, "/external")
    if not first.needed and not first.interpreter:
        return set()
    paths = {}
    left = [(first, [])]
    if first.interpreter:
        if not root.file(first.interpreter):
            raise Missing(first.interpreter)
        paths[first.interpreter] = first.interpreter
    while left:
        needing, inherited = left.pop()
        folders = needing.folders + inherited
        for name in needing.needed:
            path, file = root.find(name, folders)
            library = Object(file, str(pathlib.PurePath(path).parent))
            for version in needing.wanted.get(name, []):
                if library.versions and version not in library.versions:
                    raise Missing(f"{name} with {version}")
            if name not in paths:
                paths[name] = path
                left.append((library, folders))
    return set(paths.values())


def main():
    root = Root(sys.argv[1])
    found = set()
    for program in map(pathlib.Path, sys.argv[2:]):
        try:
            found |= libraries(root, program)
        except Missing as missing:
            print(f"{program.name} needs {missing}", file=sys.stderr)
            return 1
    print("\n".join(sorted(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
