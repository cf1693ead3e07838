# SPDX-License-Identifier: GPL-2.0
"""iperf3 and qperf between a guest and the bridge br0 in dom0."""

import contextlib
import json
import re

from vxblab.lab import LabError

HOST = "10.78.0.1"  # br0, see target/init-dom0
CARDS = {path: f"10.78.0.{number}" for number, path in
         enumerate(("stock", "pool", "grant", "machine", "vhost"), 11)}
NANOSECONDS = {"ns": 1, "us": 1e3, "ms": 1e6, "sec": 1e9}


@contextlib.contextmanager
def servers(dom0):
    """The counterparts in dom0."""
    with dom0.start(["iperf3", "--server", "--forceflush", "--bind", HOST]) as iperf, \
         dom0.start(["qperf"]):
        iperf.wait_output("Server listening", 60)
        yield


def iperf(reverse, seconds):
    """The guest's command for a stream from it (reverse: to it)."""
    return ["iperf3", "--client", HOST, "--json", "--time", str(seconds),
            *["--reverse"] * reverse]


def iperf_rate(output):
    """bit/s as the receiver saw it."""
    result = json.loads(output)
    if "error" in result:
        raise LabError(f"iperf3: {result['error']}")
    return result["end"]["sum_received"]["bits_per_second"]


def ping_pong(seconds):
    """The guest's command for one byte there and back, again and again."""
    return ["qperf", "--wait_server", "30", "--unify_units", "--precision", "6",
            "--msg_size", "1", "--time", str(seconds), HOST, "tcp_lat"]


def ping_pong_rate(output):
    """Transactions per second: qperf tells the time of one way."""
    match = re.search(r"latency\s*=\s*([\d.]+) (\w+)", output)
    if not match or match[2] not in NANOSECONDS:
        raise LabError(f"qperf said nothing of a latency: {output!r}")
    return 1e9 / (2 * float(match[1]) * NANOSECONDS[match[2]])
