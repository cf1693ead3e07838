# SPDX-License-Identifier: GPL-2.0
"""A kernel with PROVE_LOCKING and DEBUG_ATOMIC_SLEEP as the guest's: the runner looks
at its console for what it reports."""

from net import BRIDGES, Traffic, connect
from support import Setup, appears, cards, fio, images, script

DEBUG = Setup(cards("debug"), images("debug.img"),
              debug={"kernel": "debug", "vcpus": 2, "memory": 768, "timeout": 300,
                     "disks": ["virtio:/scratch/debug.img"], "cards": ["virtio"]})


def test_debug_kernel_checks_locks(lab):
    """It has the checks, and none has switched itself off."""
    with DEBUG(lab) as guest:
        appears(guest, "/dev/vda")
        stats = guest.run(["cat", "/proc/lockdep_stats"]).stdout
        assert "debug_locks:                             1" in stats or \
            [line.split() for line in stats.splitlines() if "debug_locks" in line] \
            == [["debug_locks:", "1"]], stats


def test_debug_kernel_disk(lab):
    with DEBUG(lab) as guest:
        job = fio(guest, "--verify_fatal=1", filename="/dev/vda", rw="randwrite", size="64M",
                  bssplit="4k/50:128k/50", ioengine="libaio", direct=1, iodepth=32,
                  verify="crc32c")
        assert job["read"]["io_bytes"] == job["write"]["io_bytes"] > 0
        guest.run("mkfs.ext4 -q -F /dev/vda && mount /dev/vda /mnt && cp -a /usr/bin /mnt && "
                  "umount /mnt && fsck.ext4 -fn /dev/vda && blkdiscard /dev/vda && "
                  "blkdiscard -z -l 16M /dev/vda", 300)


def test_debug_kernel_net(lab):
    with DEBUG(lab) as guest:
        connect(guest, devices=("eth0",))
        guest.run(["ping", "-q", "-f", "-c", 2000, BRIDGES["eth0"]], 120)
        with Traffic(lab, guest, "eth0", "both", 10) as traffic:
            traffic.check()


def test_debug_kernel_reload(lab):
    """All ways in and out, under load."""
    with DEBUG(lab) as guest:
        script(guest, "reload", 3, "--load", timeout=300)
