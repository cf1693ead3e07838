# SPDX-License-Identifier: GPL-2.0
"""What happens in dom0 to disks, bridges, taps and xenstore while a guest uses them."""

import contextlib
import json
import re

from net import BRIDGES, MAKE_BR9, connect, ports, wait_link
from resources import nothing_left
from support import Setup, cards, images, log_size, rebind, script, sha256, value, wait_log

TOOL = "/payload/virtio-xenbusctl"
CONFIG = cards("life") + cards("life", first=1, settings='bridge = "br9"') + "".join(
    f'[[disk]]\ndomain = "life"\nvdev = "xvd{letter}"\nblk = {{ serial = "{serial}" }}\n'
    for letter, serial in (("a", "full"), ("b", "bad"), ("c", "short")))
SMALL = "/scratch/small"  # a file system with little room
STORE = "/var/run/xenstored/socket"  # as libxenstore says it
BAD, BAD_SECTORS, SECTORS = 8192, 16, 16384
PREPARE = (
    # Without persistent grants of the guest's root disk, whose number depends on what has
    # been read from it.
    "echo N >/sys/module/xen_blkback/parameters/feature_persistent; "
    f"umount -q {SMALL}; dmsetup remove -f bad 2>/dev/null; losetup -D; {MAKE_BR9} && "
    + images("small.ext4", size="48M") + " && " + images("bad.img", "short.img", size="8M") +
    " && mkfs.ext4 -q -F -m 0 /scratch/small.ext4"
    f" && mkdir -p {SMALL} && mount -o loop /scratch/small.ext4 {SMALL}"
    f" && truncate -s 64M {SMALL}/full.img && fallocate -l 12M {SMALL}/ballast"
    " && losetup --direct-io=on /dev/loop7 /scratch/bad.img"
    f" && echo '0 {SECTORS} linear /dev/loop7 0' | dmsetup create --noudevsync bad"
    " && dmsetup mknodes")
# A card on each bridge, as net.py knows them.
LIFE = Setup(CONFIG, PREPARE,
             life={"disks": [f"virtio:{SMALL}/full.img", "virtio:/dev/mapper/bad",
                             "virtio:/scratch/short.img"],
                   "cards": ["virtio", "virtio"], "vcpus": 2})


def name(guest, serial):
    """The guest's name of a disk, which depends on which was there first."""
    path, = guest.run(f"grep -lw {serial} /sys/block/vd*/serial").stdout.split()
    return path.split("/")[3]


def copy(guest, source, target, *more):
    """dd past the page cache, which may fail; returns its Result."""
    way = "iflag" if source.startswith("/dev/vd") else "oflag"
    return guest.run(["dd", f"if={source}", f"of={target}", f"{way}=direct", "bs=4k",
                      "conv=notrunc", *more], check=False)


def assert_fails(done):
    """A command of the guest got the only error that virtio has for a request that cannot be
    done."""
    assert done.returncode and "Input/output error" in done.stderr, done


def test_disk_full(lab):
    """No room for a write under a sparse image: that write fails, what has been written
    stays, and the guest goes on when there is room."""
    with LIFE(lab) as guest, nothing_left(lab, guest):
        disk = f"/dev/{name(guest, 'full')}"
        dom0, start = lab.dom0, log_size(lab.dom0)
        guest.run(f"dd if=/dev/urandom of={disk} bs=1M count=8 oflag=direct status=none")
        sent = guest.run(f"dd if={disk} bs=1M count=8 iflag=direct status=none | "
                         "sha256sum").stdout
        done = copy(guest, "/dev/zero", disk, "bs=1M", "seek=8")
        assert_fails(done)
        wait_log(dom0, start, f"{SMALL}/full.img: Some(Write")
        wait_log(dom0, start, "No space left on device")
        # The first block that has no room.
        block = 8 + int(re.search(r"(\d+)\+\d records out", done.stderr)[1])
        assert 16 <= block < 48, done.stderr
        assert_fails(copy(guest, "/dev/zero", disk, "bs=1M", "count=1", f"seek={block}"))
        # What needs no new room.
        guest.run(f"dd if=/dev/zero of={disk} bs=1M count=1 seek=8 oflag=direct conv=fsync")

        dom0.run(["rm", f"{SMALL}/ballast"])
        guest.run(f"dd if=/dev/zero of={disk} bs=1M count=4 seek={block} oflag=direct "
                  "conv=fsync")
        assert guest.run(f"dd if={disk} bs=1M count=8 iflag=direct status=none | "
                         "sha256sum").stdout == sent
        assert sha256(guest, disk) == sha256(dom0, f"{SMALL}/full.img")
        guest.run(["blkdiscard", disk])


