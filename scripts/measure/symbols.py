# SPDX-License-Identifier: GPL-2.0
"""Names for addresses: of kernels, of Xen, of programs."""

import bisect
import pathlib
import re
import struct

from vxblab import kernel
from vxblab.lab import payload_directory

FUNCTION = 2  # STT_FUNC


class Table:
    """Symbols as (address, name); each reaches to the next one."""

    def __init__(self, symbols):
        self._symbols = sorted(symbols)
        self._addresses = [address for address, _ in self._symbols]

    def name(self, address):
        """The symbol's name, or None before the first one."""
        at = bisect.bisect_right(self._addresses, address) - 1
        return self._symbols[at][1] if at >= 0 else None


def of_kallsyms(text):
    """Table of /proc/kallsyms or /proc/xen/xensyms; a module stands behind its
    functions."""
    symbols = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and words[1] in "tTwW":
            symbols.append((int(words[0], 16), " ".join(words[2:])))
    return Table(symbols)


def elf_functions(data):
    """(address, name) of the functions in a 64-bit little-endian ELF file. An
    address is that in the file, as in the mappings of a process."""
    if data[:5] != b"\x7fELF\x02":
        return []
    offset, = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3a)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, offset + number * size)
                for number in range(count)]
    program, = struct.unpack_from("<Q", data, 0x20)
    size, count = struct.unpack_from("<HH", data, 0x36)
    segments = [struct.unpack_from("<IIQQQQ", data, program + number * size)
                for number in range(count)]
    functions = []
    for section in sections:
        if section[1] not in (2, 11):  # SHT_SYMTAB, SHT_DYNSYM
            continue
        names = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], 24):
            name, info, _, _, value, _ = struct.unpack_from("<IBBHQQ", data, at)
            if info & 15 != FUNCTION or not value:
                continue
            end = data.index(b"\0", names + name)
            text = data[names + name:end].decode(errors="replace")
            for kind, _, start, address, _, length in segments:
                if kind == 1 and address <= value < address + length:  # PT_LOAD
                    functions.append((value - address + start, plain(text)))
    return functions


def plain(name):
    """A mangled Rust name as one reads it, roughly; others as they are."""
    if match := re.fullmatch(r"_ZN(.*?)(?:17h[0-9a-f]{16})?E(?:\..*)?", name):
        parts, rest = [], match[1]
        while number := re.match(r"\d+", rest):
            end = number.end() + int(number[0])
            parts.append(rest[number.end():end])
            rest = rest[end:]
        name = "::".join(parts)
        for code, sign in (("$LT$", "<"), ("$GT$", ">"), ("$u20$", " "), ("$RF$", "&"),
                           ("$C$", ","), ("$u7b$", "{"), ("$u7d$", "}"), ("..", "::")):
            name = name.replace(code, sign)
        return name
    if name.startswith("_R"):
        return "::".join(re.findall(r"(?<=\d)[A-Za-z_]\w*?(?=\d|$)", name)) or name
    return name


class Programs:
    """The programs of one domain: what is mapped where, as of now."""

    def __init__(self, machine):
        script = ('for p in /proc/[0-9]*; do read -r name <$p/comm || continue; '
                  'while read -r range mode offset _ _ path; do case $mode in '
                  '*x*) echo "$range $offset $name|$path" ;; esac; done <$p/maps; '
                  'done 2>/dev/null; :')
        self._ranges = []
        self._tables = {}
        for line in machine.run(script, 300).stdout.splitlines():
            where, _, path = line.partition("|")
            span, offset, name = where.split(" ", 2)
            start, end = (int(number, 16) for number in span.split("-"))
            self._ranges.append((start, end, int(offset, 16), name, path))

    def find(self, address):
        """(program, function) at address."""
        for start, end, offset, name, path in self._ranges:
            if start <= address < end:
                return name, self._function(path, address - start + offset)
        return "?", f"{address:x}"

    def _function(self, path, offset):
        if path not in self._tables:
            self._tables[path] = Table(elf_functions(read_program(path)))
        base = pathlib.PurePath(path).name or "?"
        return f"{self._tables[path].name(offset) or 'no symbols'} [{base}]"


def read_program(path):
    """A program's file: as in the payload or in the lab's tree."""
    relative = path.lstrip("/")
    inside = payload_directory() / relative.removeprefix("payload/")
    if not path.startswith("/payload/"):
        inside = kernel.tree_of("lab") / relative
    return inside.read_bytes() if path.startswith("/") and inside.is_file() else b""
