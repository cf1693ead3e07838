# SPDX-License-Identifier: GPL-2.0
"""A guest is saved, restored, migrated, paused: what it does goes on."""

import os

from harness import reports
from observe import Device
from resources import nothing_left
from suspend import (NETFRONT, Load, cancel, checkpoint, migrate, pause, restore, save,
                     save_and_restore, setup)
from support import ONE_CPU, Setup, add_test, appears, cards, images, vanishes

LAB = ONE_CPU
WAYS = save_and_restore, checkpoint, cancel, pause
# Debian's Xen cannot migrate PV guests: it has no shadow paging to tell what they write. On an
# emulated machine the others take minutes.
KINDS = {"pv": WAYS}
if os.environ.get("VXB_SUSPEND") == "all":
    KINDS |= dict.fromkeys(("pvh", "hvm"), (*WAYS, migrate))
OTHER = setup("other")
# The same, but served by vhost-net and by a vhost-user program.
VHOST = Setup(
    """
[[device]]
domain = "vhost"
device = 0
net = { bridge = "br0", vhost = true }

[[device]]
domain = "vhost"
device = 1
vhost-user = { socket = "/run/vhost-a.sock", type = "blk" }

[[device]]
domain = "vhost"
device = 2
vhost-user = { socket = "/run/vhost-b.sock", type = "blk" }
""",
    "modprobe vhost_net; echo N >/sys/module/xen_blkback/parameters/feature_persistent; "
    + images("vhost-a.img", "vhost-b.img")
    + "; rm -f /run/vhost-?.sock; qemu-storage-daemon --daemonize"
    + "".join(f" --blockdev driver=file,node-name={name},filename=/scratch/vhost-{name}.img,"
              f"cache.direct=on --export type=vhost-user-blk,id={name},node-name={name},"
              f"writable=on,addr.type=unix,addr.path=/run/vhost-{name}.sock" for name in "ab"),
    vhost={"cards": [f"type=virtio,device{number},transport=mmio,grant_usage=1"
                     for number in (1, 2, 2)], "memory": 320, "vcpus": 2})
BUS = "/sys/bus/xen/drivers/virtio_xenbus"
READ = "dd if={} of=/dev/null bs=4k count=256 iflag=direct status=none"


def each_way(kind, ways):
    """Disks and card are in use all the time, and nothing is left behind. A guest's memory
    is counted where it is not restored: xen-netfront, of the lab's own card, loses its stores
    of pages each time it is (no xdp_rxq_info_unreg() in xennet_disconnect_backend())."""
    guests = setup(f"suspend-{kind}", type=kind)

    @reports.expected(NETFRONT)
    def test(lab):
        with guests(lab) as guest:
            with nothing_left(lab, guest, memory=False), Load(lab, guest) as load:
                for way in ways:
                    way(guest)
                    load.goes_on()
                sent, received = load.end()
            print(f"  {sent >> 20} MiB sent, {received >> 20} received", flush=True)
            if kind == "pv":
                checkpoint(guest)  # virtio_net gives back what it has taken under load
                with nothing_left(lab, guest):
                    checkpoint(guest)
    return test


for _kind, _ways in KINDS.items():
    add_test(globals(), f"{_kind}_in_each_way", each_way(_kind, _ways))


@reports.expected(NETFRONT)
def test_backend_that_cannot_go_on(lab):
    """After a restore a disk has fewer queues than its driver has set up: what was held
    back fails, the disk goes, with a reason; all else goes on. Bound again, it is there."""
    with OTHER(lab) as guest:
        dom0 = lab.dom0
        # The kernel calls vda which disk was there first.
        disk = Device(guest, "/sys/block/vda").name
        vdev = "xvda" if disk == "virtio_disk-51712" else "xvdb"
        with guest.start(f"echo begun; while {READ.format('/dev/vda')}; do :; done") as reader:
            reader.wait_output("begun", 60)
            save(guest)
            dom0.stop_daemon()
            dom0.start_daemon(cards("other") + f'[[disk]]\ndomain = "other"\nvdev = "{vdev}"\n'
                              "blk = { queues = 1 }\n")
            restore(guest)
            assert "Input/output error" in reader.wait(60).stderr
        vanishes(guest, "/dev/vda")
        reason = "after restore: the backend has 1 queues, the driver uses 2"
        assert reason in guest.run(["dmesg"]).stdout
        error = f"/local/domain/{guest.domid}/error/device/{disk.replace('-', '/')}/error"
        assert reason in dom0.run(["xenstore-read", error]).stdout
        guest.run(READ.format("/dev/vdb"))
        for file in ("unbind", "bind"):
            guest.run(f"echo {disk} >{BUS}/{file}")
        appears(guest, "/dev/vda")
        guest.run(READ.format("/dev/vda"))


@reports.expected(NETFRONT)
def test_vhost(lab):
    """Disks of a vhost-user program, a card with vhost-net. (The last one here: from now on
    the daemon uses vhost-net.)"""
    with VHOST(lab) as guest:
        appears(guest, "/dev/vda", "/dev/vdb", "/sys/class/net/eth0")
        with nothing_left(lab, guest, memory=False), Load(lab, guest) as load:
            for way in save_and_restore, checkpoint:
                way(guest)
                load.goes_on()
            load.end()
