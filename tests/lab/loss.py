# SPDX-License-Identifier: GPL-2.0
"""A daemon that is killed and does not come back for longer than the driver's
backend_timeout_s."""

import signal

from net import BRIDGES, connect
from plug import assert_failed, assert_healthy, used
from support import appears, fio, vanishes

LIMIT = 3  # seconds
START = ["daemon", "start", "/etc/virtio-xenbusd.toml"]
DISK, CARD = "/dev/vda", "/sys/class/net/eth0"


def check_works(guest):
    """Both devices."""
    connect(guest, devices=("eth0",))
    guest.run(["ping", "-q", "-c", 3, "-i", "0.2", "-W", 10, BRIDGES["eth0"]])
    fio(guest, "--verify_fatal=1", filename=DISK, rw="randwrite", size="2M", bs="16k",
        ioengine="libaio", direct=1, iodepth=8, verify="crc32c")


def check_lost(lab, guest, when_lost=lambda: None):
    """The daemon is killed while disk and card are used, and another one comes when the guest
    has given them up, and when_lost() has been called."""
    guest.run(f"mkfs.ext4 -q -F {DISK} && mount {DISK} /mnt && sync", 120)
    with used(guest, "/mnt/load") as load, used(guest, DISK, "randread") as raw, \
            guest.start(["ping", "-q", "-f", BRIDGES["eth0"]]):
        lab.dom0.stop_daemon(signal.SIGKILL)
        vanishes(guest, CARD)
        for one in load, raw:
            assert_failed(one)
    guest.run(["umount", "/mnt"])
    vanishes(guest, DISK)
    assert_healthy(guest)
    guest.run(f"dmesg | grep -q 'the backend has been gone for {LIMIT} s'")
    assert guest.run("ls /sys/bus/virtio/devices").stdout == ""
    when_lost()

    lab.dom0.run(START)
    appears(guest, DISK, CARD)
    check_works(guest)
