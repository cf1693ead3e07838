# SPDX-License-Identifier: GPL-2.0
"""Where things live, and writing a file so that it is whole or not there."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil

LAB = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = LAB.parent
CACHE = pathlib.Path(os.environ.get("VXB_CACHE", "/var/cache/virtio-xenbus"))


def key(*parts):
    """A short name for the content of the given files, strings and bytes."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, os.PathLike):
            part = pathlib.Path(part).read_bytes()
        elif isinstance(part, str):
            part = part.encode()
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:12]


def made(path, make):
    """path, made by make(temporary path) unless it is there. Safe against being
    interrupted and against another process doing the same."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        part = path.with_name(path.name + ".part")
        remove(part)
        if not path.exists():
            try:
                make(part)
                part.rename(path)
            finally:
                remove(part)
    return path


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
