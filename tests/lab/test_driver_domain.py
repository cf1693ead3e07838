# SPDX-License-Identifier: GPL-2.0
"""The backend in an unprivileged guest, the driver domain: it has the disk's image on a
disk of its own, and a bridge."""

import contextlib
import math

import plug
from modes import loaded, used
from net import connect, transfer
from resources import event_channels, grants
from support import (appears, cards, devices, fio, guest, images, log_size, vanishes, wait_log,
                     wait_store)

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
    # Without persistent grants of the guests' root disks, whose number depends on what has been
    # read from them.
    lab.dom0.run("echo N >/sys/module/xen_blkback/parameters/feature_persistent; "
                 + images("back.img", size="128M"))
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


def served_by(back, front):
    """Has the daemon in the driver domain serve a guest's card; returns the configuration."""
    config = cards(f"domain {front.domid}")  # it may not read the names of others
    back.push(config.encode(), CONFIG)
    back.run("kill -HUP $(daemon status)")
    return config


def test_driver_domain(lab):
    """Modes pool and grant work; machine is not offered, and asking for it is refused
    with a text that says why, by the driver and by the daemon."""
    with driver_domain(lab) as back, guest(lab, "front", **FRONT) as front:
        config = served_by(back, front)
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


def test_driver_domain_destroyed(lab):
    """The driver domain ends with all that it serves: its guest gets errors, and holds what it
    held before."""
    with driver_domain(lab) as back, guest(lab, "front", **FRONT) as front:
        served_by(back, front)
        before = grants(front), event_channels(lab.dom0, front.domid)
        front.run(["driver"])
        appears(front, *devices(FRONT_DEVICES))
        connect(front, devices=("eth0",))
        with plug.used(front, "/dev/vda") as load, front.start(["ping", "-q", "-f", "10.78.0.1"]):
            lab.dom0.run(["xl", "destroy", "back"])
            vanishes(front, *devices(FRONT_DEVICES))
            plug.assert_failed(load)
        plug.assert_healthy(front)
        assert (grants(front), event_channels(lab.dom0, front.domid)) == before
