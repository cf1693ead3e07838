# SPDX-License-Identifier: GPL-2.0
"""A guest reboots, shuts down and crashes with a disk and a card under load: the daemon lets
go of everything, and serves the new domain."""

from harness import reports
from life import (CRASH, CRASHES, DEVICES, FILE, OPTIONS, PREPARE, RELEASE, begins_anew, config,
                  load)
from resources import nothing_left_in_dom0
from support import Setup, appears, guest, log_size, started, value, wait_log, wait_store
from writelog import WriteLog

# A guest whose domain follows another, and none.
AGAIN = Setup(config("again"), PREPARE,
              again={**OPTIONS, "xl": ["on_reboot = 'restart'", "on_crash = 'restart'"]})
# Two directories of xenstore stay when the first guest of all is gone.
ONCE = Setup(config("once"), f"{PREPARE} && xenstore-write /vm '' /libxl ''")


def follows(lab, one, end):
    """A domain in use ends by what end() starts; the next one has the same devices."""
    domid = one.domid
    with begins_anew(lab, one), end():
        # Xen counts up.
        wait_store(lab.dom0, f"/local/domain/{domid + 1}/data/lab", "ready", 180)
    assert one.domid == domid + 1


def ends(lab, end):
    """A domain in use ends by what end(one) starts and none follows: dom0 has what it had
    before."""
    with ONCE(lab), nothing_left_in_dom0(lab):
        with guest(lab, "once", **OPTIONS) as one:
            domid = one.domid
            appears(one, *DEVICES)
            with load(lab, one), end(one):
                lab.dom0.run("for _ in {1..600}; do xl domid once >/dev/null 2>&1 || exit 0; "
                             "sleep 0.1; done; exit 1", 90)
        lab.dom0.run(f"! xenstore-exists /local/domain/0/backend/virtio/{domid}")


def test_toolstack_reboots(lab):
    """xl reboot."""
    with AGAIN(lab) as one:
        follows(lab, one, lambda: lab.dom0.start(["xl", "reboot", "again"]))


def test_guest_reboots(lab):
    """The guest's own reboot."""
    with AGAIN(lab) as one:
        follows(lab, one, lambda: one.start("busybox reboot -f"))


@reports.expected(CRASHES)
def test_crash_and_restart(lab):
    """A crash, with on_crash = "restart"."""
    with AGAIN(lab) as one:
        follows(lab, one, lambda: one.start(CRASH))


def test_poweroff(lab):
    """The guest powers off by itself. (For xl shutdown it would need a /sbin/poweroff, as
    systems have; tests/packages does that.)"""
    ends(lab, lambda one: one.start("busybox poweroff -f"))


@reports.expected(CRASHES)
def test_crash(lab):
    """A crash, with on_crash = "destroy"."""
    ends(lab, lambda one: one.start(CRASH))


@reports.expected(CRASHES)
def test_crash_loses_nothing(lab):
    """Blocks carry sequence numbers: all that was flushed before a crash in the midst of writing
    is in the file, and no block is half of one."""
    with ONCE(lab), guest(lab, "once", **OPTIONS) as one:
        appears(one, *DEVICES)
        start = log_size(lab.dom0)
        with WriteLog(lab, one, "/dev/vda", FILE) as log:
            state = log.flushed()
            one.start(CRASH)
            wait_log(lab.dom0, start, "once virtio/1: removed", 120)
            log.check_file(state, "--later")


def test_kexec(lab):
    """Linux's kexec shuts the hardware down first, and for a PV guest that is to power off:
    the domain ends as in a shutdown."""
    def end(one):
        process = started(one, "kexec", f"/boot/vmlinuz-{value(one, RELEASE)}")
        process.wait_output("loaded", 60)
        return process

    ends(lab, end)


def test_destroy(lab):
    """xl destroy."""
    ends(lab, lambda one: lab.dom0.start(["xl", "destroy", "once"]))
