# SPDX-License-Identifier: GPL-2.0
"""A daemon that is killed and does not come back for longer than backend_timeout_s: what its
guests wait for fails, their devices go, and are plugged anew when there is a daemon again."""

import signal
import time

from loss import DISK, LIMIT, START, check_lost, check_works
from plug import used
from resources import event_channels, grants, nothing_left
from support import Setup, cards, images, value

LOSS = Setup(cards("loss"),
             # Without persistent grants of the guest's root disk, whose number depends on what
             # has been read from it.
             "echo N >/sys/module/xen_blkback/parameters/feature_persistent; "
             + images("loss.img"),
             loss={"disks": ["virtio:/scratch/loss.img"], "cards": ["virtio"], "vcpus": 2,
                   "driver": [f"backend_timeout_s={LIMIT}"]})


def test_daemon_does_not_come_back(lab):
    """All is taken back meanwhile."""
    with LOSS(lab) as guest:
        def held():
            return grants(guest), event_channels(lab.dom0, guest.domid)

        check_works(guest)
        before = held()

        def fewer():
            now = held()
            # A pool of each, and a channel for each queue and for control.
            assert before[0] - now[0] > 4096 + 2048, (before, now)
            assert before[1] - now[1] >= 6, (before, now)

        # But for its memory: what fio and its like take once is no leak.
        with nothing_left(lab, guest, memory=False):
            check_lost(lab, guest, fewer)


def test_daemon_comes_back_in_time(lab):
    """As often as it likes: absences are not added up."""
    with LOSS(lab) as guest, used(guest, DISK) as load:
        begin = time.monotonic()
        while time.monotonic() - begin < 2 * LIMIT:
            lab.dom0.stop_daemon(signal.SIGKILL)
            lab.dom0.run(START)
            guest.run(f"dd if={DISK} of=/dev/null bs=64k count=16 iflag=direct status=none")
        assert load.poll() is None, load.wait(10)
        assert value(guest, "/sys/kernel/debug/virtio_xenbus/virtio-0/state") == "Connected"
