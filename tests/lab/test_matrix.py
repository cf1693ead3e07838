# SPDX-License-Identifier: GPL-2.0
"""Each type of guest in each address mode: a disk with checksums, a card with streams,
and the counters of both sides, which show that the mode was used."""

import itertools
import math

from modes import loaded, used
from net import BRIDGES, Traffic, connect, transfer
from support import ONE_CPU, Setup, add_test, cards, fio, images

TYPES = ("pv", "pvh", "hvm")
LAB = ONE_CPU
MODES = ("pool", "grant", "machine")
DISK, CARD = "/sys/block/vda", "/sys/class/net/eth0"
SIZE = 24 << 20
# A guest serves all modes of its type, one after the other.
OPTIONS = {"disks": ["virtio:/scratch/matrix.img"], "cards": ["virtio"], "vcpus": 2}
GUESTS = {kind: Setup(cards(kind), images("matrix.img"),
                      **{kind: {**OPTIONS, "type": kind, "driver": None}})
          for kind in TYPES}


def disk(lab, guest, mode):
    """Blocks of 4 KiB to 128 KiB, written and read back with their checksums."""
    with used(lab.dom0, guest, DISK, mode, 2 * SIZE, copied=0.1):
        job = fio(guest, "--verify_fatal=1", filename="/dev/vda", rw="randwrite", size=SIZE,
                  bssplit="4k/30:16k/20:64k/30:128k/20", ioengine="libaio", direct=1,
                  iodepth=8, verify="crc32c", do_verify=1)
        assert job["write"]["io_bytes"] == job["read"]["io_bytes"] == SIZE, job


def card(lab, guest, mode):
    """Streams each way, of whole pages too, and files with their checksums."""
    connect(guest, devices=("eth0",))
    # Most packets are parts of pages.
    with used(lab.dom0, guest, CARD, mode, 16 << 20, copied=math.inf):
        for direction, *more in (("both",), ("send", "-Z")):
            with Traffic(lab, guest, "eth0", direction, 3, *more) as traffic:
                speeds = traffic.check()
            print(f"  {guest.name} eth0 {mode} {direction}:",
                  *(f"{speed / 1e6:.0f} Mbit/s" for speed in speeds), flush=True)
        transfer(guest, lab.dom0, BRIDGES["eth0"], 8)
        transfer(lab.dom0, guest, "10.78.0.2", 8)


def matrix_test(kind, mode):
    """The test of one type of guest in one mode."""
    def test(lab):
        with GUESTS[kind](lab) as guest, loaded(guest, OPTIONS, f"address_mode={mode}"):
            disk(lab, guest, mode)
            card(lab, guest, mode)
    return test


for _kind, _mode in itertools.product(TYPES, MODES):
    add_test(globals(), f"{_kind}_{_mode}", matrix_test(_kind, _mode))
