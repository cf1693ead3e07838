# SPDX-License-Identifier: GPL-2.0
"""Cards whose packets the kernel's vhost-net passes on. The tests before these are of the
daemon's own data path: this loads the module, and the daemon uses it from then on."""

import json
import re

from net import BRIDGES, MAKE_BR9, Traffic, connect, two_cards
from resources import assert_same, count
from support import Setup, appears, vanishes

TOOL = "/payload/virtio-xenbusctl"
PREPARE = f"modprobe vhost_net && {MAKE_BR9}"
CARDS = Setup(two_cards("vnet"), PREPARE, vnet={"cards": ["virtio", "virtio"], "vcpus": 2})


def devices(lab):
    """What the control tool tells of the guest's cards."""
    return json.loads(lab.dom0.run([TOOL, "--json", "show", "vnet"]).stdout)


def test_vhost_net_is_used_and_said(lab):
    """Without a word in the configuration. What nobody counts is left out, not zero."""
    with CARDS(lab) as guest:
        connect(guest)
        guest.run(["ping", "-q", "-f", "-c", 500, BRIDGES["eth0"]])
        card = devices(lab)[0]
        assert "vhost-net" in card["description"], card
        assert "RING_PACKED" not in card["features"], card
        for queue in card["queues"]:
            assert ("requests" in queue) == (queue["name"] == "control"), queue
        # Which pair of queues is used depends on the guest's CPUs.
        for kind in ("receive", "transmit"):
            used = [queue for queue in card["queues"] if queue["name"].startswith(kind)
                    and queue["kicks"] and queue["interrupts"]]
            assert used, (kind, card)
        pid = lab.dom0.run(["daemon", "status"]).stdout.strip()
        names = lab.dom0.run(f"cat /proc/{pid}/task/*/comm").stdout.split()
        assert [name for name in names if name.startswith("vhost")], names


def test_vhost_net_mtu(lab):
    """The MTU's packet passes in one piece."""
    with CARDS(lab) as guest:
        connect(guest)
        for device, mtu in (("eth0", 1500), ("eth1", 9000)):
            guest.run(["ping", "-c", 2, "-W", 10, "-M", "do", "-s", mtu - 28, BRIDGES[device]])


def test_vhost_net_streams_and_files(lab):
    """Both ways, both MTUs; a file arrives as it was sent."""
    with CARDS(lab) as guest:
        connect(guest)
        for device in BRIDGES:
            with Traffic(lab, guest, device, "both", 5, streams=4) as traffic:
                print(f"  {device}:", *(f"{speed / 1e6:.0f} Mbit/s" for speed in traffic.check()))
        for sender, receiver in ((guest, lab.dom0), (lab.dom0, guest)):
            address = "10.79.0.1" if receiver is lab.dom0 else "10.79.0.2"
            with receiver.start("socat -d -d -u TCP4-LISTEN:5555,reuseaddr - | sha256sum") as sink:
                sink.wait_output("listening on", 60)
                sent = sender.run("head -c 32M /dev/urandom >/tmp/file && "
                                  f"socat -u FILE:/tmp/file TCP4:{address}:5555 && "
                                  "sha256sum </tmp/file && rm /tmp/file", 120).stdout
                assert sink.wait(60, check=True).stdout == sent


def test_vhost_net_channels_change_under_traffic(lab):
    """ethtool -L, several times, while a stream runs."""
    with CARDS(lab) as guest:
        connect(guest)
        with Traffic(lab, guest, "eth0", "both", 10, streams=4) as traffic:
            for channels in (1, 2, 1, 2):
                guest.run(["ethtool", "-L", "eth0", "combined", channels])
                text = guest.run(["ethtool", "-l", "eth0"]).stdout
                assert re.findall(r"Combined:\s*(\d+)", text) == ["2", str(channels)], text
                guest.run(["ping", "-c", 2, "-W", 10, BRIDGES["eth0"]])
            traffic.check()


def test_vhost_net_leaves_nothing(lab):
    """A card is attached, used and detached: threads, descriptors and grants are as before."""
    with CARDS(lab) as guest:
        connect(guest)
        before = None
        for _ in range(3):
            lab.dom0.run([TOOL, "attach", "vnet", "net", "--bridge", "br0"], 60)
            appears(guest, "/sys/class/net/eth2")
            guest.run("ip link set eth2 up && ip addr add 10.78.0.9/24 dev eth2 && "
                      "ping -c 2 -W 10 -I eth2 10.78.0.1")
            lab.dom0.run([TOOL, "detach", "vnet", "virtio/2"], 60)
            vanishes(guest, "/sys/class/net/eth2")
            # The first round also fills what the guest keeps at hand.
            before = before or count(lab, guest)
        assert_same(lab, guest, before)
