# SPDX-License-Identifier: GPL-2.0
"""What the driver does about backends that misuse what an address mode gives them, and
which mode is chosen."""

import contextlib
import re

from harness.reports import expected
from observe import TRACEFS, Device, Tracing
from support import Setup, appears, images, started, wait_store

DISK = "/sys/block/vda"
XENBUS = "/sys/bus/xen/drivers/virtio_xenbus"
READ = "dd if=/dev/vda of=/dev/null bs=64k count=1 iflag=direct status=none"
SETUP = Setup("", images("modes.img"),
              modes={"disks": ["virtio:/scratch/modes.img"], "driver": ["address_mode=grant"]})


@contextlib.contextmanager
def stopped(dom0):
    """The daemon does nothing meanwhile."""
    dom0.run("kill -STOP $(daemon status)")
    try:
        yield
    finally:
        dom0.run("kill -CONT $(daemon status)")


def granted(guest):
    """Starts a read of whole pages that nobody answers; returns its process and the
    references of the pages."""
    with Tracing(guest, "map"):
        with guest.start(["cat", f"{TRACEFS}/trace_pipe"]) as trace:
            read = guest.start(READ)
            found = trace.wait_for(
                lambda: re.search(rb"dma=0x(8\w{15}) length=(\d+)", trace.stdout), 60)
        assert found, f"no page was granted: {trace.stdout[-500:]!r}"
    first = (int(found[1], 16) & ~(1 << 63)) >> 12
    return read, range(first, first + int(found[2]) // 4096)


@expected(r"g\.e\. 0x[0-9a-f]+ still in use")
def test_backend_that_keeps_a_granted_page(lab):
    """The device is given up, the guest goes on, and the page is not used again before
    the backend lets go of it. Bound anew, the device works."""
    with SETUP(lab) as guest:
        name = Device(guest, DISK).name
        guest.run("dmesg -C")
        with contextlib.ExitStack() as held:
            with stopped(lab.dom0):
                read, references = granted(guest)
                keeper = held.enter_context(
                    started(lab.dom0, "keep-grants", str(guest.domid), str(references[0])))
                keeper.wait_output("mapped", 30)
            read.wait(60)
            with guest.start(["dmesg", "--follow"]) as log:
                log.wait_output("keeps its pages mapped", 30)
            done = guest.run(READ, check=False)
            assert done.returncode and "Input/output error" in done.stderr, done
            guest.run(f"echo {name} >{XENBUS}/unbind && echo {name} >{XENBUS}/bind")
            appears(guest, "/dev/vda")
            guest.run(READ)
            # The kept reference is not one of those that the device has now.
            with stopped(lab.dom0):
                read, others = granted(guest)
            read.wait(60, check=True)
            assert references[0] not in others, (references, others)
        guest.run(READ)


def test_backend_that_is_not_trusted(lab):
    """With trusted = 0 in xenstore, which the toolstack writes, the pool is used, though
    the user wants grants."""
    with SETUP(lab) as guest:
        disk = Device(guest, DISK)
        assert disk.read("mode") == "grant"
        node = f"/local/domain/{guest.domid}/{disk.node}"
        lab.dom0.run(["xenstore-write", f"{node}/trusted", 0])
        guest.run(f"echo {disk.name} >{XENBUS}/unbind && echo {disk.name} >{XENBUS}/bind")
        appears(guest, "/dev/vda")
        wait_store(lab.dom0, f"{node}/address-mode", "pool")
        assert disk.read("mode") == "pool"
        guest.run(READ)
        assert disk.counted()["granted"] == 0
        lab.dom0.run(["xenstore-rm", f"{node}/trusted"])
        guest.run(f"echo {disk.name} >{XENBUS}/unbind && echo {disk.name} >{XENBUS}/bind")
        appears(guest, "/dev/vda")
        assert disk.read("mode") == "grant"


def test_unknown_mode_is_refused(lab):
    """The module is not loaded, and dmesg has the value and what there is."""
    with SETUP(lab) as guest:
        guest.run("rmmod virtio_xenbus && dmesg -C")
        assert guest.run("driver address_mode=teleport", check=False).returncode
        text = guest.run(["dmesg"]).stdout
        assert "address_mode=teleport is none of auto, pool, grant, machine" in text, text
        guest.run("driver address_mode=grant")
        appears(guest, "/dev/vda")
