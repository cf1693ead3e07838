# SPDX-License-Identifier: GPL-2.0
"""What a disk and a card must do with any kernel, and what that kernel must not say."""

import contextlib

from net import BRIDGES, Traffic
from support import fio

# Written and verified again and again until it is told to stop; not as fast as it goes, so
# that other work of the CPUs does not have to wait for it.
LOAD = ("rm -f /tmp/stop; until [ -e /tmp/stop ]; do fio --name=load --filename=/dev/vda "
        "--rw=randwrite --bs=16k --size=2M --offset_increment=4M --numjobs=4 --group_reporting "
        "--ioengine=libaio --direct=1 --iodepth=4 --rate_iops=100 --verify=crc32c "
        "--verify_fatal=1 >/tmp/fio || { cat /tmp/fio; exit 1; }; echo round; done")


def check_disk(guest, path="/dev/vda", size="64M"):
    """What is written to a disk, or a file, is what is read: each block has its checksum."""
    job = fio(guest, "--verify_fatal=1", filename=path, rw="randwrite", size=size,
              bssplit="4k/50:128k/50", ioengine="libaio", direct=1, iodepth=32,
              verify="crc32c")
    assert job["read"]["io_bytes"] == job["write"]["io_bytes"] > 0


def check_file_system(guest, path="/dev/vda"):
    """A file system with files; discard and write-zeroes."""
    guest.run(f"mkfs.ext4 -q -F {path} && mount {path} /mnt && cp -a /usr/bin /mnt && "
              f"umount /mnt && fsck.ext4 -fn {path} && blkdiscard {path} && "
              f"blkdiscard -z -l 16M {path}", 300)


def check_card(lab, guest, device="eth0", seconds=10):
    """Packets and streams, both ways at once, without a stall."""
    guest.run(["ping", "-q", "-f", "-c", 2000, BRIDGES[device]], 120)
    with Traffic(lab, guest, device, "both", seconds) as traffic:
        traffic.check()


def check_locks(guest):
    """Lockdep is still on: it ends with the first thing it reports."""
    stats = guest.run(["cat", "/proc/lockdep_stats"]).stdout
    assert [line.split() for line in stats.splitlines() if "debug_locks" in line] \
        == [["debug_locks:", "1"]], stats


@contextlib.contextmanager
def verified(guest):
    """The disk in use during the block; what is written is what is read."""
    with guest.start(LOAD) as load:
        load.wait_output("round", 60)
        yield
        rounds = load.stdout.count(b"round")
        assert load.wait_for(lambda: load.stdout.count(b"round") > rounds + 1, 120), load.stdout
        guest.run(["touch", "/tmp/stop"])
        load.wait(60, check=True)
