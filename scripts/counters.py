# SPDX-License-Identifier: GPL-2.0
"""The counters of an instrumented kernel (`scripts/kernel coverage`): their place in
the guest's memory, and the conversion of saved counters to a file for LLVM's tools.
In a program, LLVM's runtime writes that file; the kernel has no such runtime."""

import functools
import struct

from elftools.elf.elffile import ELFFile

import machine

KERNEL = "kernel-coverage"
FOLDER = machine.BUILD / "coverage"
# The virtual address of the kernel's first byte of physical memory.
MAPPED_AT = 0xFFFF_FFFF_8000_0000
# The format of LLVM's raw profiles for 64-bit programs.
MAGIC = 0xFF6C_7072_6F66_7281
VERSION = 10
RECORD_BYTES = 64
LAST_VALUE_KIND = 2


@functools.cache
def sections():
    """Returns the address and the content, as built, of each section that LLVM keeps
    for our code, by name."""
    found = {}
    with open(machine.BUILD / KERNEL / "vmlinux", "rb") as file:
        elf = ELFFile(file)
        symbols = elf.get_section_by_name(".symtab")
        data = elf.get_section_by_name(".data")
        for name in ("data", "cnts", "names"):
            start, stop = (symbols.get_symbol_by_name(f"__{end}___llvm_prf_{name}")[0]["st_value"]
                           for end in ("start", "stop"))
            begin = start - data["sh_addr"]
            found[name] = (start, data.data()[begin:begin + stop - start])
    return found


def saved(name):
    """Returns the object that saves the counters of the guest `name` when it ends."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    address, content = sections()["cnts"]
    return machine.MemorySaver(address - MAPPED_AT, len(content), FOLDER / f"{name}.counters")


def raw_profile(counters):
    """Builds a raw profile, as `llvm-profdata merge` takes it, from these counters."""
    (data_at, data), (counters_at, as_built), (names_at, names) = (
        sections()[name] for name in ("data", "cnts", "names"))
    if len(counters) != len(as_built):
        machine.die(f"{len(counters)} bytes of counters were saved, but {KERNEL} has {len(as_built)}; run 'make coverage' again")
    names += bytes(-len(names) % 8)
    header = struct.pack("<16Q", MAGIC, VERSION, 0, len(data) // RECORD_BYTES, 0, len(counters) // 8, 0, 0, 0,
                         len(names), (counters_at - data_at) % 2**64, 0, names_at, 0, 0, LAST_VALUE_KIND)
    return header + data + counters + names
