# SPDX-License-Identifier: GPL-2.0
"""Devices that cannot be served. Each is refused with a message in the daemon's log
and at the device's error node in xenstore, and none disturbs the good ones."""

from support import Setup, appears, images, log_since, log_size, value, wait_store

DISK = "type=virtio,device2,transport=mmio,grant_usage=1"
CARD = "type=virtio,device1,transport=mmio,grant_usage=1"
ODD = "type=virtio,device2b,transport=mmio,grant_usage=1"

# What the guest's configuration says, what the daemon's does, what the message has.
BAD = (
    (DISK, 'blk = { path = "/scratch/missing.img" }',
     ("/scratch/missing.img", "no such file")),
    (DISK, 'blk = { path = "/scratch/immutable.img" }',
     ("/scratch/immutable.img", "may not open", "not permitted")),
    (DISK, 'blk = { path = "/scratch" }', ("/scratch", "is a directory")),
    (DISK, 'blk = { path = "/scratch/readonly/disk.img" }',
     ("/scratch/readonly/disk.img", "read-only")),
    (CARD, 'net = { bridge = "br404" }', ("br404", "not there")),
    (CARD, 'net = { bridge = "lo" }', ("lo", "not a bridge")),
    (CARD, 'blk = { path = "/scratch/good.img" }', ("device id 0x1", "`blk`")),
    (ODD, 'blk = { path = "/scratch/good.img" }', ("0x2b", "`blk`")),
)
CONFIG = "".join(f'[[device]]\ndomain = "bad"\ndevice = {number}\n{settings}\n'
                 for number, (_, settings, _) in enumerate(BAD))
SETUP = Setup(
    CONFIG,
    # The daemon runs as root, whom only the file system itself refuses.
    "chattr -i /scratch/immutable.img 2>/dev/null; umount -q /scratch/readonly; "
    + images("good.img", "immutable.img") + " && chattr +i /scratch/immutable.img"
    " && mkdir -p /scratch/readonly && mount -t tmpfs none /scratch/readonly"
    " && truncate -s 1M /scratch/readonly/disk.img"
    " && mount -o remount,ro /scratch/readonly",
    bad={"disks": ["virtio:/scratch/good.img"],
         "cards": [kind for kind, _, _ in BAD]})


def error_node(guest, number):
    return f"/local/domain/0/error/backend/virtio/{guest.domid}/{number}/error"


def test_each_is_named_and_the_good_disk_works(lab):
    with SETUP(lab) as guest:
        guest.run("dd if=/dev/urandom of=/dev/vda bs=1M count=16 oflag=direct status=none")
        for number, (_, settings, named) in enumerate(BAD):
            text = wait_store(lab.dom0, error_node(guest, number), ".+")
            log = [line for line in log_since(lab.dom0, 0).splitlines()
                   if f"bad virtio/{number}:" in line and "error" in line]
            assert log, f"nothing about {settings} in the log"
            for name in named:
                assert name in text, f"{settings}: no {name!r} at the error node: {text}"
                assert name in log[-1], f"{settings}: no {name!r} in the log: {log[-1]}"
        assert guest.run("ls -d /sys/block/vd*").stdout.split() == ["/sys/block/vda"]
        assert value(guest, "/sys/block/vda/size") == str((512 << 20) // 512)


def test_missing_file_comes_and_disk_appears(lab):
    """What the message asked for is done, and SIGHUP makes the daemon look again."""
    with SETUP(lab) as guest:
        wait_store(lab.dom0, error_node(guest, 0), ".+")
        lab.dom0.run(images("missing.img", size="1M") + " && kill -HUP $(daemon status)")
        appears(guest, "/dev/vdb")
        assert value(guest, "/sys/block/vdb/size") == "2048"
        # The message has served its purpose.
        done = lab.dom0.run(["xenstore-read", error_node(guest, 0)], check=False)
        assert done.returncode, f"still there: {done.stdout}"


def xl_create(lab, path):
    """xl create of a guest with a disk on `path`, which fails; returns what xl says."""
    lab.dom0.push(
        "name = 'nodisk'\nmemory = 192\ntype = 'pv'\n"
        "disk = ['format=raw,vdev=xvda,access=rw,specification=virtio,"
        f"backendtype=standalone,target={path}']\n".encode(), "/tmp/nodisk.cfg")
    lab.dom0.run("grep ^kernel /var/lib/lab/bad.cfg >>/tmp/nodisk.cfg")
    done = lab.dom0.run("xl create /tmp/nodisk.cfg", 120, check=False)
    lab.dom0.run("xl destroy nodisk", check=False)
    assert done.returncode, done
    return done.stderr


def test_xl_create_names_a_missing_file(lab):
    """xl looks for it before there is a device."""
    with SETUP(lab) as guest:
        text = xl_create(lab, "/scratch/nothing.img")
        assert "/scratch/nothing.img" in text, text
        guest.run("dd if=/dev/vda of=/dev/null bs=1M count=4 iflag=direct status=none")


def test_xl_create_names_a_disk_that_is_refused(lab):
    """xl waits for the backend and names the device; the daemon's log says why."""
    with SETUP(lab) as guest:
        start = log_size(lab.dom0)
        text = xl_create(lab, "/scratch/immutable.img")
        assert "virtio_disk" in text and "51712" in text, text
        log = log_since(lab.dom0, start)
        assert "nodisk virtio_disk/51712: disk /scratch/immutable.img" in log, log
        guest.run("dd if=/dev/vda of=/dev/null bs=1M count=4 iflag=direct status=none")
