# SPDX-License-Identifier: GPL-2.0
"""Several devices, queues, CPUs and guests at once."""

import concurrent.futures
import re

from net import BRIDGES, MAKE_BR9, Traffic, connect, two_cards
from observe import Device
from support import Setup, cards, fio, images, interrupts

QUEUES = 4
# Only CPUs that run at the same time use the queues of all.
ALONE = True
MANY = Setup(two_cards("many"), f"{MAKE_BR9} && {images('one.img', 'two.img')}",
             many={"disks": ["virtio:/scratch/one.img", "virtio:/scratch/two.img"],
                   "cards": ["virtio", "virtio"], "vcpus": QUEUES, "memory": 768})
# The left one's disk is polled.
POLLED = '[[disk]]\ndomain = "left"\nvdev = "xvda"\nblk = { poll-us = 10000 }\n'
TWO = Setup(cards("left") + cards("right") + POLLED, images("left.img", "right.img"),
            left={"disks": ["virtio:/scratch/left.img"], "cards": ["virtio"]},
            right={"disks": ["virtio:/scratch/right.img"], "cards": ["virtio"]})


def verified(guest, device, **options):
    """fio with checksums on a disk."""
    job = fio(guest, "--verify_fatal=1", "--group_reporting", filename=device,
              rw="randwrite", size="6M", bs="16k", ioengine="libaio", direct=1, iodepth=8,
              verify="crc32c", **options)
    assert job["read"]["io_bytes"] == job["write"]["io_bytes"] > 0


def test_two_disks_and_two_cards_with_4_queues(lab):
    """All queues exist, and all are used under load; both of a kind at once."""
    with MANY(lab) as guest:
        connect(guest)
        for disk in ("vda", "vdb"):
            queues = guest.run(["ls", f"/sys/block/{disk}/mq"]).stdout.split()
            assert len(queues) == QUEUES, queues
        for card in ("eth0", "eth1"):
            text = guest.run(["ethtool", "-l", card]).stdout
            assert re.findall(r"Combined:\s*(\d+)", text) == [str(QUEUES)] * 2, text

        before = interrupts(guest, "virtio")
        assert len(before) >= 2 * QUEUES + 2 * 2 * QUEUES, before
        with concurrent.futures.ThreadPoolExecutor() as pool:
            disks = [pool.submit(verified, guest, f"/dev/{disk}", numjobs=QUEUES,
                                 offset_increment="64M", cpus_allowed="0-3",
                                 cpus_allowed_policy="split")
                     for disk in ("vda", "vdb")]
            with Traffic(lab, guest, "eth0", "both", 10, streams=16) as traffic:
                traffic.check()
            for disk in disks:
                disk.result()
        guest.run(["ping", "-q", "-f", "-c", 1000, BRIDGES["eth1"]])
        after = interrupts(guest, "virtio")
        # As the drivers call their queues; of the card that had many streams.
        card = guest.run("basename $(readlink -f /sys/class/net/eth0/device)")
        used = [name for name in after
                if re.search(rf"-req\.\d$|^{card.stdout.strip()}-(in|out)put\.\d$", name)]
        assert len(used) == 2 * QUEUES + 2 * QUEUES, after
        idle = [name for name in used if after[name] == before[name]]
        assert not idle, f"no interrupt of {idle}: {after}"


def test_two_guests_at_once(lab):
    """Each has its own data while both are under load."""
    with TWO(lab) as guests:
        hosts = dict(zip(guests, (2, 3)))
        for guest, host in hosts.items():
            connect(guest, host, ("eth0",))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            disks = [pool.submit(verified, guest, "/dev/vda") for guest in guests]
            streams = [Traffic(lab, guest, "eth0", "both", 10) for guest in guests]
            for stream in streams:
                with stream:
                    stream.check()
            for disk in disks:
                disk.result()
        for guest in guests:
            guest.run(f"echo {guest.name} | dd of=/dev/vda bs=512 conv=sync,fsync status=none")
        for guest in guests:
            for machine, path in ((guest, "/dev/vda"), (lab.dom0, f"/scratch/{guest.name}.img")):
                line = machine.run(["head", "-n", 1, path]).stdout.strip("\0\n")
                assert line == guest.name, f"{machine.name} reads {line!r} from {path}"
        left, right = guests
        left.run(["ping", "-q", "-f", "-c", 1000, "10.78.0.3"])
        right.run(["ping", "-q", "-f", "-c", 1000, "10.78.0.2"])


def test_polled_disk(lab):
    """A disk that is polled has requests seen for which its driver did not ring."""
    with TWO(lab) as guests:
        kicks = []
        for guest in guests:
            disk = Device(guest, "/sys/block/vda")
            before = disk.counted()["kicks"]
            fio(guest, filename="/dev/vda", rw="randread", size="4M", bs="4k",
                ioengine="libaio", direct=1, iodepth=1)
            kicks.append(disk.counted()["kicks"] - before)
        print(f"  1024 reads, one at a time: {kicks[0]} kicks, {kicks[1]} without polling")
        assert kicks[0] < kicks[1], kicks
