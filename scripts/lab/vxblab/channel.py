# SPDX-License-Identifier: GPL-2.0
"""The client side of the command channel: start commands in dom0 or a guest."""

import contextlib
import socket
import struct
import subprocess
import threading

from . import wire


BLOCK = 1 << 16


class LabError(Exception):
    """Something in the lab is not as it must be; the text says what."""


class CommandTimeout(LabError):
    """A command did not end in time."""


class Result(subprocess.CompletedProcess):
    """What a command left: args, returncode, stdout, stderr."""


def connect(address, token, hops=(), timeout=30):
    """A socket to the agent at address, or to the last of hops through it."""
    try:
        sock = wire.tune(socket.create_connection(address, timeout=timeout))
        for hop in hops:
            request(sock, token, {"connect": list(hop)})
    except OSError as error:
        raise LabError(f"no agent at {address}: {error}") from error
    return sock


def request(sock, token, message):
    wire.send_line(sock, {"token": token, **message})
    answer = wire.read_line(sock)
    if "error" in answer:
        raise LabError(answer["error"])


class Process:
    """A running command. Its output is collected as it comes; `sinks` gives
    functions to call with each piece of stdout and stderr as well."""

    def __init__(self, sock, token, argv, sinks=(None, None), **options):
        self.args = argv
        try:
            request(sock, token, {"argv": argv, **options})
        except OSError as error:
            raise LabError(f"cannot start {argv}: {error}") from error
        sock.settimeout(None)
        self._sock = sock
        self._sinks = dict(zip((wire.STDOUT, wire.STDERR), sinks))
        self._output = {wire.STDOUT: bytearray(), wire.STDERR: bytearray()}
        self._status = None
        self._ended = threading.Event()
        self._news = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        frames = wire.Frames()
        try:
            while self._status is None and (data := self._sock.recv(BLOCK)):
                for kind, payload in frames.feed(data):
                    self._take(kind, payload)
        except OSError:
            pass
        with self._news:
            self._ended.set()
            self._news.notify_all()
        self._sock.close()

    def _take(self, kind, data):
        if kind == wire.EXIT:
            (self._status,) = struct.unpack(">i", data)
        elif kind in self._output:
            if self._sinks[kind]:
                self._sinks[kind](data)
            with self._news:
                self._output[kind] += data
                self._news.notify_all()

    @property
    def stdout(self):
        """Bytes so far."""
        return bytes(self._output[wire.STDOUT])

    @property
    def stderr(self):
        """Bytes so far."""
        return bytes(self._output[wire.STDERR])

    def write(self, data):
        """Give data (bytes) to the command's standard input."""
        for start in range(0, len(data), BLOCK):
            self._send(wire.STDIN, data[start:start + BLOCK])

    def close_stdin(self):
        self._send(wire.STDIN)

    def set_window(self, rows, columns):
        self._send(wire.WINDOW, struct.pack(">HH", rows, columns))

    def _send(self, kind, data=b""):
        # A command that has ended takes nothing more, and that is no error.
        with contextlib.suppress(OSError):
            self._sock.sendall(wire.frame(kind, data))

    def kill(self, number=9):
        """Send signal `number` to the command's process group."""
        self._send(wire.SIGNAL, bytes([number]))

    def close(self):
        """Let go of the command: if it still runs, it is killed."""
        self.kill()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def poll(self):
        """The exit status, or None while it runs."""
        return self._status if self._ended.is_set() else None

    def wait_for(self, condition, timeout):
        """Call condition() now and after each piece of output until it returns
        something true, which is returned; None at the time-out or the end."""
        found = None

        def look():
            nonlocal found
            found = condition()
            return found or self._ended.is_set()

        with self._news:
            self._news.wait_for(look, timeout)
        return found or None

    def wait_output(self, text, timeout):
        """Wait until standard output or standard error contains `text`."""
        wanted = text.encode()

        def there():
            return any(wanted in output for output in self._output.values())

        if not self.wait_for(there, timeout):
            why = "it ended" if self._ended.is_set() else f"{timeout} s passed"
            raise LabError(f"{self.args}: waited for {text!r} in its output, {why}; "
                           f"it said: {(self.stdout + self.stderr)[-2000:]!r}")

    def on_end(self, call):
        """Have call() called, in a thread of its own, when the command ends."""
        def wait():
            self._ended.wait()
            call()
        threading.Thread(target=wait, daemon=True).start()

    def wait(self, timeout, check=False, binary=False, surroundings=lambda: ""):
        """Wait for the end; return a Result. Kills the command at the time-out;
        surroundings() tells before that what else goes on."""
        if not self._ended.wait(timeout):
            said = (self.stdout + self.stderr)[-2000:].decode(errors="replace")
            goes_on = surroundings()
            self.close()
            raise CommandTimeout(f"waited {timeout} s for the end of {self.args}; it said: "
                                 f"{said!r}{goes_on}")
        if self._status is None:
            raise LabError(f"the connection broke while {self.args} ran")
        out, err = self.stdout, self.stderr
        if not binary:
            out, err = out.decode(errors="replace"), err.decode(errors="replace")
        result = Result(self.args, self._status, out, err)
        if check and self._status:
            raise LabError(f"{self.args} failed with status {self._status}:\n"
                           f"{out[-4000:]}{err[-4000:]}")
        return result
