#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""devices.py [--gone] SECONDS PATH...: wait until all paths are there, or none of
them, in /dev or /sys."""

import os
import socket
import sys
import time

NETLINK_KOBJECT_UEVENT = 15
KERNEL_GROUP = 1


def wait_for(paths, gone, seconds):
    """Look at each event of a device; exits when the time is over."""
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT) as events:
        events.bind((0, KERNEL_GROUP))
        # A device's directory goes after the event that says so: look again soon.
        events.settimeout(0.2)
        while left := [path for path in paths if os.path.exists(path) == gone]:
            if time.monotonic() > deadline:
                sys.exit(f"waited {seconds} s for {' '.join(left)} to be "
                         f"{'gone' if gone else 'there'}")
            try:
                events.recv(1 << 16)
            except (TimeoutError, OSError):  # none, or more than there was room for
                pass


if __name__ == "__main__":
    words = sys.argv[1:]
    absent = words[:1] == ["--gone"]
    wait_for(words[absent + 1:], absent, float(words[absent]))
