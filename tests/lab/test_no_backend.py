# SPDX-License-Identifier: GPL-2.0
"""A guest whose devices have no backend, yet."""

import signal

from support import appears, daemon, guest, images, wait_store

# A disk of type virtio: for one of type virtio_disk xl itself waits for a backend.
DISK = "type=virtio,device2,transport=mmio,grant_usage=1"
CONFIG = '[[device]]\ndomain = "early"\ndevice = 0\nblk = { path = "/scratch/early.img" }\n'
LIMIT = 2.0  # seconds




def insmod(one):
    """Load the driver while no backend runs."""
    seconds = float(one.run("modprobe virtio_blk; TIMEFORMAT=%R; "
                            "time insmod /payload/$(uname -r)/virtio_xenbus.ko").stderr)
    assert seconds < LIMIT, f"insmod took {seconds} s"
    one.run(["test", "!", "-e", "/dev/vda"])


def test_backend_comes_after_insmod(lab):
    """insmod does not wait, and the disk appears when the daemon starts: whether
    there was no daemon yet, or one that has ended, or one that died in InitWait."""
    dom0 = lab.dom0
    dom0.run(images("early.img"))
    read = "dd if=/dev/vda of=/dev/null bs=1M count=4 iflag=direct status=none"
    with guest(lab, "early", driver=None, cards=[DISK]) as one:
        insmod(one)
        with daemon(lab, CONFIG):
            appears(one, "/dev/vda")
            one.run(read)
            one.run(["rmmod", "virtio_xenbus"])

            dom0.stop_daemon()
            insmod(one)
            dom0.start_daemon(CONFIG)
            appears(one, "/dev/vda")
            one.run(read)
            one.run(["rmmod", "virtio_xenbus"])

            # As a driver leaves it that has just begun.
            front = f"/local/domain/{one.domid}/device/virtio/0/state"
            back = f"/local/domain/0/backend/virtio/{one.domid}/0/state"
            dom0.run(["xenstore-write", front, 1])
            wait_store(dom0, back, "2")
            dom0.stop_daemon(signal.SIGKILL)
            insmod(one)
            dom0.start_daemon(CONFIG)
            appears(one, "/dev/vda")
            one.run(read)
