# SPDX-License-Identifier: GPL-2.0
"""A disk: what is written is what is read, here and in dom0's file."""

from support import Setup, fio, images, sha256, value

DISK = Setup("", images("disk.img"),
             disk={"disks": ["virtio:/scratch/disk.img"], "vcpus": 2})


def test_disk_basic(lab):
    """Size, driver and serial number; data of the guest stands in the file."""
    with DISK(lab) as guest:
        size = int(lab.dom0.run(["stat", "-c", "%s", "/scratch/disk.img"]).stdout)
        assert int(value(guest, "/sys/block/vda/size")) == size // 512
        driver = guest.run(["readlink", "-f", "/sys/block/vda/device/driver"]).stdout
        assert driver.strip().endswith("/virtio_blk"), driver
        number = guest.run(["xenstore-list", "device/virtio_disk"]).stdout.strip()
        assert value(guest, "/sys/block/vda/serial") == f"xen-{guest.domid}-{number}"
        guest.run("head -c 32M /dev/urandom >/tmp/data && "
                  "dd if=/tmp/data of=/dev/vda bs=1M oflag=direct conv=fsync status=none")
        lab.dom0.run("head -c 32M /scratch/disk.img >/scratch/data")
        assert sha256(guest, "/tmp/data") == sha256(lab.dom0, "/scratch/data")
        guest.run("head -c 32M /dev/vda | cmp - /tmp/data && rm /tmp/data")
        lab.dom0.run(["rm", "/scratch/data"])


def verify(lab, pattern, depth):
    """Write 256 MiB in blocks of 4 KiB to 128 KiB and read them back, each with its
    checksum."""
    size = 256 << 20
    with DISK(lab) as guest:
        job = fio(guest, "--verify_fatal=1", filename="/dev/vda", rw=pattern, size=size,
                  bssplit="4k/30:16k/20:64k/30:128k/20", ioengine="libaio", direct=1,
                  iodepth=depth, verify="crc32c", do_verify=1)
        written, read = job["write"]["io_bytes"], job["read"]["io_bytes"]
        assert (written, read) == (size, size), f"{written} written, {read} verified"


def test_fio_verify_sequential_qd1(lab):
    verify(lab, "write", 1)


def test_fio_verify_sequential_qd32(lab):
    verify(lab, "write", 32)


def test_fio_verify_random_qd1(lab):
    verify(lab, "randwrite", 1)


def test_fio_verify_random_qd32(lab):
    verify(lab, "randwrite", 32)


def test_ext4_tree(lab):
    """A real tree survives unmount, check and remount, and dom0 reads the same."""
    listing = "find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
    with DISK(lab) as guest:
        guest.run("mkfs.ext4 -q -F /dev/vda && mount /dev/vda /mnt", 120)
        guest.run("cp -a /usr/share/. /mnt/", 300)
        source = guest.run(f"cd /usr/share && {listing}", 300).stdout
        guest.run("umount /mnt && fsck.ext4 -fn /dev/vda", 300)
        guest.run("mount /dev/vda /mnt")
        assert guest.run(f"cd /mnt && rmdir lost+found && {listing}", 300).stdout == source
        guest.run("umount /mnt")
        lab.dom0.run("mount -o ro,loop /scratch/disk.img /mnt")
        try:
            assert lab.dom0.run(f"cd /mnt && {listing}", 300).stdout == source
        finally:
            lab.dom0.run(["umount", "/mnt"])


def test_discard_frees_blocks(lab):
    """blkdiscard gives the file's blocks back to dom0's file system."""
    with DISK(lab) as guest:
        guest.run("dd if=/dev/urandom of=/dev/vda bs=1M count=64 oflag=direct status=none")
        before = blocks(lab)
        guest.run(["blkdiscard", "--offset", 16 << 20, "--length", 32 << 20, "/dev/vda"])
        kept = before - (32 << 20) // 512
        # The map of the file's blocks may take one more.
        assert blocks(lab) <= kept + 8, f"{blocks(lab)} of {before} blocks, not {kept}"


def test_write_zeroes(lab):
    """blkdiscard -z makes the file read as zeroes there, and only there."""
    with DISK(lab) as guest:
        guest.run("dd if=/dev/urandom of=/dev/vda bs=1M count=48 oflag=direct status=none")
        lab.dom0.run("head -c 48M /scratch/disk.img >/scratch/before.img")
        guest.run(["blkdiscard", "-z", "--offset", 16 << 20, "--length", 16 << 20,
                   "/dev/vda"])
        for start, like in ((0, "/scratch/before.img"), (16, "/dev/zero"),
                            (32, "/scratch/before.img")):
            skip = 0 if like == "/dev/zero" else start << 20
            lab.dom0.run(["cmp", "-n", 16 << 20, "-i", f"{start << 20}:{skip}",
                          "/scratch/disk.img", like])
        lab.dom0.run(["rm", "/scratch/before.img"])


def blocks(lab):
    """Allocated blocks of the file, 512 bytes each."""
    lab.dom0.run(["sync", "/scratch/disk.img"])
    return int(lab.dom0.run(["stat", "-c", "%b", "/scratch/disk.img"]).stdout)
