# SPDX-License-Identifier: GPL-2.0
"""The command channel's format, spoken by channel.py (client) and agent.py (server).

One TCP connection is one command. The client sends one line of JSON, the agent
answers with one line: {"ok": true} or {"error": "why"}. From there both send
frames: a type, a big-endian length, the data. A request {"connect": [host, port]}
makes the agent a mere relay to another agent instead.
"""

import json
import socket
import struct

STDIN, STDOUT, STDERR, EXIT, SIGNAL, WINDOW = range(6)
HEADER = struct.Struct(">BI")
PORT = 7100
MAX_LINE = 1 << 20


def frame(kind, data=b""):
    return HEADER.pack(kind, len(data)) + data


def send_line(sock, message):
    sock.sendall(json.dumps(message).encode() + b"\n")


def read_line(sock):
    """One JSON line. Reads byte by byte: what follows belongs to someone else."""
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            raise ConnectionError("the other side closed the connection")
        line += byte
        if len(line) > MAX_LINE:
            raise ConnectionError("a line too long for a request")
    return json.loads(line)


class Frames:
    """Cuts a received byte stream into frames."""

    def __init__(self):
        self._buffer = bytearray()

    def feed(self, data):
        """Take data, return the frames that are whole now, as (kind, data)."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append((kind, bytes(self._buffer[HEADER.size:end])))
            del self._buffer[:end]
        return frames


def tune(sock):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
