# SPDX-License-Identifier: GPL-2.0
"""A kernel with PROVE_LOCKING and DEBUG_ATOMIC_SLEEP as the guest's: the runner looks
at its console for what it reports."""

import json

from net import BRIDGES, Traffic, connect
from observe import KINDS, Tracing
from support import Setup, appears, cards, fio, images, script, started

DEBUG = Setup(cards("debug"), images("debug.img"),
              debug={"kernel": "debug", "vcpus": 2, "memory": 768, "timeout": 300,
                     "disks": ["virtio:/scratch/debug.img"], "cards": ["virtio"]})


def test_debug_kernel_checks_locks(lab):
    """It has the checks, and none has switched itself off."""
    with DEBUG(lab) as guest:
        appears(guest, "/dev/vda")
        check_locks(guest)


def check_locks(guest):
    """Lockdep is still on: it ends with the first thing it reports."""
    stats = guest.run(["cat", "/proc/lockdep_stats"]).stdout
    assert [line.split() for line in stats.splitlines() if "debug_locks" in line] \
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


def test_debug_kernel_observed(lab):
    """debugfs read while devices go and come, and unloading while events are recorded."""
    with DEBUG(lab) as guest:
        connect(guest, devices=("eth0",))
        with started(guest, "readers") as readers:
            readers.wait_output("reading", 120)
            with Tracing(guest) as tracing:
                guest.run("dd if=/dev/vda of=/dev/null bs=64k count=64 iflag=direct "
                          "status=none", 120)
                guest.run(["ping", "-q", "-f", "-c", 100, BRIDGES["eth0"]], 120)
                kinds = {kind for kind, _ in tracing.stop()}
                assert kinds >= KINDS - {"request"}, kinds
            with Tracing(guest):
                script(guest, "reload", 1, timeout=200)
            readers.close_stdin()
            result = json.loads(readers.wait(120, check=True).stdout.splitlines()[-1])
        assert list(result["held"]) == ["EIO"], result

        with Tracing(guest):
            script(guest, "reload", 1, "--load", timeout=300)
        check_locks(guest)
