# SPDX-License-Identifier: GPL-2.0
"""The backend in an unprivileged guest, the driver domain: it has the disk's image on a
disk of its own, and a bridge."""

import contextlib
import math

from modes import loaded, used
from net import connect, transfer
from support import cards, fio, guest, images, log_size, wait_log, wait_store

XVDA = 51712
CONFIG = "/etc/virtio-xenbusd.toml"
DISK, CARD = "/sys/block/vda", "/sys/class/net/eth0"
# The driver domain's own disk of dom0 is the guest's disk.
BACK = {"disks": ["stock:/scratch/back.img"], "driver": None}
FRONT = {"disks": ["format=raw,vdev=xvda,access=rw,specification=virtio,"
                   "backendtype=standalone,backend=back,target=/dev/xvda"],
         "cards": ["type=virtio,device1,transport=mmio,grant_usage=1,backend=back"],
         "driver": None}
FRONT_DEVICES = {"disks": ["virtio:"], "cards": ["virtio"]}  # by their kind
PREPARE = ("modprobe -a xen-evtchn xen-gntdev tun bridge && "
           "ip link add br0 type bridge && ip addr add 10.78.0.1/24 dev br0 && "
           "ip link set br0 up")


@contextlib.contextmanager
def driver_domain(lab):
    """A driver domain whose daemon serves what comes."""
    lab.dom0.run(images("back.img", size="128M"))
    with guest(lab, "back", **BACK) as back:
        back.run(PREPARE)
        back.push(b"", CONFIG)
        back.run(["daemon", "start", CONFIG])
        yield back


def serves(back, front, mode):
    """A disk and a card, served from there in an address mode."""
    with loaded(front, FRONT_DEVICES, f"address_mode={mode}"):
        with used(back, front, DISK, mode, 32 << 20, copied=0.1):
            job = fio(front, "--verify_fatal=1", filename="/dev/vda", rw="randwrite",
                      size="16M", bs="64k", ioengine="libaio", direct=1, iodepth=8,
                      verify="crc32c")
            assert job["read"]["io_bytes"] == job["write"]["io_bytes"] == 16 << 20, job
        connect(front, devices=("eth0",))
        with used(back, front, CARD, mode, 32 << 20, copied=math.inf):
            transfer(front, back, "10.78.0.1", 16)
            transfer(back, front, "10.78.0.2", 16)


def test_driver_domain(lab):
    """Modes pool and grant work; machine is not offered, and asking for it is refused
    with a text that says why, by the driver and by the daemon."""
    with driver_domain(lab) as back, guest(lab, "front", **FRONT) as front:
        config = cards(f"domain {front.domid}")  # it may not read the names of others
        back.push(config.encode(), CONFIG)
        back.run("kill -HUP $(daemon status)")
        for mode in ("pool", "grant"):
            serves(back, front, mode)

        front.run(["driver", "address_mode=machine"])
        for device in (f"virtio_disk/{XVDA}", "virtio/0"):
            wait_store(lab.dom0, f"/local/domain/{front.domid}/error/device/{device}/error",
                       '.*address-modes: backend has "pool grant", this driver takes machine')
        front.run(["rmmod", "virtio_xenbus"])

        machine = config.replace("net = {", 'net = { address-modes = ["pool", "machine"], ')
        back.push(machine.encode(), CONFIG)
        start = log_size(back)
        back.run("kill -HUP $(daemon status)")
        front.run(["driver", "address_mode=pool"])
        wait_log(back, start, 'address-modes has "machine", but')
