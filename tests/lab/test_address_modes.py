# SPDX-License-Identifier: GPL-2.0
"""What the driver does about backends that misuse what an address mode gives them, and
which mode is chosen."""

import contextlib
import re

from harness.reports import expected
from observe import TRACEFS, Device, Tracing, grown
from support import Setup, appears, images, started, wait_store

DISK = "/sys/block/vda"
XENBUS = "/sys/bus/xen/drivers/virtio_xenbus"
READ = "dd if=/dev/vda of=/dev/null bs=64k count=1 iflag=direct status=none"
# First digits of addresses in descriptors.
POOL, GRANT = 4, 8
# More than the pages that a device grants at a time, and not more than those and its pool.
LARGE = 8 << 20
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


def mapped(guest, read, digit):
    """Starts a read of whole pages that nobody answers; returns its process and a match of
    the first address whose first digit this is, and of its length."""
    with Tracing(guest, "map", filter="length >= 4096"):
        with guest.start(["cat", f"{TRACEFS}/trace_pipe"]) as trace:
            process = guest.start(read)
            found = trace.wait_for(
                lambda: re.search(rb"dma=0x(%d\w{15}) length=(\d+)" % digit, trace.stdout), 60)
        assert found, f"no such page: {trace.stdout[-500:]!r}"
    return process, found


def granted(guest):
    """As mapped(), of pages that are granted; returns their references."""
    read, found = mapped(guest, READ, GRANT)
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


def test_more_pages_than_references(lab):
    """What a device has no references for goes through the pool, and is counted. The
    references are there again afterwards."""
    with SETUP(lab) as guest:
        disk = Device(guest, DISK)
        guest.run(["dd", "if=/dev/urandom", "of=/dev/vda", f"bs={LARGE}", "count=1",
                   "oflag=direct", "status=none"])
        before = disk.counted()
        with stopped(lab.dom0):
            read, _ = mapped(guest, f"dd if=/dev/vda bs={LARGE} count=1 iflag=direct "
                                    "status=none | sha256sum", POOL)
        found = read.wait(60, check=True).stdout
        assert found == lab.dom0.run(f"head -c {LARGE} /scratch/modes.img | sha256sum").stdout
        between = disk.counted()
        spent = grown(before, between)
        assert spent["granted"] and spent["ungranted"], spent
        assert spent["bytes_from_pool"] >= 4096 * spent["ungranted"], spent
        guest.run(READ)
        spent = grown(between, disk.counted())
        assert spent["granted"] and not spent["ungranted"], spent


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
