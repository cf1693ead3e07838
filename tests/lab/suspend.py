# SPDX-License-Identifier: GPL-2.0
"""Guests that are suspended in each way, and what goes on in them meanwhile."""

import contextlib
import json

from net import BRIDGES, address, connect
from support import Setup, cards, images, started
from vxblab.lab import LabError

STOP = "/tmp/stop"
SAVED = "/scratch/saved"
# What the stock card's driver reports at a restore, if it had packets under way whose data is
# in memory of kmalloc().
NETFRONT = r"WARNING: include/linux/mm\.h:\d+ at xennet_disconnect_backend"
# fio on /dev/vda until told to end; each block has its checksum.
VERIFY = f"""while [ ! -e {STOP} ]; do
    fio --name=load --filename=/dev/vda --size=8M --rw=randwrite --bssplit=4k/50:64k/50 \
        --ioengine=libaio --direct=1 --iodepth=32 --verify=crc32c --verify_fatal=1 \
        >/tmp/fio.log 2>&1 || {{ cat /tmp/fio.log; exit 1; }}
    echo round
done"""
# Appends to a file on /dev/vdb that stays open, and looks in the end what is in it.
APPEND = f"""mkfs.ext4 -q -F /dev/vdb && mount /dev/vdb /mnt && exec 3>/mnt/log || exit 1
n=0
while [ ! -e {STOP} ]; do
    n=$((n + 1)); echo $n >&3 && sync -d /mnt/log || exit 1
    echo line
done
seq $n | cmp - /mnt/log && exec 3>&- && umount /mnt && fsck.ext4 -fn /dev/vdb"""


def setup(name, **options):
    """Two disks and a card, without persistent grants, whose number varies."""
    return Setup(cards(name),
                 "echo N >/sys/module/xen_blkback/parameters/feature_persistent; "
                 + images(f"{name}-a.img", f"{name}-b.img"),
                 **{name: {"disks": [f"virtio:/scratch/{name}-{disk}.img" for disk in "ab"],
                           "cards": ["virtio"], "memory": 320, "vcpus": 2, **options}})


def configuration(guest):
    """xl cannot tell by itself which disks a guest has that has xen-blkfront's as well."""
    return f"/var/lib/lab/{guest.name}.cfg"


def save(guest, *options, timeout=120):
    guest.dom0.run(["xl", "save", *options, guest.name, SAVED, configuration(guest)], timeout)


def restore(guest, timeout=120):
    guest.dom0.run(["xl", "restore", SAVED], timeout)
    guest.dom0.run(["rm", SAVED])


def save_and_restore(guest):
    """The guest ends, and goes on as another domain."""
    before = guest.domid
    save(guest)
    assert guest.dom0.run(["xl", "domid", guest.name], check=False).returncode
    restore(guest)
    assert guest.domid != before


def checkpoint(guest):
    """The guest is saved and goes on."""
    before = guest.domid
    save(guest, "-c")
    assert guest.domid == before
    guest.dom0.run(["rm", SAVED])


def migration(guest, *options):
    """The running migration of a guest to the same host."""
    return guest.dom0.start(["xl", *options, "migrate", "-C", configuration(guest), "-s", "",
                             guest.name, "xl migrate-receive"])


def migrate(guest):
    """The guest goes on as another domain, from memory that is copied while it runs."""
    before = guest.domid
    with migration(guest) as process:
        process.wait(600, check=True)
    assert guest.domid != before


def cancel(guest):
    """The guest is suspended, but there is no room to save it: it goes on."""
    before = guest.domid
    guest.dom0.run("mkdir -p /tmp/small && mount -t tmpfs -o size=8M none /tmp/small")
    try:
        done = guest.dom0.run(["xl", "save", guest.name, "/tmp/small/saved",
                               configuration(guest)], 120, check=False)
        assert done.returncode and "resuming domain" in done.stderr, done
    finally:
        guest.dom0.run("umount /tmp/small")
    assert guest.domid == before


def pause(guest):
    """The guest stands still, as do its devices."""
    guest.dom0.run(["xl", "pause", guest.name])
    state = guest.dom0.run(f"xl list {guest.name} | tail -n 1").stdout.split()[4]
    assert state == "--p---", state
    guest.dom0.run(["xl", "unpause", guest.name])


class Load:
    """Disks and a card in use: fio, a growing file, and a TCP connection each way. A
    context manager."""

    def __init__(self, lab, guest):
        self._lab, self._guest = lab, guest
        self._held = contextlib.ExitStack()

    def __enter__(self):
        lab, guest = self._lab, self._guest
        for machine in (lab.dom0, guest):
            machine.run(["rm", "-f", STOP])
        connect(guest, devices=["eth0"])
        with self._held:
            self._users = {"round": self._start(guest.start(VERIFY)),
                           "line": self._start(guest.start(APPEND))}
            here, there = BRIDGES["eth0"], address(BRIDGES["eth0"], 2)
            self._streams = [self._stream(guest, lab.dom0, here, 5301),
                             self._stream(lab.dom0, guest, there, 5302)]
            self.goes_on()
            for _, receiver in self._streams:
                receiver.wait_output("flowing", 120)
            self._held = self._held.pop_all()
        return self

    def _start(self, process):
        return self._held.enter_context(process)

    def _stream(self, sender, receiver, where, port):
        sink = self._start(started(receiver, "stream", "receive", port))
        sink.wait_output("listening", 60)
        return self._start(started(sender, "stream", "send", where, port, STOP)), sink

    def __exit__(self, *_):
        self._held.close()

    def goes_on(self, timeout=180):
        """Wait until each user of a disk has done something more."""
        for word, user in self._users.items():
            done = user.stdout.count(word.encode())
            user.wait_for(lambda user=user, word=word, done=done:
                          user.stdout.count(word.encode()) > done, timeout)
            if user.stdout.count(word.encode()) == done:
                raise LabError(f"no {word} for {timeout} s: {user.stdout[-2000:]!r}")

    def end(self):
        """Assert that all is as it was written; returns the bytes of the connections."""
        for machine in (self._lab.dom0, self._guest):
            machine.run(["touch", STOP])
        sent = []
        for ends in self._streams:
            texts = [end.wait(180, check=True).stdout for end in ends]
            one, other = (json.loads(text.splitlines()[-1]) for text in texts)
            assert one == other and one["bytes"] > 0, (one, other)
            sent.append(one["bytes"])
        for user in self._users.values():
            user.wait(180, check=True)
        return sent
