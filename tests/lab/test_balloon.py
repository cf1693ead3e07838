# SPDX-License-Identifier: GPL-2.0
"""A guest gives memory back and gets it again while its disk is in use."""

import itertools
import math
import time

from modes import loaded, served, used
from observe import Device
from support import ONE_CPU, Setup, add_test, images

LAB = ONE_CPU
MIB = 1 << 20
MEMORY, LESS = 640, 128
TOLERANCE = 4  # MiB: Xen's own for a guest, and what it rounds to
MODES = ("pool", "grant", "machine")
OPTIONS = {"disks": ["virtio:/scratch/balloon.img"], "vcpus": 2, "memory": MEMORY}
GUESTS = {kind: Setup("", images("balloon.img"),
                      **{kind: {**OPTIONS, "type": kind, "driver": None}})
          for kind in ("pv", "pvh", "hvm")}
# Written and verified again and again until it is told to stop; says when it has begun.
LOAD = ("rm -f /tmp/stop; until [ -e /tmp/stop ]; do fio --name=load --filename=/dev/vda "
        "--rw=randwrite --bs=128k --size=24M --ioengine=libaio --direct=1 --iodepth=4 "
        "--verify=crc32c --do_verify=1 --verify_fatal=1 >/tmp/fio || "
        "{ cat /tmp/fio; exit 1; }; echo round; done")
# Pages of files come and go as well, so that the memory given back has seen I/O.
FILES = "dd if=/dev/vda of=/dev/null bs=1M count=192 status=none"


def memory_of(lab, guest):
    """MiB that Xen has given to the guest, and MiB it has left."""
    words = lab.dom0.run(["xl", "list", guest.name]).stdout.splitlines()[1].split()
    return int(words[2]), int(lab.dom0.run(["xl", "info", "free_memory"]).stdout)


def resize(lab, guest, mib):
    """Have the guest make itself mib MiB large, and wait until it is. Xen tells nobody
    of that, so it is looked at again and again."""
    lab.dom0.run(["xl", "mem-set", guest.name, str(mib)])
    deadline = time.monotonic() + 60
    while abs(memory_of(lab, guest)[0] - mib) > TOLERANCE:
        assert time.monotonic() < deadline, \
            f"{memory_of(lab, guest)[0]} MiB, wanted {mib}"


def balloon(lab, guest, mode):
    """128 MiB less, and again as much as before."""
    disk = Device(guest, "/sys/block/vda")
    with used(lab.dom0, guest, "/sys/block/vda", mode, 48 * MIB, copied=math.inf), \
            guest.start(LOAD) as load:
        load.wait_output("round", 60)
        guest.run(FILES)
        guest.run("echo 1 >/proc/sys/vm/drop_caches")
        at_first, free = memory_of(lab, guest)
        resize(lab, guest, MEMORY - LESS)
        # What the daemon had still mapped would be the guest's even now.
        small, more = memory_of(lab, guest)
        assert more - free >= LESS - TOLERANCE, f"{free} MiB free before, {more} now"
        assert at_first - small >= LESS - TOLERANCE, f"{at_first} MiB before, {small} now"
        rounds = load.stdout.count(b"round")
        assert load.wait_for(lambda: load.stdout.count(b"round") > rounds + 1, 60), \
            load.stdout
        resize(lab, guest, MEMORY)
        rounds = load.stdout.count(b"round")
        assert load.wait_for(lambda: load.stdout.count(b"round") > rounds + 1, 60), \
            load.stdout
        guest.run(["touch", "/tmp/stop"])
        load.wait(60, check=True)
    wait_unmapped(lab, guest, disk)


def wait_unmapped(lab, guest, disk):
    """Wait until the daemon has no frame of a disk mapped that is not in use."""
    deadline = time.monotonic() + 30
    while True:
        _, counters = served(lab.dom0, guest, disk)
        if counters["frames_mapped"] == counters["frames_unmapped"]:
            return
        assert time.monotonic() < deadline, counters


def balloon_test(kind, mode):
    """The test of one type of guest in one mode."""
    def test(lab):
        with GUESTS[kind](lab) as guest, loaded(guest, OPTIONS, f"address_mode={mode}"):
            balloon(lab, guest, mode)
    test.__doc__ = balloon.__doc__
    return test


for _kind, _mode in itertools.product(GUESTS, MODES):
    add_test(globals(), f"{_kind}_{_mode}", balloon_test(_kind, _mode))
