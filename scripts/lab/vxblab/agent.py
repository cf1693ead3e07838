#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""python3 -m vxblab.agent TOKENFILE: run commands for whoever knows the token.

The same program serves dom0 and the guests. Each connection has a process of its
own, so that no command can hold up another. A command whose client goes away is
killed with its process group.
"""

import fcntl
import os
import pty
import selectors
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading

from . import wire

BLOCK = 1 << 16
LINGER = 30  # seconds that a client has to take the end of its command


def set_window(fd, data):
    """Set the size of terminal fd to data: rows and columns, 16 bits each."""
    rows, columns = struct.unpack(">HH", data)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def take_terminal():
    """In the child: make the terminal on standard input the controlling one."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Session:
    """One command and its client."""

    def __init__(self, sock, request):
        self.sock = sock
        self.frames = wire.Frames()
        self.selector = selectors.DefaultSelector()
        self.outputs = {}
        self.over = False
        options = dict(
            cwd=request.get("cwd") or "/",
            env={**os.environ, **request.get("env", {})},
            start_new_session=True)
        self.terminal = None
        if request.get("tty"):
            self.terminal, inner = pty.openpty()
            self.process = subprocess.Popen(
                request["argv"], stdin=inner, stdout=inner, stderr=inner,
                preexec_fn=take_terminal, **options)
            os.close(inner)
            self.stdin = self.terminal
            self.watch(self.terminal, wire.STDOUT)
        else:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                request["argv"], stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0,
                **options)
            self.stdin = self.process.stdin.fileno()
            self.watch(self.process.stdout.fileno(), wire.STDOUT)
            self.watch(self.process.stderr.fileno(), wire.STDERR)

    def watch(self, fd, kind):
        os.set_blocking(fd, False)
        self.outputs[fd] = kind
        self.selector.register(fd, selectors.EVENT_READ)

    def copy(self, fd):
        """Send a block of the command's output; False if there is none now."""
        try:
            data = os.read(fd, BLOCK)
        except BlockingIOError:
            return False
        except OSError:  # a terminal without a process
            data = b""
        if data:
            self.sock.sendall(wire.frame(self.outputs[fd], data))
            return True
        self.selector.unregister(fd)
        del self.outputs[fd]
        return False

    def feed(self):
        """Runs as a thread: standard input may block without stopping the output."""
        try:
            while data := self.sock.recv(BLOCK):
                for kind, payload in self.frames.feed(data):
                    self.input(kind, payload)
        except OSError:  # the client has died
            pass
        if not self.over:
            self.kill(signal.SIGKILL)

    def input(self, kind, data):
        if kind == wire.SIGNAL:
            self.kill(data[0])
        elif kind == wire.WINDOW and self.terminal is not None:
            set_window(self.terminal, data)
        elif kind == wire.STDIN and not data:
            if self.terminal is None and self.process.stdin:
                self.process.stdin.close()
                self.process.stdin = None
        elif kind == wire.STDIN:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(self.stdin, view):]
            except OSError:  # the command does not want it
                pass

    def kill(self, number):
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def run(self):
        """Until the command ends. Its background children may keep the pipes open:
        what they write later is not waited for."""
        ended = os.pidfd_open(self.process.pid)
        self.selector.register(ended, selectors.EVENT_READ)
        feeder = threading.Thread(target=self.feed, daemon=True)
        feeder.start()
        while True:
            ready = [key.fd for key, _ in self.selector.select()]
            for fd in ready:
                if fd in self.outputs:
                    self.copy(fd)
            if ended in ready:
                break
        for fd in list(self.outputs):
            while self.copy(fd):
                pass
        self.over = True
        status = self.process.wait()
        self.sock.sendall(wire.frame(wire.EXIT, struct.pack(">i", status)))
        # To close with input unread is to reset the connection, and a reset overtakes
        # what was sent.
        self.sock.shutdown(socket.SHUT_WR)
        feeder.join(LINGER)


def relay(sock, address):
    """Join the client with the agent at address until both have closed."""
    with socket.create_connection(tuple(address), timeout=30) as other:
        other.settimeout(None)
        wire.tune(other)
        wire.send_line(sock, {"ok": True})

        def copy(source, target):
            try:
                while data := source.recv(BLOCK):
                    target.sendall(data)
            except OSError:
                pass
            try:
                target.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        back = threading.Thread(target=copy, args=(other, sock))
        back.start()
        copy(sock, other)
        back.join()


def serve(sock, token):
    wire.tune(sock)
    request = wire.read_line(sock)
    if request.get("token") != token:
        wire.send_line(sock, {"error": "wrong token"})
        return
    try:
        if "connect" in request:
            relay(sock, request["connect"])
            return
        session = Session(sock, request)
    except (OSError, subprocess.SubprocessError) as error:
        wire.send_line(sock, {"error": str(error)})
        return
    wire.send_line(sock, {"ok": True})
    session.run()


def main():
    with open(sys.argv[1], encoding="ascii") as file:
        token = file.read().strip()
    listener = socket.create_server(("", wire.PORT), backlog=64)
    if os.fork():  # whoever started us knows now that we listen
        return
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        sock, _ = listener.accept()
        if os.fork():
            sock.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        listener.close()
        try:
            serve(sock, token)
        except (ConnectionError, ValueError):
            pass
        sock.close()
        os._exit(0)


if __name__ == "__main__":
    main()
