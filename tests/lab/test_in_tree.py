# SPDX-License-Identifier: GPL-2.0
"""Kernels with the driver in their tree, with PROVE_LOCKING and DEBUG_ATOMIC_SLEEP. Built
in: root file system and cards are ours, and there is no initramfs and no device of
another driver. As a module: found in /lib/modules by what the devices call themselves."""

import re

from basics import check_card, check_disk, check_file_system, check_locks
from net import connect
from support import Setup, appears, cards, images, vanishes

DEBUG = {"vcpus": 2, "memory": 768, "timeout": 300, "driver": None}
BUILTIN = Setup(cards("builtin", settings='bridge = "lab0"'), "root-disk builtin",
                builtin={"kernel": "in-tree-y", "root": "virtio:/dev/mapper/builtin",
                         **DEBUG})
MODULE = Setup(cards("module"), images("module.img"),
               module={"kernel": "in-tree-m", "disks": ["virtio:/scratch/module.img"],
                       "cards": ["virtio"], **DEBUG})


def check_suites(log):
    """The KUnit suites have run in the guest, and all have passed."""
    results = re.findall(r"\] (not ok|ok) \d+ (virtio_xenbus_\w+)", log)
    assert results and {result for result, _ in results} == {"ok"}, results


def load(guest):
    """Load what is missing, in the way of udev."""
    guest.run("modprobe -a $(cat /sys/bus/xen/devices/virtio*/modalias)")
    appears(guest, *(f"/sys/bus/virtio/devices/virtio{number}" for number in range(2)))
    guest.run("modprobe -a $(cat /sys/bus/virtio/devices/*/modalias)")
    appears(guest, "/dev/vda", "/sys/class/net/eth0")


def test_builtin_boots(lab):
    """There is nothing but the driver's devices, and it has found them by itself."""
    with BUILTIN(lab) as guest:
        source = guest.run("findmnt -no SOURCE,FSTYPE,OPTIONS /").stdout.split()
        assert source[:2] == ["/dev/vda", "ext4"] and source[2].startswith("rw"), source
        found = guest.run("ls /sys/bus/xen/devices").stdout.split()
        assert sorted(found) == ["virtio-0", "virtio_disk-51712"], found
        for device, driver in (("block/vda", "virtio_blk"), ("net/lab0", "virtio_net")):
            path = guest.run(["readlink", "-f", f"/sys/class/{device}/device/driver"]).stdout
            assert path.strip().endswith(f"/{driver}"), path
        log = guest.run(["dmesg"]).stdout
        assert "rootfs image" not in log, "there was an initramfs"
        assert "virtio_" not in guest.run(["cat", "/proc/modules"]).stdout
        check_suites(log)
        check_locks(guest)


def test_builtin_disk(lab):
    """Of its root file system, at that."""
    with BUILTIN(lab) as guest:
        check_disk(guest, "/root/test")
        guest.run("sha256sum /root/test >/root/sum && sync && "
                  "echo 3 >/proc/sys/vm/drop_caches && sha256sum -c --status /root/sum")
        check_locks(guest)


def test_builtin_card(lab):
    with BUILTIN(lab) as guest:
        check_card(lab, guest, "lab0")
        check_locks(guest)


def test_module_is_found(lab):
    """It is the one of the kernel's own tree."""
    with MODULE(lab) as guest:
        load(guest)
        path = guest.run(["modinfo", "-n", "virtio_xenbus"]).stdout.strip()
        assert path.endswith("/kernel/drivers/virtio/xenbus/virtio_xenbus.ko"), path
        assert "O" not in guest.run("cat /sys/module/virtio_xenbus/taint").stdout
        check_suites(guest.run(["dmesg"]).stdout)
        check_locks(guest)


def test_module_disk(lab):
    with MODULE(lab) as guest:
        load(guest)
        check_disk(guest)
        check_file_system(guest)
        check_locks(guest)


def test_module_card(lab):
    with MODULE(lab) as guest:
        load(guest)
        connect(guest, devices=("eth0",))
        check_card(lab, guest)
        check_locks(guest)


def test_module_is_unloaded(lab):
    with MODULE(lab) as guest:
        load(guest)
        guest.run(["rmmod", "virtio_xenbus"])
        vanishes(guest, "/dev/vda", "/sys/class/net/eth0")
        load(guest)
        check_locks(guest)
