# SPDX-License-Identifier: GPL-2.0
"""A kernel with PROVE_LOCKING and DEBUG_ATOMIC_SLEEP as the guest's: the runner looks
at its console for what it reports."""

import json

from basics import check_card, check_disk, check_file_system, check_locks, verified
from harness import reports
from loss import LIMIT, check_lost, check_works
from modes import loaded
from net import BRIDGES, connect
from observe import KINDS, Tracing
from plug import check_mounted
from suspend import NETFRONT, cancel, checkpoint, save_and_restore
from support import Setup, appears, cards, images, script, started

MORE = "/scratch/debug-more.img"
LEAKS = "/sys/kernel/debug/kmemleak"
DEBUG = Setup(cards("debug"), images("debug.img", "debug-more.img"),
              debug={"kernel": "debug", "vcpus": 2, "memory": 768, "timeout": 300,
                     "disks": ["virtio:/scratch/debug.img"], "cards": ["virtio"]})


def test_debug_kernel_checks_locks(lab):
    """It has the checks, and none has switched itself off."""
    with DEBUG(lab) as guest:
        appears(guest, "/dev/vda")
        check_locks(guest)


def test_debug_kernel_disk(lab):
    with DEBUG(lab) as guest:
        check_disk(guest)
        check_file_system(guest)


def test_debug_kernel_net(lab):
    with DEBUG(lab) as guest:
        connect(guest, devices=("eth0",))
        check_card(lab, guest)


def test_debug_kernel_reload(lab):
    """All ways in and out, under load."""
    with DEBUG(lab) as guest:
        script(guest, "reload", 3, "--load", timeout=300)
        for level in ("virtio", "xenbus"):
            script(guest, "reload", 1, "--load", "--unbind", level, timeout=300)


def test_debug_kernel_leaks(lab):
    """What was allocated while the driver and its devices went and came is still pointed to,
    or freed: kmemleak finds nothing."""
    with DEBUG(lab) as guest:
        guest.run(f"echo clear >{LEAKS}", 120)
        script(guest, "reload", 1, timeout=300)
        script(guest, "reload", 1, "--unbind", "xenbus", timeout=300)
        # It reports what is older than five seconds, and what two scans have found the same.
        guest.run(f"sleep 5; echo scan >{LEAKS}; echo scan >{LEAKS}", 300)
        found = guest.run(["cat", LEAKS]).stdout
        assert not found, found


def test_debug_kernel_unplug(lab):
    """A disk that goes with a file system in use."""
    with DEBUG(lab) as guest:
        check_mounted(lab, guest, MORE)
        check_locks(guest)


def test_debug_kernel_backend_loss(lab):
    with DEBUG(lab) as guest:
        guest.run(["rmmod", "virtio_xenbus"])
        with loaded(guest, DEBUG.options["debug"], f"backend_timeout_s={LIMIT}"):
            check_works(guest)
            check_lost(lab, guest)
            check_locks(guest)
        guest.run(["driver"])
        appears(guest, "/dev/vda", "/sys/class/net/eth0")


@reports.expected(NETFRONT)
def test_debug_kernel_suspend(lab):
    """Restored, saved and gone on, and a suspend that is cancelled, with the disk in use."""
    with DEBUG(lab) as guest:
        connect(guest, devices=("eth0",))
        with verified(guest):
            for way in save_and_restore, checkpoint, cancel:
                way(guest)
        guest.run(["ping", "-q", "-c", 3, "-i", "0.2", "-W", 10, BRIDGES["eth0"]])
        check_locks(guest)


def test_debug_kernel_cpus(lab):
    """A CPU that goes and comes while the queues are used."""
    with DEBUG(lab) as guest, verified(guest):
        for online in (0, 1, 0, 1):
            guest.run(f"echo {online} >/sys/devices/system/cpu/cpu1/online")
        check_locks(guest)


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
