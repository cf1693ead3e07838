# SPDX-License-Identifier: GPL-2.0
"""What is measured: each case is a command for the guest and how to read its figure.

A case runs for some whole seconds; where time counts instructions, one of them is a
thousand million.
"""

import dataclasses
import json

from vxblab.lab import LabError

from . import network
from .system import DISK_PATHS, PATHS, System


@dataclasses.dataclass(frozen=True)
class Disk:
    """A fio job on a whole device."""
    mode: str
    block: int  # bytes
    depth: int

    @property
    def name(self):
        return f"{self.mode}-{self.block >> 10}k-qd{self.depth}"

    unit = "IOPS"
    operation = "I/O"

    paths = DISK_PATHS

    def command(self, machine, path, seconds):
        return ["fio", f"--name={self.name}", f"--filename={machine.disk(path)}",
                "--direct=1", "--ioengine=libaio", f"--rw={self.mode}",
                f"--bs={self.block}", f"--iodepth={self.depth}", "--norandommap",
                "--thread", "--output-format=json",
                "--time_based", f"--runtime={seconds}"]

    def value(self, output):
        try:
            job = json.loads(output)["jobs"][0]
        except (ValueError, LookupError) as error:
            raise LabError(f"fio's output is not its JSON: {output[:400]!r}") from error
        direction = "read" if "read" in self.mode else "write"
        if job["error"] or not job[direction]["total_ios"]:
            raise LabError(f"fio's {self.name} failed with error {job['error']}")
        return job[direction]["iops"]

    def operations(self, value):
        """Operations per second at this value."""
        return value


@dataclasses.dataclass(frozen=True)
class Stream:
    """One TCP connection at full speed."""
    name: str
    reverse: bool

    unit = "Mbit/s"
    operation = "64 KiB"

    paths = PATHS

    def command(self, _machine, path, seconds):
        return System.on_card(path) + network.iperf(self.reverse, seconds)

    def value(self, output):
        return network.iperf_rate(output) / 1e6

    def operations(self, value):
        return value * 1e6 / 8 / 65536


@dataclasses.dataclass(frozen=True)
class PingPong:
    """One byte there and back over one TCP connection."""
    name = "tcp-rr"
    unit = "1/s"
    operation = "transaction"

    paths = PATHS

    def command(self, _machine, path, seconds):
        return System.on_card(path) + network.ping_pong(seconds)

    def value(self, output):
        return network.ping_pong_rate(output)

    def operations(self, value):
        return value


ALL = (
    Disk("randread", 4096, 1),
    Disk("randread", 4096, 32),
    Disk("randwrite", 4096, 1),
    Disk("randwrite", 4096, 32),
    Disk("read", 131072, 8),
    Disk("write", 131072, 8),
    Stream("tcp-out", False),
    Stream("tcp-in", True),
    PingPong(),
)


def named(name):
    for case in ALL:
        if case.name == name:
            return case
    raise LabError(f"no case '{name}'; there are: {' '.join(case.name for case in ALL)}")