def table(lab, *lines):
    """Have the device mapper's disk be something else."""
    lab.dom0.run("dmsetup load bad && dmsetup resume --noudevsync bad", stdin="\n".join(lines))


def test_bad_sectors(lab):
    """A block device that fails in some sectors fails for the guest in these, in reading and
    in writing, and in no others."""
    after = BAD + BAD_SECTORS
    with LIFE(lab) as guest, nothing_left(lab, guest):
        disk = f"/dev/{name(guest, 'bad')}"
        guest.run(f"dd if=/dev/urandom of={disk} bs=1M count=8 oflag=direct status=none")
        good = sha256(guest, disk)
        guest.run(["dmesg", "-C"])
        table(lab, f"0 {BAD} linear /dev/loop7 0", f"{BAD} {BAD_SECTORS} error",
              f"{after} {SECTORS - after} linear /dev/loop7 {after}")
        try:
            blocks = range(BAD // 8 - 2, after // 8 + 2)
            bad = range(BAD // 8, after // 8)
            for source, target, place in ((disk, "/dev/null", "skip"),
                                          ("/dev/zero", disk, "seek")):
                failed = [block for block in blocks if copy(
                    guest, source, target, "count=1", f"{place}={block}").returncode]
                assert failed == list(bad), (place, failed)
            # A request that has both kinds.
            assert_fails(copy(guest, disk, "/dev/null", "bs=64k", "count=1",
                              f"skip={BAD // 128}"))
            done = copy(guest, disk, "/dev/null", "conv=noerror")
            assert f"{SECTORS // 8 - len(bad)}+0 records out" in done.stderr, done.stderr
            sectors = re.findall(rf"I/O error, dev {disk[5:]}, sector (\d+)",
                                 guest.run("dmesg").stdout)
            assert sectors and all(BAD <= int(sector) < after for sector in sectors), \
                sectors
        finally:
            table(lab, f"0 {SECTORS} linear /dev/loop7 0")
        # The blocks beside the bad ones that were written are zeroes by now.
        guest.run(f"dd if={disk} of=/dev/null bs=1M iflag=direct status=none")
        assert sha256(guest, disk) != good
        guest.run(f"dd if=/dev/zero of={disk} bs=1M oflag=direct count=8 conv=fsync")


def test_file_gets_shorter(lab):
    """A file that somebody cuts while it is used: what is not there any more cannot be read,
    the log says why, and what is written there is there again."""
    with LIFE(lab) as guest, nothing_left(lab, guest):
        disk = f"/dev/{name(guest, 'short')}"
        dom0, start = lab.dom0, log_size(lab.dom0)
        mib = 1 << 20
        guest.run(f"dd if=/dev/urandom of={disk} bs=1M count=8 oflag=direct status=none")
        dom0.run("truncate -s 4M /scratch/short.img")
        guest.run(f"dd if={disk} of=/dev/null bs=1M count=4 iflag=direct status=none")
        assert_fails(copy(guest, disk, "/dev/null", "count=1", f"skip={4 * mib >> 12}"))
        wait_log(dom0, start, "/scratch/short.img: Some(Read")
        wait_log(dom0, start, "the file ends before that")
        guest.run(f"dd if=/dev/urandom of={disk} bs=1M count=2 seek=6 oflag=direct "
                  "conv=fsync status=none")
        assert value(guest, f"/sys/block/{disk[5:]}/size") == str(8 * mib >> 9)
        assert sha256(guest, disk) == sha256(dom0, "/scratch/short.img")


def ping(guest, device):
    guest.run(["ping", "-q", "-c", 3, "-i", "0.2", "-W", 10, BRIDGES[device]])


@contextlib.contextmanager
def connected(lab):
    """The guest, whose cards have buffers already; it holds no more after the block."""
    with LIFE(lab) as guest:
        connect(guest)
        for device in ("eth0", "eth1"):
            ping(guest, device)
        with nothing_left(lab, guest):
            yield guest


def bridge_of(lab, tap):
    return lab.dom0.run(["readlink", f"/sys/class/net/{tap}/master"]).stdout.strip()[3:]


def test_bridge_made_anew(lab):
    """A bridge is removed: the guest's link goes down, and the log says why. A new one of that
    name gets the card. A port that was put into another bridge stays there."""
    with connected(lab) as guest:
        dom0, start = lab.dom0, log_size(lab.dom0)
        tap = ports(lab, guest)["eth1"].name
        dom0.run(["ip", "link", "del", "br9"])
        wait_link(guest, "eth1", "down")
        wait_log(dom0, start, f"link of tap {tap} to bridge br9 is down: somebody has removed "
                              "the bridge")
        ping(guest, "eth0")
        dom0.run(MAKE_BR9)
        wait_link(guest, "eth1", "up")
        wait_log(dom0, start, f"tap {tap} is plugged into bridge br9, which is a new one")
        ping(guest, "eth1")

        dom0.run(f"ip link set {tap} master br0 && ip link set br9 down")
        wait_link(guest, "eth1", "down")
        dom0.run("ip link set br9 up")
        wait_link(guest, "eth1", "up")
        assert bridge_of(lab, tap) == "br0"
        dom0.run(f"ip link set {tap} master br9")
        ping(guest, "eth1")


def test_tap_removed(lab):
    """Somebody removes a tap in use: the link goes down, the log says what to do, that makes
    the card work again, and the other card has not been disturbed."""
    with connected(lab) as guest:
        dom0, start = lab.dom0, log_size(lab.dom0)
        tap = ports(lab, guest)["eth1"].name
        with guest.start(["ping", "-q", "-f", BRIDGES["eth1"]]):
            dom0.run(f"until [ $(cat /sys/class/net/{tap}/statistics/rx_packets) -gt 100 ]; "
                     "do :; done")
            dom0.run(["ip", "link", "del", tap])
            wait_link(guest, "eth1", "down")
        wait_log(dom0, start, f"link of tap {tap} to bridge br9 is down: somebody has removed "
                              "the tap; unbind and bind")
        ping(guest, "eth0")
        device = guest.run(["readlink", "-f", "/sys/class/net/eth1/device"]).stdout
        rebind(guest, "/sys/bus/virtio/drivers/virtio_net",
               device.strip().rpartition("/")[2], "/sys/class/net/eth1")
        connect(guest, devices=("eth1",))
        wait_link(guest, "eth1", "up")
        assert bridge_of(lab, tap) == "br9"
        ping(guest, "eth1")
        errors = [device["error"] for device in json.loads(
            dom0.run([TOOL, "--json", "show", "life"]).stdout)]
        assert errors == [None] * 5, errors


@contextlib.contextmanager
def own_daemon(lab):
    """A daemon whose exit status is seen, in the place of the tests'."""
    dom0 = lab.dom0
    dom0.stop_daemon()
    try:
        with dom0.start("echo $$; exec /payload/virtio-xenbusd --config /etc/virtio-xenbusd.toml") \
                as process:
            process.wait_output("is ready", 30)
            yield process
    finally:
        dom0.start_daemon(CONFIG)


def test_xenstore_lost(lab):
    """The connections to xenstored end: so does the daemon, with a message and a status that
    make systemd start it again. The next one goes on with the devices."""
    with connected(lab) as guest:
        dom0 = lab.dom0
        with own_daemon(lab) as process:
            process.wait_output("virtio/1: connected", 30)
            ping(guest, "eth1")
            pid = process.stdout.decode().strip()
            # One for each device, and the main thread's.
            cut = int(script(dom0, "cut-connections", pid, STORE))
            assert cut >= 6, f"{cut} connections to {STORE}"
            done = process.wait(30)
            assert done.returncode == 1, done
            assert "ending; the guests' devices stay for the next daemon: the connection to " \
                "xenstore is lost" in done.stderr, done.stderr
        for serial in ("full", "bad", "short"):
            guest.run(f"dd if=/dev/{name(guest, serial)} of=/dev/null bs=1M count=2 iflag=direct status=none")
        for card in ("eth0", "eth1"):
            wait_link(guest, card, "up")
            ping(guest, card)
