# SPDX-License-Identifier: GPL-2.0
"""Disks are detached while they are used: file systems on them get errors, nothing hangs, and
other disks do not notice."""

import contextlib

from modes import loaded
from plug import assert_failed, assert_healthy, attach, check_mounted, detach, used
from resources import nothing_left
from support import Setup, appears, fio, images, interrupt_lines, vanishes

MORE = "/scratch/unplug-more.img"
SLOW = "/dev/mapper/slow"
LINEAR = "0 65536 linear /dev/loop6 0"
# Grants that the backend has mapped when they are ended are tried again each second, so many of
# them.
RETRIES = "/sys/module/grant_table/parameters/free_per_iteration"
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


@contextlib.contextmanager
def hanging(lab):
    """The storage does not answer in the block."""
    lab.dom0.run(["dmsetup", "suspend", "--noudevsync", "--noflush", "--nolockfs", "slow"])
    try:
        yield
    finally:
        lab.dom0.run(["dmsetup", "resume", "--noudevsync", "slow"])


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
                with hanging(lab):
                    done = detach(lab, guest, device, "--timeout", "2", check=False)
                    assert done.returncode == 1, done
                    for text in ("in use", "backend Closing", "frontend Connected"):
                        assert text in done.stderr, done.stderr
                    works(guest)
                vanishes(guest, "/dev/vdb")
                assert_failed(load)
            detach(lab, guest, device)

        twice(lab, guest, check)


def waiting(guest, *words):
    """Start dd for one block, past the page cache, which is not answered."""
    one = guest.start(["dd", "bs=4k", "count=1", "conv=notrunc", *words])
    guest.run(f"until grep -l '^State:.D' $(pgrep -fx 'dd.*{words[-1]}' | "
              "sed 's|.*|/proc/&/status|'); do read -r -t 0.2 _; done < <(sleep 60)", 30)
    return one


def check_forced(lab, guest):
    """A disk with a file system, in use, on storage that hangs, goes by --force."""
    device = attach(lab, guest, SLOW)
    before = interrupt_lines(guest, "virtio")
    guest.run("mkfs.ext4 -q -F /dev/vdb && mount /dev/vdb /mnt && sync", 120)
    with used(guest, "/mnt/load") as load, hanging(lab), \
            waiting(guest, "if=/dev/vdb", "iflag=direct") as read, \
            waiting(guest, "if=/dev/zero", "of=/mnt/load", "oflag=direct") as write:
        done = detach(lab, guest, device, "--timeout", "2", check=False)
        assert done.returncode == 1 and "in use" in done.stderr, done
        for one in load, read, write:
            assert one.poll() is None, one.wait(1)
        detach(lab, guest, device, "--timeout", "0", "--force")
        assert_failed(load)
        # Not only those fail that come later.
        for one in read, write:
            done = one.wait(60)
            assert done.returncode and "Input/output error" in done.stderr, done
        guest.run(["umount", "/mnt"])
        vanishes(guest, "/dev/vdb")
        assert_healthy(guest)
        assert len(interrupt_lines(guest, "virtio")) < len(before)
        works(guest)


def test_force(lab):
    """Detached with --force, what the guest waits for fails, the disk goes, also if its file
    system is mounted, and nothing of it is left in the guest. What the daemon has of the guest's
    memory stays with the grant table until the storage answers."""
    with UNPLUG(lab) as guest:
        guest.run(f"echo 10000 >{RETRIES}")
        check_forced(lab, guest)
        guest.run(["rmmod", "virtio_xenbus"])
        with loaded(guest, UNPLUG.options["unplug"], "address_mode=grant"), \
                nothing_left(lab, guest):
            check_forced(lab, guest)
        guest.run(["driver"])
        appears(guest, "/dev/vda")


def test_force_of_named_frames(lab):
    """In mode machine only the daemon keeps the storage from the guest's memory: what is under
    way does not end before the daemon has let go, and then it does by itself."""
    with UNPLUG(lab) as guest:
        guest.run(f"echo 10000 >{RETRIES}")
        guest.run(["rmmod", "virtio_xenbus"])
        with loaded(guest, UNPLUG.options["unplug"], "address_mode=machine"), \
                nothing_left(lab, guest):
            device = attach(lab, guest, SLOW)
            with used(guest, "/dev/vdb") as load:
                with hanging(lab):
                    detach(lab, guest, device, "--timeout", "0", "--force")
                    works(guest)
                    assert load.poll() is None, load.wait(1)
                assert_failed(load)
            vanishes(guest, "/dev/vdb")
            assert_healthy(guest)
            works(guest)
        guest.run(["driver"])
        appears(guest, "/dev/vda")
