# SPDX-License-Identifier: GPL-2.0
"""Devices that other programs serve: disks by qemu-storage-daemon, a file system by
virtiofsd, entropy and SCSI by vhost-device, sockets by the kernel's vhost-vsock. The
programs are as they are."""

import json
import random

from support import Setup, appears, fio, log_size, sha256, value, wait_log, wait_store

CID = 42
CONFIG = f"""
[[device]]
domain = "vhost"
device = 0
vhost-user = {{ socket = "/run/disk.sock", type = "blk", queues = 2 }}

[[device]]
domain = "vhost"
device = 1
vhost-user = {{ socket = "/run/fs.sock", type = "fs", tag = "shared" }}

[[device]]
domain = "vhost"
device = 2
vsock = {{ cid = {CID} }}

[[device]]
domain = "vhost"
device = 3
vhost-user = {{ socket = "/run/rng.sock0", type = "rng", max-pool-pages = 64 }}

[[device]]
domain = "vhost"
device = 4
vhost-user = {{ socket = "/run/scsi.sock", type = "scsi" }}
"""
TYPES = [f"type=virtio,device{number:x},transport=mmio,grant_usage=1"
         for number in (2, 26, 19, 4, 8)]

# Clusters are there from the beginning: what is written to them is in the file at once, as a
# program that is killed needs it.
IMAGE = ("rm -f /scratch/disk.qcow2 && "
         "qemu-img create -q -f qcow2 -o preallocation=metadata /scratch/disk.qcow2 256M")
START_DISK = (
    "rm -f /run/disk.sock; qemu-storage-daemon --daemonize --pidfile /run/disk.pid"
    " --blockdev driver=file,node-name=file,filename=/scratch/disk.qcow2,cache.direct=on,"
    "discard=unmap --blockdev driver=qcow2,node-name=disk,file=file,discard=unmap"
    " --export type=vhost-user-blk,id=disk,node-name=disk,writable=on,num-queues=2,"
    "addr.type=unix,addr.path=/run/disk.sock")


def start(program, arguments):
    """A shell command that starts a program with the library for those that look for the
    size of what they map; daemon-vhost.rst."""
    name = program.rpartition("/")[2]
    return (f"LD_PRELOAD=/payload/libvirtio_xenbus_seek.so setsid {program} {arguments} "
            f">/var/log/{name}.log 2>&1 & ")


START_OTHERS = (
    "killall -q virtiofsd vhost-device-rng vhost-device-scsi; "
    "rm -rf /scratch/share /run/fs.sock /run/scsi.sock; mkdir /scratch/share; "
    "head -c 4M /dev/urandom >/scratch/scsi.img; touch /scratch/entropy; "
    + start("/usr/libexec/virtiofsd", "--socket-path /run/fs.sock --shared-dir /scratch/share")
    + start("/payload/vhost-device-rng", "--socket-path /run/rng.sock -f /scratch/entropy")
    + start("/payload/vhost-device-scsi", "--socket-path /run/scsi.sock -r /scratch/scsi.img"))
STOP_DISK = "kill -9 $(cat /run/disk.pid)"
VHOST = Setup(
    CONFIG,
    f"modprobe vhost_vsock; {STOP_DISK}; rm -f /run/disk.*; {IMAGE} && {{ {START_OTHERS} }}",
    vhost={"cards": TYPES, "vcpus": 2})


def disk(lab, guest):
    """The disk, whose program is started if it does not run."""
    if lab.dom0.run("kill -0 $(cat /run/disk.pid)", check=False).returncode:
        lab.dom0.run(START_DISK)
    appears(guest, "/dev/vda")
    return "/dev/vda"


def written(guest, path, *more, **options):
    """fio with checksums, on 16 MiB."""
    job = fio(guest, "--verify_fatal=1", *more, filename=path, rw="randwrite", size="16M",
              bs="16k", ioengine="libaio", direct=1, iodepth=8, verify="crc32c", **options)
    assert job["read"]["io_bytes"] == job["write"]["io_bytes"] > 0


def test_disk_waits_for_its_program(lab):
    """The guest is there before the program: the device says what it waits for, and works
    when the program has come. The others work meanwhile."""
    with VHOST(lab) as guest:
        if lab.dom0.run("kill -0 $(cat /run/disk.pid)", check=False).returncode:
            text = wait_store(lab.dom0, "/local/domain/0/error/backend/virtio/"
                              f"{guest.domid}/0/error", ".*/run/disk.sock.*")
            assert "waiting" in text, text
        assert guest.run(["test", "-b", disk(lab, guest)]).returncode == 0
        device = json.loads(lab.dom0.run(
            ["/payload/virtio-xenbusctl", "--json", "show", "vhost", "virtio/0"]).stdout)[0]
        assert device["kind"] == "block" and device["error"] is None, device
        assert [queue["name"] for queue in device["queues"]] == ["request 0", "request 1"]
        assert "requests" not in device["queues"][0] and device["queues"][0]["running"], device


