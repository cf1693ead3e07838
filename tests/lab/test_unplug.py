# SPDX-License-Identifier: GPL-2.0
"""Disks are detached while they are used: file systems on them get errors, nothing hangs, and
other disks do not notice."""

from plug import assert_failed, attach, check_mounted, detach, used
from resources import nothing_left
from support import Setup, fio, images, vanishes

MORE = "/scratch/unplug-more.img"
SLOW = "/dev/mapper/slow"
LINEAR = "0 65536 linear /dev/loop6 0"
UNPLUG = Setup("",
               # Without persistent grants of the guest's root disk, whose number depends on
               # what has been read from it.
               "echo N >/sys/module/xen_blkback/parameters/feature_persistent; "
               "dmsetup remove -f slow 2>/dev/null; losetup -d /dev/loop6 2>/dev/null; "
               + images("unplug.img", "unplug-more.img", "slow.img", size="32M")
               + " && losetup --direct-io=on /dev/loop6 /scratch/slow.img"
               f" && echo '{LINEAR}' | dmsetup create --noudevsync slow && dmsetup mknodes",
               unplug={"disks": ["virtio:/scratch/unplug.img"], "vcpus": 2})


def works(guest):
    """The disk that nobody has detached."""
    fio(guest, "--verify_fatal=1", filename="/dev/vda", rw="randwrite", size="2M", bs="16k",
        ioengine="libaio", direct=1, iodepth=8, verify="crc32c")


def twice(lab, guest, check):
    """The second time leaves nothing that the first has not."""
    check()
    with nothing_left(lab, guest):
        check()
    works(guest)


def test_mounted_file_system(lab):
    with UNPLUG(lab) as guest:
        twice(lab, guest, lambda: check_mounted(lab, guest, MORE))


def test_frozen_file_system(lab):
    """A file system that is frozen, with somebody who waits to write to it: detaching does not
    wait for either, and both end when it is thawed."""
    with UNPLUG(lab) as guest:
        def check():
            device = attach(lab, guest, MORE)
            guest.run("mkfs.ext4 -q -F /dev/vdb && mount /dev/vdb /mnt && fsfreeze -f /mnt")
            with guest.start("echo begun; echo more >/mnt/more && sync -f /mnt/more") as writer:
                writer.wait_output("begun", 30)
                detach(lab, guest, device)
                guest.run("fsfreeze -u /mnt", check=False)
                assert writer.wait(60).returncode
            guest.run(["umount", "/mnt"])
            vanishes(guest, "/dev/vdb")

        twice(lab, guest, check)


def test_storage_that_hangs(lab):
    """Storage that does not answer: detaching waits as long as told, and says what is in the
    way; others do not notice. When the storage answers the guest lets go, what was under way
    is done, what comes after gets errors, and detaching again comes to its end."""
    with UNPLUG(lab) as guest:
        def check():
            device = attach(lab, guest, SLOW)
            with used(guest, "/dev/vdb") as load:
                lab.dom0.run(["dmsetup", "suspend", "--noudevsync", "--noflush", "--nolockfs",
                              "slow"])
                try:
                    done = detach(lab, guest, device, "--timeout", "2", check=False)
                    assert done.returncode == 1, done
                    for text in ("in use", "backend Closing", "frontend Connected"):
                        assert text in done.stderr, done.stderr
                    works(guest)
                finally:
                    lab.dom0.run(["dmsetup", "resume", "--noudevsync", "slow"])
                vanishes(guest, "/dev/vdb")
                assert_failed(load)
            detach(lab, guest, device)

        twice(lab, guest, check)
