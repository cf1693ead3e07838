# SPDX-License-Identifier: GPL-2.0
"""Addresses, streams and counters of cards."""

import dataclasses
import itertools
import json
import re

from support import cards, value

# A card in the guest -> the address of its bridge in dom0.
BRIDGES = {"eth0": "10.78.0.1", "eth1": "10.79.0.1", "lab0": "10.77.0.1"}
# br0 is there; this makes the other one, for dom0's shell.
MAKE_BR9 = ("ip link show br9 >/dev/null 2>&1 || ip link add br9 type bridge; "
            "ip link set br9 mtu 9000 up; ip addr replace 10.79.0.1/24 dev br9")
_numbers = itertools.count(5201)


def two_cards(name):
    """The daemon's configuration of guest `name` for a card on each bridge."""
    return cards(name) + cards(name, first=1, settings='bridge = "br9"')


def address(bridge, host):
    """The address of host number `host` in the network of a bridge's address."""
    return f"{bridge.rpartition('.')[0]}.{host}"


def connect(guest, host=2, devices=("eth0", "eth1")):
    """Give the guest's cards their addresses, set them up and wait for their links."""
    for device in devices:
        guest.run(f"ip addr replace {address(BRIDGES[device], host)}/24 dev {device} && "
                  f"ip link set {device} up")
    for device in devices:
        wait_link(guest, device, "up")


def wait_link(guest, device, wanted):
    """Wait until the card's link is "up", or "down". Only then does the kernel send, or not: of a
    new carrier it takes notice up to a second later, and drops packets before."""
    # The monitor may miss what happens before it listens: look again each second.
    guest.run(f"while [ $(cat /sys/class/net/{device}/operstate) != {wanted} ]; do "
              "read -r -t 1 _; done < <(ip monitor link)", 60)


def transfer(sender, receiver, address, mib):
    """Assert that a file sent by TCP arrives as it was; address is the receiver's."""
    with receiver.start("socat -d -d -u TCP4-LISTEN:5555,reuseaddr - | sha256sum") as sink:
        sink.wait_output("listening on", 60)
        sent = sender.run(f"head -c {mib}M /dev/urandom >/tmp/file && "
                          f"socat -u FILE:/tmp/file TCP4:{address}:5555 && "
                          "sha256sum </tmp/file && rm /tmp/file", 300).stdout
        received = sink.wait(60, check=True).stdout
        assert received == sent, f"{sent} was sent, {received} received"


@dataclasses.dataclass
class Port:
    """A tap and its counters, as dom0 sees them: it receives what the guest sends."""
    name: str
    counters: dict

    def mean_packet(self, later, direction):
        """Bytes of a mean packet between now and `later`, the guest's direction."""
        way = {"send": "rx", "receive": "tx"}[direction]
        spent = {name: later.counters[name] - self.counters[name] for name in later.counters}
        return spent[f"{way}_bytes"] / spent[f"{way}_packets"]


def ports(lab, guest):
    """eth0 and eth1 -> their taps in dom0, with the counters of now."""
    found = {}
    for number, device in enumerate(("eth0", "eth1")):
        name = f"vx{guest.domid}.{number}"
        if lab.dom0.run(["test", "-e", f"/sys/class/net/{name}"], check=False).returncode == 0:
            found[device] = Port(name, {
                counter: int(value(lab.dom0, f"/sys/class/net/{name}/statistics/{counter}"))
                for counter in ("rx_bytes", "rx_packets", "tx_bytes", "tx_packets")})
    return found


class Traffic:
    """iperf3 between the guest and dom0, for `seconds`. direction: what the guest
    does, send, receive or both; more: options of iperf3. A context manager; check()
    waits for the end."""

    def __init__(self, lab, guest, device, direction, seconds, *more, streams=1):
        port = str(next(_numbers))
        options = {"send": [], "receive": ["--reverse"], "both": ["--bidir"]}[direction]
        self.direction, self.seconds = direction, seconds
        self._server = lab.dom0.start(["iperf3", "-s", "-1", "-p", port, "--forceflush"])
        self._server.wait_output("Server listening", 60)
        self._client = guest.start(
            ["iperf3", "-c", BRIDGES[device], "-p", port, "-t", str(seconds), "-i", "5",
             "-P", str(streams), "--json", *options, *more])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._client.close()
        self._server.close()

    def wait_flow(self, timeout=120):
        """Wait until data passes both ways, from now on: two more seconds with some."""
        def seconds(way):
            return len(re.findall(rb"\[" + way + rb"\] .* sec +(?!0\.00)[\d.]+ .?Bytes",
                                  self._server.stdout))

        ways = {way: seconds(way) for way in (b"TX-S", b"RX-S")}
        assert self._server.wait_for(
            lambda: all(seconds(way) >= before + 2 for way, before in ways.items()), timeout), \
            self._server.stdout[-2000:]

    def check(self):
        """Assert that data passed all the time; returns bits per second, a list."""
        text = self._client.wait(self.seconds + 60, check=True).stdout
        result = json.loads(text)
        for interval in result["intervals"]:
            for name, part in interval.items():
                # The last one may be cut off as soon as it has begun.
                assert not name.startswith("sum") or part["bytes"] > 0 \
                    or part["seconds"] < 1, f"a stall: {part}"
        speeds = [part["bits_per_second"] for name, part in result["end"].items()
                  if name.startswith("sum_received")]
        assert len(speeds) == 1 + (self.direction == "both"), result["end"].keys()
        assert min(speeds) > 0, speeds
        return speeds