def test_qcow2_disk(lab):
    """Checksums, a file system, discards."""
    with VHOST(lab) as guest:
        path = disk(lab, guest)
        assert value(guest, "/sys/block/vda/size") == str((256 << 20) // 512)
        written(guest, path)
        guest.run(f"mkfs.ext4 -q -F -E nodiscard {path} && mount {path} /mnt && "
                  "cp -a /usr/share/perl5 /mnt && umount /mnt && "
                  f"fsck.ext4 -fn {path} && mount -o ro {path} /mnt && "
                  "diff -r --no-dereference /usr/share/perl5 /mnt/perl5 && umount /mnt", 120)
        guest.run(f"dd if=/dev/urandom of={path} bs=1M seek=128 count=16 oflag=direct conv=fsync")
        before = int(lab.dom0.run(["stat", "-c", "%b", "/scratch/disk.qcow2"]).stdout)
        guest.run(["blkdiscard", "-o", 128 << 20, "-l", 16 << 20, path])
        guest.run(f"cmp -n {16 << 20} -i {128 << 20}:0 {path} /dev/zero")
        after = int(lab.dom0.run(["stat", "-c", "%b", "/scratch/disk.qcow2"]).stdout)
        assert after <= before - (8 << 20) // 512, (before, after)


def test_disk_survives_its_program(lab):
    """The program is killed and started again under I/O: that goes on, nothing is lost."""
    with VHOST(lab) as guest:
        path, start = disk(lab, guest), log_size(lab.dom0)
        # The image's clusters hold data, and its tables are flushed: what is written now is in
        # the file at once. Ext4 has cleared some of them, in its own time, which is in the tables.
        guest.run(f"dd if=/dev/urandom of={path} bs=1M count=24 oflag=direct conv=fsync")
        with guest.start(["fio", "--name=test", f"--filename={path}", "--rw=randwrite",
                          "--size=24M", "--bs=16k", "--ioengine=libaio", "--direct=1",
                          "--iodepth=16", "--verify=crc32c", "--verify_fatal=1",
                          "--rate_iops=300", "--status-interval=1"]) as job:
            for _ in range(2):
                already = job.stdout.count(b"IOPS")
                assert job.wait_for(lambda seen=already: job.stdout.count(b"IOPS") > seen, 60)
                lab.dom0.run(STOP_DISK)
                wait_log(lab.dom0, start, "the vhost-user program has ended")
                lab.dom0.run(START_DISK)
                wait_log(lab.dom0, start, "2 queues go on")
                start = log_size(lab.dom0)
            text = job.wait(180, check=True).stdout
        assert "err= 0" in text, text


def test_shared_directory(lab):
    """A source tree is unpacked, built (to Python's byte code), moved about and deleted in
    the guest; dom0 sees the same files."""
    sums = "find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
    build = ("tar -xf /tmp/tree.tar && python3 -m compileall -q -s $PWD -p / "
             "--invalidation-mode unchecked-hash .")
    with VHOST(lab) as guest:
        guest.run("mount -t virtiofs shared /mnt && cd $(dirname $(python3 -c "
                  "'import os; print(os.__file__)')) && "
                  "tar --exclude=__pycache__ -cf /tmp/tree.tar asyncio email", 400)
        for place in ("/tmp", "/mnt"):
            guest.run(f"mkdir {place}/tree && cd {place}/tree && {build}", 400)
        wanted = guest.run(f"cd /tmp/tree && {sums}").stdout
        assert guest.run(f"cd /mnt/tree && {sums}", 400).stdout == wanted
        assert lab.dom0.run(f"cd /scratch/share/tree && {sums}").stdout == wanted
        assert int(guest.run("find /mnt/tree -name '*.pyc' | wc -l").stdout) > 50
        guest.run("cp -a /mnt/tree /mnt/copy && mv /mnt/copy /mnt/moved && "
                  "diff -r --no-dereference /tmp/tree /mnt/moved", 400)
        guest.run("head -c 16M /dev/urandom >/mnt/file && sync /mnt/file")
        assert guest.run("sha256sum </mnt/file").stdout == \
            lab.dom0.run("sha256sum </scratch/share/file").stdout
        guest.run("rm -r /mnt/tree /mnt/moved /mnt/file && umount /mnt && rm -r /tmp/tree*", 400)
        assert lab.dom0.run(["ls", "-A", "/scratch/share"]).stdout == ""


def test_entropy(lab):
    """What the guest reads from /dev/hwrng is what the program takes from its source."""
    # Each read is answered with one buffer; the kernel takes some for itself between.
    size, count = 64, 32
    source = random.Random(4).randbytes(1 << 20)
    with VHOST(lab) as guest:
        lab.dom0.run("cat >/scratch/entropy", stdin=source)
        guest.run("modprobe virtio_rng && grep virtio /sys/class/misc/hw_random/rng_current")
        text = guest.run(f"dd if=/dev/hwrng bs={size} count={count} iflag=fullblock status=none | "
                         f"od -An -v -tx1 -w{size}").stdout
        pieces = [bytes.fromhex(line) for line in text.splitlines()]
        assert [len(piece) for piece in pieces] == [size] * count, pieces
        places = [source.find(piece) for piece in pieces]
        assert -1 not in places and places == sorted(set(places)), places


def test_scsi_disk(lab):
    """A disk behind a SCSI host is read. The program does not write."""
    with VHOST(lab) as guest:
        guest.run("modprobe sd_mod && modprobe virtio_scsi")
        appears(guest, "/dev/sda")
        assert sha256(guest, "/dev/sda") == sha256(lab.dom0, "/scratch/scsi.img")
        assert value(guest, "/sys/block/sda/ro") == "1"


def test_sockets(lab):
    """A stream each way between guest and dom0, as it was sent."""
    with VHOST(lab) as guest:
        guest.run(["modprobe", "vmw_vsock_virtio_transport"])
        for sender, receiver, cid in ((guest, lab.dom0, 2), (lab.dom0, guest, CID)):
            with receiver.start("socat -d -d -u VSOCK-LISTEN:5555 - | sha256sum") as sink:
                sink.wait_output("listening on", 60)
                sent = sender.run("head -c 16M /dev/urandom >/tmp/file && "
                                  f"socat -u FILE:/tmp/file VSOCK-CONNECT:{cid}:5555 && "
                                  "sha256sum </tmp/file && rm /tmp/file", 120).stdout
                assert sink.wait(60, check=True).stdout == sent
