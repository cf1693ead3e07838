# SPDX-License-Identifier: GPL-2.0
"""What a disk and a card must do with any kernel, and what that kernel must not say."""

from net import BRIDGES, Traffic
from support import fio


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
