# SPDX-License-Identifier: GPL-2.0
"""A guest with a disk and a card in use, whose kernel ends and is followed by another one."""

import contextlib

from net import Traffic, connect
from resources import assert_same, count
from support import appears, cards, fio, images

RELEASE = "/proc/sys/kernel/osrelease"
CRASH = "echo c >/proc/sysrq-trigger"
CRASHES = r"sysrq triggered crash"
FILE = "/scratch/life.img"
# Without persistent grants of the guest's root disk, whose number depends on what has been
# read from it.
PREPARE = ("echo N >/sys/module/xen_blkback/parameters/feature_persistent; "
           + images("life.img", size="64M"))
# A card and a disk of the same type. Of a guest that has disks of type virtio_disk and of
# xen-blkfront both, xl forgets all disks when it reboots (daemon.rst).
TYPES = [f"type=virtio,device{number},transport=mmio,grant_usage=1" for number in (1, 2)]
OPTIONS = {"cards": TYPES, "vcpus": 2}
DEVICES = "/sys/class/net/eth0", "/dev/vda"


def config(name):
    """The daemon's configuration of card and disk."""
    return (cards(name) + f'[[device]]\ndomain = "{name}"\ndevice = 1\n'
            f'blk = {{ path = "{FILE}" }}\n')


@contextlib.contextmanager
def load(lab, one):
    """Disk and card in use, for as long as the guest lives."""
    connect(one, devices=("eth0",))
    with Traffic(lab, one, "eth0", "both", 600) as traffic, one.start(
            ["fio", "--name=load", "--filename=/dev/vda", "--rw=randrw", "--bs=16k",
             "--size=32M", "--ioengine=libaio", "--direct=1", "--iodepth=32",
             "--time_based", "--runtime=600", "--status-interval=1"]) as disk:
        disk.wait_output("IOPS", 60)
        traffic.wait_flow()
        yield


@contextlib.contextmanager
def begins_anew(lab, one):
    """The block has another kernel begin in a guest, whose disk and card are in use until then.
    They are there again, with what was written, and dom0 holds for them what it held before."""
    appears(one, *DEVICES)
    one.run("echo kept | dd of=/dev/vda bs=512 seek=100000 conv=sync oflag=direct status=none")
    before = count(lab, one, memory=False)
    with load(lab, one):
        yield
    one.run(["driver"])
    appears(one, *DEVICES)
    assert_same(lab, one, before)
    assert one.run("dd if=/dev/vda bs=512 skip=100000 count=1 status=none | head -c 4"
                   ).stdout == "kept"
    fio(one, "--verify_fatal=1", filename="/dev/vda", rw="randwrite", size="4M", bs="16k",
        ioengine="libaio", direct=1, iodepth=8, verify="crc32c")
    connect(one, devices=("eth0",))
    one.run(["ping", "-q", "-c", 3, "-i", "0.2", "-W", 10, "10.78.0.1"])
