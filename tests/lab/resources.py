# SPDX-License-Identifier: GPL-2.0
"""Counts of what a guest, the daemon and dom0 hold, to see whether some of it leaks."""

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


def count(lab, guest):
    """What guest, dom0 and daemon hold now: (who, what) -> number."""
    pid = lab.dom0.run(["daemon", "status"]).stdout.strip()
    held = {}
    # Dom0 serves more than this guest; its memory says nothing.
    for machine, arguments in ((guest, ("--memory",)), (lab.dom0, (pid,))):
        for what, number in json.loads(
                script(machine, "resources", *arguments)).items():
            held[machine.name, what] = number
        domid = 0 if machine is lab.dom0 else guest.domid
        held[machine.name, "event channels"] = event_channels(lab.dom0, domid)
    return held


def assert_same(lab, guest, before):
    """Nothing is held that was not held before. What has been freed may come back a
    little later, after a load for instance: counts until that is so, or for long enough."""
    deadline = time.monotonic() + PATIENCE
    while leaks := [f"{who}: {number} {what}, {before[who, what]} before"
                    for (who, what), number in count(lab, guest).items()
                    if number > before[who, what] + TOLERANCE.get(what, 0)]:
        assert time.monotonic() < deadline, "; ".join(leaks)
