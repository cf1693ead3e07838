# SPDX-License-Identifier: GPL-2.0
"""16 disks and 8 cards in one guest: all at once, and what they take of grants and event
channels is what Documentation/driver.rst says."""

import concurrent.futures
import string

from modes import loaded
from resources import event_channels, grants
from support import Setup, cards, fio, images

DISKS, CARDS, CPUS = 16, 8, 2
JOBS = 4  # at a time
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


def verified(guest, letter):
    job = fio(guest, "--verify_fatal=1", filename=f"/dev/vd{letter}", rw="randwrite",
              size="2M", bs="16k", ioengine="libaio", direct=1, iodepth=4, verify="crc32c")
    assert job["read"]["io_bytes"] == job["write"]["io_bytes"] > 0


def pinged(guest, number):
    guest.run(["ping", "-q", "-c", 50, "-i", "0.02", "-W", 10, "-I", f"eth{number}",
               f"{NETWORKS[number]}.1"], 120)


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
            with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
                jobs = [pool.submit(verified, guest, letter)
                        for letter in string.ascii_lowercase[:DISKS]]
                jobs += [pool.submit(pinged, guest, number) for number in range(CARDS)]
                for job in jobs:
                    job.result()
        assert [place() for place in places] == before
