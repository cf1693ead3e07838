# SPDX-License-Identifier: GPL-2.0
"""A place where commands run: dom0 or a guest."""

import pathlib
import shlex

from . import channel
from .channel import LabError


# Threads of programs, and those of the kernel that run or cannot be interrupted: state, place
# in the kernel, CPU time, name.
PROCESSES = ("uptime; ps -eLo ppid,pid,tid,stat,wchan:24,time,args --no-headers | "
             "awk '$1 != 2 || $4 ~ /^[RD]/' | cut -c-150")


class Machine:
    """Commands are a list of words, or a string for bash."""

    def __init__(self, name, address, token, hops=()):
        self.name = name
        self._address, self._token, self._hops = address, token, hops

    def start(self, command, *, sinks=(None, None), **options):
        """Start a command; returns a channel.Process. It dies with its connection.
        options: cwd, env (additions), tty."""
        argv = ["bash", "-c", command] if isinstance(command, str) else \
            [str(word) for word in command]
        sock = channel.connect(self._address, self._token, self._hops)
        return channel.Process(sock, self._token, argv, sinks, **options)

    def run(self, command, timeout=60, check=True, stdin=b"", binary=False, **options):
        """Run a command to its end; returns a channel.Result.

        Raises channel.CommandTimeout after timeout seconds and, with check,
        LabError at a non-zero exit status."""
        process = self.start(command, **options)
        if isinstance(stdin, str):
            stdin = stdin.encode()
        if stdin:
            process.write(stdin)
        process.close_stdin()
        try:
            return process.wait(timeout, check, binary, self._processes)
        except LabError as error:
            raise type(error)(f"{self.name}: {error}") from None

    def _processes(self):
        """What runs or waits in here, the kernel's idle threads left out; for errors."""
        try:
            return "\n" + self.start(PROCESSES).wait(20).stdout
        except LabError as error:
            return f"\n(no list of processes: {error})"

    def script(self, path, *arguments, timeout=600, check=False, **options):
        """Run a script of the host here, with the interpreter it names."""
        where = f"/tmp/lab-script-{pathlib.PurePath(path).name}"
        self.push(path, where)
        self.run(["chmod", "+x", where])
        return self.run([where, *arguments], timeout, check, **options)

    def push(self, source, target, timeout=300):
        """Copy the host's file source (or bytes) to target here."""
        data = source if isinstance(source, bytes) else pathlib.Path(source).read_bytes()
        target = shlex.quote(str(target))
        self.run(f"mkdir -p \"$(dirname {target})\" && cat >{target}", timeout, stdin=data)

    def read(self, path, timeout=60):
        """The content of a file here, as bytes."""
        return self.run(["cat", path], timeout, binary=True).stdout

    def pull(self, source, target, timeout=300):
        """Copy the file source here to the host's target."""
        pathlib.Path(target).write_bytes(self.read(source, timeout))
