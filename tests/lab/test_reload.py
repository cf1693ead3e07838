# SPDX-License-Identifier: GPL-2.0
"""The driver comes and goes, and leaves nothing behind."""

from resources import assert_same, count, nothing_left
from support import Setup, appears, cards, images, rebind, script, vanishes

# Without persistent grants of the guest's root disk, whose number depends on what
# has been read from it.
RELOAD = Setup(cards("reload"),
               "echo N >/sys/module/xen_blkback/parameters/feature_persistent; "
               + images("reload.img"),
               reload={"disks": ["virtio:/scratch/reload.img"], "cards": ["virtio"],
                       "vcpus": 2})


def test_reload_20_times(lab):
    """rmmod and insmod: no grant, page or event channel stays behind, on either side."""
    with RELOAD(lab) as guest:
        script(guest, "reload", 2)
        before = count(lab, guest)
        script(guest, "reload", 20, timeout=400)
        assert_same(lab, guest, before)
        guest.run("dd if=/dev/vda of=/dev/null bs=1M count=16 iflag=direct")


def test_reload_20_times_under_load(lab):
    """The same while a disk and a card are in use."""
    with RELOAD(lab) as guest:
        script(guest, "reload", 2, "--load", timeout=200)
        before = count(lab, guest)
        script(guest, "reload", 20, "--load", timeout=600)
        assert_same(lab, guest, before)
        guest.run("dd if=/dev/vda of=/dev/null bs=1M count=16 iflag=direct")


def test_virtio_drivers_unbound_under_load(lab):
    """Disk and card in use are taken from virtio_blk and virtio_net, and given back: their
    users get errors, and nothing hangs."""
    with RELOAD(lab) as guest:
        script(guest, "reload", 1, "--load", "--unbind", "virtio", timeout=200)
        with nothing_left(lab, guest):
            script(guest, "reload", 4, "--load", "--unbind", "virtio", timeout=300)


def test_xenbus_devices_unbound_under_load(lab):
    """The same one level below."""
    with RELOAD(lab) as guest:
        script(guest, "reload", 1, "--load", "--unbind", "xenbus", timeout=200)
        with nothing_left(lab, guest):
            script(guest, "reload", 4, "--load", "--unbind", "xenbus", timeout=300)


def test_unloaded_driver_holds_nothing(lab):
    """After rmmod there is less of everything that insmod has taken, by as much."""
    with RELOAD(lab) as guest:
        guest.run(["rmmod", "virtio_xenbus"])
        vanishes(guest, "/dev/vda")
        before = count(lab, guest)
        for _ in range(2):
            guest.run(["driver"])
            appears(guest, "/dev/vda")
            during = count(lab, guest)
            guest.run(["rmmod", "virtio_xenbus"])
            vanishes(guest, "/dev/vda")
        assert_same(lab, guest, before)
        # The count sees what there is to see.
        for who, what in ((guest.name, "grants"), (guest.name, "event channels"),
                          ("dom0", "grant mappings"), ("dom0", "event channels"),
                          ("dom0", "threads")):
            assert during[who, what] > before[who, what], (who, what, before, during)
        guest.run(["driver"])
        appears(guest, "/dev/vda")


def test_unbind_and_bind_virtio_driver(lab):
    """Through sysfs: the disk and the card go and come back, the data is there."""
    with RELOAD(lab) as guest:
        guest.run("echo kept | dd of=/dev/vda bs=512 conv=sync,fsync status=none")
        before = None
        for _ in range(3):
            for driver, path in (("virtio_blk", "/sys/block/vda"),
                                 ("virtio_net", "/sys/class/net/eth0")):
                device = guest.run(["readlink", "-f", f"{path}/device"]).stdout.strip()
                rebind(guest, f"/sys/bus/virtio/drivers/{driver}",
                       device.rpartition("/")[2], path)
            before = before or count(lab, guest)
        assert_same(lab, guest, before)
        assert guest.run(["head", "-c", 4, "/dev/vda"]).stdout == "kept"


def test_unbind_and_bind_xenbus_device(lab):
    """The same one level below."""
    with RELOAD(lab) as guest:
        guest.run("echo kept | dd of=/dev/vda bs=512 conv=sync,fsync status=none")
        number = guest.run(["xenstore-list", "device/virtio_disk"]).stdout.strip()
        before = None
        for _ in range(3):
            for device, path in ((f"virtio_disk-{number}", "/sys/block/vda"),
                                 ("virtio-0", "/sys/class/net/eth0")):
                rebind(guest, "/sys/bus/xen/drivers/virtio_xenbus", device, path)
            before = before or count(lab, guest)
        assert_same(lab, guest, before)
        assert guest.run(["head", "-c", 4, "/dev/vda"]).stdout == "kept"
