# SPDX-License-Identifier: GPL-2.0
"""Counts of what a guest, the daemon and dom0 hold, to see whether some of it leaks."""

import contextlib
import json
import time

from support import script

# The pages of a pool are counted by their grants, exactly. This count is for the rest,
# and what the guest keeps at hand for its own work is in it, blocks of pages to cut
# packets' data from for instance: 140 KiB in the first rounds, none in 40 more.
TOLERANCE = {"KiB": 200}
PATIENCE = 30  # seconds


def event_channels(dom0, domid):
    """Ports of a domain that are in use."""
    return len(dom0.run(f"/usr/lib/xen-*/bin/lsevtchn {domid}").stdout.splitlines())


def grants(guest):
    """Grant references that the guest has in use."""
    return json.loads(script(guest, "resources"))["grants"]


def of_dom0(lab):
    """What dom0 and the daemon hold now: (who, what) -> number. Dom0 serves more than the
    daemon; its memory says nothing."""
    dom0 = lab.dom0
    pid = dom0.run(["daemon", "status"]).stdout.strip()
    nodes = dom0.run("set -o pipefail; xenstore-ls / | wc -l").stdout
    return {**_named(dom0, json.loads(script(dom0, "resources", pid))),
            ("dom0", "event channels"): event_channels(dom0, 0),
            ("dom0", "xenstore nodes"): int(nodes)}


def count(lab, guest, memory=True):
    """What guest, dom0 and daemon hold now: (who, what) -> number. Without the guest's
    memory, it says the same of a guest that has booted anew."""
    words = ["--memory"] * memory
    return {**_named(guest, json.loads(script(guest, "resources", *words))),
            (guest.name, "event channels"): event_channels(lab.dom0, guest.domid),
            **of_dom0(lab)}


def _named(machine, numbers):
    return {(machine.name, what): number for what, number in numbers.items()}


def assert_same(lab, guest, before):
    """Nothing is held that was not held before."""
    memory = (guest.name, "KiB") in before
    _wait_for(lambda: count(lab, guest, memory), before)


def _wait_for(now, before):
    """What has been freed may come back a little later, after a load for instance: counts
    until that is so, or for long enough."""
    deadline = time.monotonic() + PATIENCE
    while leaks := [f"{who}: {number} {what}, {before[who, what]} before"
                    for (who, what), number in now().items()
                    if number > before[who, what] + TOLERANCE.get(what, 0)]:
        assert time.monotonic() < deadline, "; ".join(leaks)


@contextlib.contextmanager
def nothing_left(lab, guest, memory=True):
    """Asserts that guest, dom0 and daemon hold no more after the block than before."""
    before = count(lab, guest, memory)
    yield
    assert_same(lab, guest, before)


@contextlib.contextmanager
def nothing_left_in_dom0(lab):
    """Asserts that dom0 and daemon hold no more after the block, in which guests come and
    go, than before."""
    before = of_dom0(lab)
    yield
    _wait_for(lambda: of_dom0(lab), before)
