# SPDX-License-Identifier: GPL-2.0
"""An HVM guest's kernel starts another one, in the same domain, with disk and card in use: at
once and when it crashes. Linux asks Xen for a soft reset then, for which the toolstack takes
all devices away and makes them anew. (xl has no soft reset for PVH guests: it ends them.)"""

import contextlib

from harness import reports
from life import CRASH, CRASHES, PREPARE, RELEASE, TYPES, begins_anew, config
from support import ONE_CPU, Setup, started, value, wait_store

LAB = ONE_CPU
HVM = Setup(config("kexec"), PREPARE, kexec={"cards": TYPES, "type": "hvm", "memory": 768,
                                             "append": "crashkernel=256M"})
INITRD = "/var/lib/lab/kexec.initrd"  # in dom0


@contextlib.contextmanager
def another_kernel(lab, one, *options):
    """The block has a guest's kernel, whose disk and card are in use, replaced by the one that
    is loaded."""
    domid = one.domid
    ready = f"/local/domain/{domid}/data/lab"
    kernel = f"/boot/vmlinuz-{value(one, RELEASE)}"
    one.push(lab.dom0.read(INITRD), "/tmp/initrd")
    with begins_anew(lab, one):
        lab.dom0.run(["xenstore-write", ready, "of the former kernel"])
        with started(one, "kexec", *options, kernel, "/tmp/initrd") as process:
            process.wait_output("loaded", 120)
            yield
            wait_store(lab.dom0, ready, "ready", 300)
    assert one.domid == domid


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
