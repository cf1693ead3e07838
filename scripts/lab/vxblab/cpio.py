# SPDX-License-Identifier: GPL-2.0
"""Archives in the format of an initrd ("newc"). The kernel takes several one
after the other."""

import os
import shutil
import stat


class Archive:
    """An archive written to a binary file."""

    def __init__(self, file):
        self._file = file
        self._inode = 0
        self._parents = {""}

    def _entry(self, name, mode, data=b""):
        self._inode += 1
        name = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        self._file.write(b"070701" + b"".join(b"%08X" % field for field in fields))
        self._file.write(name + bytes(-(110 + len(name)) % 4))
        self._file.write(data + bytes(-len(data) % 4))

    def directory(self, name):
        parent = os.path.dirname(name)
        if parent not in self._parents:
            self.directory(parent)
        if name not in self._parents:
            self._parents.add(name)
            self._entry(name, stat.S_IFDIR | 0o755)

    def data(self, name, data, mode=0o644):
        self.directory(os.path.dirname(name))
        self._entry(name, stat.S_IFREG | mode, data)

    def tree(self, name, source):
        """The file or directory `source` as `name`, symbolic links as such."""
        if os.path.islink(source):
            self.directory(os.path.dirname(name))
            self._entry(name, stat.S_IFLNK | 0o777, os.readlink(source).encode())
        elif os.path.isdir(source):
            self.directory(name)
            for child in sorted(os.listdir(source)):
                if child != "__pycache__":
                    self.tree(f"{name}/{child}", os.path.join(source, child))
        elif os.path.isfile(source):
            with open(source, "rb") as file:
                self.data(name, file.read(), os.stat(source).st_mode & 0o777)

    def close(self):
        self._entry("TRAILER!!!", 0)
        self._file.close()


def append_lab(path, initrd, source, token, payload=None):
    """Write to path: a kernel's initrd, and behind it what differs from boot to boot:
    /lab (source is scripts/lab), the agents' token (bytes) and, if given, /payload."""
    with open(path, "wb") as file:
        with open(initrd, "rb") as start:
            shutil.copyfileobj(start, file, 1 << 20)
        archive = Archive(file)
        for part in ("target", "vxblab"):
            archive.tree(f"lab/{part}", os.path.join(source, part))
        archive.data("lab/token", token, 0o600)
        if payload:
            archive.tree("payload", payload)
        archive.close()
