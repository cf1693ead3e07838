# SPDX-License-Identifier: GPL-2.0
"""An HVM guest's kernel starts another one, in the same domain, with disk and card in use: at
once and when it crashes. Linux asks Xen for a soft reset then, for which the toolstack takes
all devices away and makes them anew. (xl has no soft reset for PVH guests: it ends them.)"""

import contextlib

from harness import reports
from net import connect
from resources import assert_same, count
from support import ONE_CPU, Setup, appears, fio, started, value, wait_store
from test_guest_life import (CRASH, CRASHES, DEVICES, PREPARE, RELEASE, TYPES, config, load)

LAB = ONE_CPU
HVM = Setup(config("kexec"), PREPARE, kexec={"cards": TYPES, "type": "hvm", "memory": 768,
                                             "append": "crashkernel=256M"})
INITRD = "/var/lib/lab/kexec.initrd"  # in dom0


@contextlib.contextmanager
def another_kernel(lab, one, *options):
    """The block has a guest's kernel, whose disk and card are in use, replaced by the one that
    is loaded. Nothing is left of the former one's devices, and its own work."""
    domid = one.domid
    appears(one, *DEVICES)
    one.run("echo kept | dd of=/dev/vda bs=512 seek=100000 conv=sync oflag=direct status=none")
    before = count(lab, one, memory=False)
    one.push(lab.dom0.read(INITRD), "/tmp/initrd")
    with load(lab, one):
        ready = f"/local/domain/{domid}/data/lab"
        lab.dom0.run(["xenstore-write", ready, "of the former kernel"])
        with started(one, "kexec", *options, f"/boot/vmlinuz-{value(one, RELEASE)}",
                     "/tmp/initrd") as process:
            process.wait_output("loaded", 120)
            yield
            wait_store(lab.dom0, ready, "ready", 300)
    assert one.domid == domid
    one.run(["driver"])
    appears(one, *DEVICES)
    assert_same(lab, one, before)
    assert one.run("dd if=/dev/vda bs=512 skip=100000 count=1 status=none | head -c 4"
                   ).stdout == "kept"
    fio(one, "--verify_fatal=1", filename="/dev/vda", rw="randwrite", size="4M", bs="16k",
        ioengine="libaio", direct=1, iodepth=8, verify="crc32c")
    connect(one, devices=("eth0",))
    one.run(["ping", "-q", "-c", 3, "-i", "0.2", "-W", 10, "10.78.0.1"])


def test_hvm_kexec(lab):
    """At once."""
    with HVM(lab) as one, another_kernel(lab, one):
        pass


@reports.expected(CRASHES)
def test_hvm_kdump(lab):
    """When it crashes, with devices connected; the dump goes to the disk."""
    with HVM(lab) as one:
        with another_kernel(lab, one, "--panic"):
            one.start(CRASH)
        header = one.run("dd if=/proc/vmcore of=/dev/vda bs=64k count=16 iflag=fullblock "
                         "oflag=direct status=none && "
                         "dd if=/dev/vda bs=512 count=1 iflag=direct status=none | head -c 4")
        assert header.stdout == "\x7fELF"
