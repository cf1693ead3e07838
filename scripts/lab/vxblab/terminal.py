# SPDX-License-Identifier: GPL-2.0
"""A person's terminal joined with a console or a command. Ctrl-] lets go."""

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import sys
import termios
import tty

from .channel import LabError

DETACH = b"\x1d"  # Ctrl-]
NOTE = "(Ctrl-] detaches; what runs goes on)"


@contextlib.contextmanager
def raw():
    """Standard input, if a terminal, gives each key as it is."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def write(data):
    view = memoryview(data)
    while view:
        view = view[os.write(1, view):]


def attach_console(path, greet):
    """Join with QEMU's console socket at path. greet: send a newline first, so that
    a shell shows its prompt."""
    with open(f"{path}.lock", "w", encoding="ascii") as lock, \
            socket.socket(socket.AF_UNIX) as console:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError("someone is attached to this console already") from None
        console.connect(str(path))
        print(NOTE, file=sys.stderr)
        with raw():
            if greet:
                console.sendall(b"\n")
            inputs = [0, console]
            while True:
                ready = select.select(inputs, [], [])[0]
                if console in ready:
                    data = console.recv(65536)
                    if not data:
                        return
                    write(data)
                if 0 in ready:
                    data = os.read(0, 4096)
                    console.sendall(data.split(DETACH)[0])
                    if DETACH in data or not data:
                        return


def attach_process(start):
    """Join with the command that start(sinks) starts on a terminal of its own;
    returns its exit status, or None if the person let go of it."""
    process = start((write, write))
    ended_read, ended_write = os.pipe()
    process.on_end(lambda: os.write(ended_write, b"."))

    def resize(*_):
        size = shutil.get_terminal_size()
        process.set_window(size.lines, size.columns)

    resize()
    before = signal.signal(signal.SIGWINCH, resize)
    try:
        with raw():
            while True:
                ready = select.select([0, ended_read], [], [])[0]
                if ended_read in ready:
                    return process.poll()
                data = os.read(0, 4096)
                process.write(data.split(DETACH)[0])
                if DETACH in data or not data:
                    return None
    finally:
        signal.signal(signal.SIGWINCH, before)
        process.close()
