# SPDX-License-Identifier: GPL-2.0
"""16 disks and 8 cards in one guest: all at once, and what they take of grants and event
channels is what Documentation/driver.rst says."""

import concurrent.futures
import string

from modes import loaded
from resources import event_channels, grants
from support import Setup, cards, images

DISKS, CARDS, CPUS = 16, 8, 2
FILES = [f"many-{letter}.img" for letter in string.ascii_lowercase[:DISKS]]
OPTIONS = {"disks": [f"virtio:/scratch/{name}" for name in FILES],
           "cards": ["virtio"] * CARDS, "vcpus": CPUS, "memory": 640, "driver": None}
# A network of its own for each card, all on one bridge.
NETWORKS = [f"10.80.{number}" for number in range(CARDS)]
# Without persistent grants of the guest's root disk, whose number depends on what has
# been read from it.
MANY = Setup(cards("many", CARDS),
             "echo N >/sys/module/xen_blkback/parameters/feature_persistent; "
             + images(*FILES, size="64M") + "".join(
                 f" && ip addr replace {network}.1/24 dev br0" for network in NETWORKS),
             many=OPTIONS)
# Their default sizes would need more grants than a guest has.
POOL_KIB = {"disk": 2048, "net": 4096}
PAGE_KIB, DIRECTORY = 4, 1024


def expected_grants():
    """Control page, pool, and the directory of the pool's pages."""
    pages = {kind: kib // PAGE_KIB for kind, kib in POOL_KIB.items()}
    each = {kind: 1 + number + -(-number // DIRECTORY) for kind, number in pages.items()}
    return DISKS * each["disk"] + CARDS * each["net"]


def expected_channels():
    """For control and for each queue: a disk has one for each CPU, a card two and its
    control queue's."""
    return DISKS * (1 + CPUS) + CARDS * (1 + 2 * CPUS + 1)


def verified(guest, letters):
    """fio with checksums on disks, all at once; it fails if one does."""
    guest.run(["fio", "--name=global", "--rw=randwrite", "--size=2M", "--bs=16k",
               "--ioengine=libaio", "--direct=1", "--iodepth=4", "--verify=crc32c",
               "--verify_fatal=1",
               *(word for letter in letters
                 for word in (f"--name={letter}", f"--filename=/dev/vd{letter}"))], 300)


def pinged(guest):
    """Packets through all cards at once; each is answered."""
    guest.run("for number in {0.." + str(CARDS - 1) + "}; do "
              "ping -q -c 50 -i 0.05 -W 10 -I eth$number 10.80.$number.1 & all+=($!); done; "
              "for one in ${all[@]}; do wait $one || exit; done", 300)


def test_16_disks_and_8_cards(lab):
    with MANY(lab) as guest:
        places = (lambda: grants(guest), lambda: event_channels(lab.dom0, guest.domid),
                  lambda: event_channels(lab.dom0, 0))
        before = [place() for place in places]
        with loaded(guest, OPTIONS, *(f"{kind}_pool_kib={kib}"
                                      for kind, kib in POOL_KIB.items())):
            taken = [place() - was for place, was in zip(places, before)]
            assert taken == [expected_grants(), expected_channels(), expected_channels()], \
                f"{taken} grants, event channels here and in dom0 are in use"
            # Each card answers for itself alone.
            guest.run("sysctl -q net.ipv4.conf.all.arp_ignore=1; " + "; ".join(
                f"ip addr replace {network}.2/24 dev eth{number} && "
                f"ip link set eth{number} up" for number, network in enumerate(NETWORKS)))
            with concurrent.futures.ThreadPoolExecutor() as pool:
                pings = pool.submit(pinged, guest)
                verified(guest, string.ascii_lowercase[:DISKS])
                pings.result()
        assert [place() for place in places] == before
