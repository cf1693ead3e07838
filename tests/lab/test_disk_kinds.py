# SPDX-License-Identifier: GPL-2.0
"""Disks of several kinds, side by side in one guest. They are found by their serial
numbers, which the configuration gives."""

from support import Setup, images, sha256, value

MIB = 1 << 20
CONFIG = "".join(f"""
[[disk]]
domain = "kinds"
vdev = "xvd{letter}"
blk = {{ serial = "{serial}"{more} }}
""" for letter, serial, more in (
    ("a", "readonly", ""), ("b", "sparse", ""), ("c", "blocks512", ""),
    ("d", "blocks4k", ", logical-block-size = 4096"), ("e", "loop", "")))

KINDS = Setup(
    CONFIG,
    images("blocks512.img", "blocks4k.img", "loop.img", size="64M") +
    f" && {images('sparse.img', size='3G')}"
    " && head -c 16M /dev/urandom >/scratch/readonly.img"
    " && { losetup -d /dev/loop7 2>/dev/null; losetup --direct-io=on /dev/loop7 /scratch/loop.img; }",
    kinds={"disks": ["virtio:/scratch/readonly.img,ro", "virtio:/scratch/sparse.img",
                     "virtio:/scratch/blocks512.img", "virtio:/scratch/blocks4k.img",
                     "virtio:/dev/loop7"]})


def name(guest, serial):
    """The kernel's name of a disk."""
    path, = guest.run(f"grep -lw {serial} /sys/block/vd*/serial").stdout.split()
    return path.split("/")[3]


def device(guest, serial):
    return f"/dev/{name(guest, serial)}"


def sysfs(guest, serial, attribute):
    return value(guest, f"/sys/block/{name(guest, serial)}/{attribute}")


def test_readonly_disk_refuses_writes(lab):
    with KINDS(lab) as guest:
        disk, file = device(guest, "readonly"), "/scratch/readonly.img"
        before = sha256(lab.dom0, file)
        assert guest.run(["blockdev", "--getro", disk]).stdout.strip() == "1"
        done = guest.run(["dd", "if=/dev/zero", f"of={disk}", "bs=4k", "count=1",
                          "oflag=direct"], check=False)
        assert done.returncode and "not permitted" in done.stderr, done
        # Nobody on the way but the daemon.
        done = guest.run(f"blockdev --setrw {disk} && "
                         f"dd if=/dev/zero of={disk} bs=4k count=1 oflag=direct", check=False)
        assert done.returncode, done
        assert sha256(guest, disk) == before == sha256(lab.dom0, file)


def test_sparse_disk_of_3_gib(lab):
    """What is written beyond 2 GiB stands there; the rest stays a hole of zeroes."""
    with KINDS(lab) as guest:
        disk, file = device(guest, "sparse"), "/scratch/sparse.img"
        assert int(sysfs(guest, "sparse", "size")) == (3 << 30) // 512
        places = [0, (2 << 30) - MIB // 2, (3 << 30) - MIB]
        guest.run(f"head -c {MIB} /dev/urandom >/tmp/piece")
        for place in places:
            guest.run(f"dd if=/tmp/piece of={disk} bs=64k seek={place} oflag=direct,seek_bytes "
                      "conv=fsync status=none")
        piece = guest.read("/tmp/piece")
        lab.dom0.push(piece, "/tmp/piece")
        for place in places:
            for machine, where in ((guest, disk), (lab.dom0, file)):
                machine.run(["cmp", "-n", MIB, "-i", f"0:{place}", "/tmp/piece", where])
        for hole in (MIB, (2 << 30) + MIB // 2):
            guest.run(["cmp", "-n", 64 * MIB, "-i", f"0:{hole}", "/dev/zero", disk])
        allocated = int(lab.dom0.run(["stat", "-c", "%b", file]).stdout) * 512
        # Besides them there may be a block that maps the others.
        assert allocated <= len(places) * MIB + 4096, f"{allocated} bytes are allocated"


def test_blocks_of_512_bytes(lab):
    """One sector is written and not its neighbours."""
    with KINDS(lab) as guest:
        disk, file = device(guest, "blocks512"), "/scratch/blocks512.img"
        assert sysfs(guest, "blocks512", "queue/logical_block_size") == "512"
        guest.run(f"yes | head -c 512 >/tmp/sector && dd if=/tmp/sector of={disk} bs=512 seek=3 "
                  "oflag=direct conv=fsync status=none")
        lab.dom0.run("sync /scratch/blocks512.img; echo 1 >/proc/sys/vm/drop_caches; "
                     "(head -c 1536 /dev/zero; yes | head -c 512; head -c 2048 /dev/zero) | "
                     f"cmp -n 4096 - {file}")


def test_blocks_of_4096_bytes(lab):
    """Smaller accesses are refused, a file system is made and checked."""
    with KINDS(lab) as guest:
        disk = device(guest, "blocks4k")
        assert sysfs(guest, "blocks4k", "queue/logical_block_size") == "4096"
        done = guest.run(["dd", "if=/dev/zero", f"of={disk}", "bs=512", "count=1",
                          "oflag=direct"], check=False)
        assert done.returncode and "Invalid argument" in done.stderr, done
        guest.run(f"mkfs.ext4 -q -F {disk} && mount {disk} /mnt && cp -a /usr/share/. /mnt/ && "
                  f"umount /mnt && fsck.ext4 -fn {disk} && mount -o ro {disk} /mnt && "
                  "diff -r --no-dereference -x lost+found /usr/share /mnt && umount /mnt", 180)


def test_flush_reaches_the_disk_beneath(lab):
    """A flush of the guest is one of the block device in dom0; a write alone is none."""
    with KINDS(lab) as guest:
        assert sysfs(guest, "loop", "queue/write_cache") == "write back"
        write = f"dd if=/dev/urandom of={device(guest, 'loop')} bs=64k count=4 oflag=direct status=none"
        before = flushes(lab)
        guest.run(write)
        assert flushes(lab) == before
        guest.run(f"{write} conv=fsync")
        assert flushes(lab) > before
        assert sha256(guest, device(guest, "loop")) == sha256(lab.dom0, "/scratch/loop.img")


def flushes(lab):
    """Completed flushes of the loop device; Documentation/block/stat.rst."""
    return int(value(lab.dom0, "/sys/block/loop7/stat").split()[15])
