# SPDX-License-Identifier: GPL-2.0
"""A card: addresses, packets, streams, link status. eth0 has an MTU of 1500, eth1
one of 9000, each on a bridge of its own."""

from net import (BRIDGES, MAKE_BR9, Traffic, connect, ports, transfer, two_cards,
                 wait_link)
from support import Setup, log_size, value, wait_log

CARDS = Setup(two_cards("net"), MAKE_BR9, net={"cards": ["virtio", "virtio"], "vcpus": 2})


def test_net_basic(lab):
    """Driver, address, MTU and feature negotiation; a packet comes back."""
    with CARDS(lab) as guest:
        connect(guest)
        for device, mtu in (("eth0", "1500"), ("eth1", "9000")):
            driver = guest.run(["ethtool", "-i", device]).stdout
            assert "driver: virtio_net" in driver, driver
            assert value(guest, f"/sys/class/net/{device}/mtu") == mtu
            assert value(guest, f"/sys/class/net/{device}/carrier") == "1"
            assert value(guest, f"/sys/class/net/{device}/address").startswith("00:16:3e:")
            guest.run(["ping", "-c", 3, "-W", 10, BRIDGES[device]])


def test_ping_flood(lab):
    """10,000 packets, each is answered."""
    with CARDS(lab) as guest:
        connect(guest)
        text = guest.run(["ping", "-q", "-f", "-c", 10000, BRIDGES["eth0"]], 300).stdout
        assert "10000 packets transmitted, 10000 received, 0% packet loss" in text, text


def test_largest_packet_that_fits(lab):
    """The MTU's packet passes in one piece, a byte more does not."""
    with CARDS(lab) as guest:
        connect(guest)
        for device, mtu in (("eth0", 1500), ("eth1", 9000)):
            ping = ["ping", "-c", 3, "-W", 10, "-M", "do", "-s"]
            guest.run([*ping, mtu - 28, BRIDGES[device]])
            done = guest.run([*ping, mtu - 27, BRIDGES[device]], check=False)
            assert done.returncode and "too long" in done.stdout + done.stderr, done


def test_file_by_tcp(lab):
    """100 MiB each way arrive as they were sent."""
    with CARDS(lab) as guest:
        connect(guest)
        transfer(guest, lab.dom0, BRIDGES["eth0"], 100)
        transfer(lab.dom0, guest, "10.78.0.2", 100)


def test_iperf_30_s_each_way(lab):
    """Both MTUs at once, 30 s without a stall."""
    with CARDS(lab) as guest:
        connect(guest)
        for direction in ("send", "receive", "both"):
            with Traffic(lab, guest, "eth0", direction, 30) as small, \
                    Traffic(lab, guest, "eth1", direction, 30) as large:
                small.check()
                large.check()


def test_offloads_off_and_on(lab):
    """Checksum and segmentation offload: with it the tap sees packets longer than the
    MTU, without it none. Data passes either way."""
    with CARDS(lab) as guest:
        connect(guest)
        for device, mtu in (("eth0", 1500), ("eth1", 9000)):
            for state in ("off", "on"):
                guest.run(["ethtool", "-K", device, "tx", state, "sg", state, "tso", state,
                           "gso", state, "gro", state])
                for direction in ("send", "receive"):
                    before = ports(lab, guest)[device]
                    with Traffic(lab, guest, device, direction, 2) as traffic:
                        traffic.check()
                    size = before.mean_packet(ports(lab, guest)[device], direction)
                    if direction == "send":
                        assert (size > mtu + 14) == (state == "on"), \
                            f"{device}, offloads {state}: packets of {size:.0f} bytes"


def test_link_status(lab):
    """The tap's link in dom0 is the card's in the guest."""
    with CARDS(lab) as guest:
        connect(guest)
        tap = ports(lab, guest)["eth0"].name
        start = log_size(lab.dom0)
        for state in ("down", "up"):
            lab.dom0.run(["ip", "link", "set", tap, state])
            wait_link(guest, "eth0", state)
            wait_log(lab.dom0, start, f"link of tap {tap} to bridge br0 is {state}")
        guest.run(["ping", "-c", 3, "-W", 10, BRIDGES["eth0"]])
