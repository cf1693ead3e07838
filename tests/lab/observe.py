# SPDX-License-Identifier: GPL-2.0
"""What the guest's driver tells about its devices: files in debugfs, tracepoints."""

import re

from support import value

DEBUGFS = "/sys/kernel/debug/virtio_xenbus"
TRACEFS = "/sys/kernel/tracing"
EVENTS = f"{TRACEFS}/events/virtio_xenbus"
KINDS = {"request", "kick", "interrupt", "map", "unmap"}
_EVENT = re.compile(r": +virtio_xenbus_(\w+): +(.*\S)")


class Device:
    """The xenbus device behind what the guest has at `path` in /sys."""

    def __init__(self, guest, path):
        self.guest = guest
        virtio = guest.run(["readlink", "-f", f"{path}/device"]).stdout.strip()
        above, _, self.virtio = virtio.rpartition("/")
        # As the driver core calls it, and in xenstore.
        self.name = above.rpartition("/")[2]
        self.node = "device/" + "/".join(self.name.rsplit("-", 1))

    def read(self, file):
        """The text of a file in debugfs."""
        return value(self.guest, f"{DEBUGFS}/{self.name}/{file}")

    def table(self, file):
        """A file with a heading: first word of a line -> {column: number}."""
        heading, *lines = self.read(file).splitlines()
        columns = heading.split()[1:]
        return {words[0]: dict(zip(columns, map(int, words[1:]), strict=True))
                for words in map(str.split, lines)}

    def features(self):
        """Offered feature bit -> (whether it is accepted, name)."""
        lines = [line.split() for line in self.read("features").splitlines()[1:]]
        return {int(bit): ({"yes": True, "no": False}[accepted], name)
                for bit, accepted, name in lines}

    def queues(self):
        """For each virtqueue its name and its counters."""
        names = self.guest.run(f"ls {DEBUGFS}/{self.name} | grep ^queue-").stdout.split()
        queues = []
        for number in range(len(names)):
            lines = self.read(f"queue-{number}").splitlines()
            words = dict(line.split(maxsplit=1) for line in lines)
            queues.append({key: text if key == "name" else int(text)
                           for key, text in words.items()})
        return queues

    def counted(self):
        """The counters of all queues together."""
        queues = self.queues()
        return {key: sum(queue[key] for queue in queues) for key in queues[0] if key != "name"}


def grown(before, after):
    """By how much each of some numbers has grown."""
    return {key: after[key] - number for key, number in before.items()}


def parse(text):
    """The driver's events in a trace: (kind, {field: text})."""
    return [(match[1], dict(word.split("=", 1) for word in match[2].split()))
            for match in map(_EVENT.search, text.splitlines()) if match]


class Tracing:
    """Records the driver's events, or those of some kinds that pass a filter, from now
    to stop(). A context manager."""

    def __init__(self, guest, *kinds, filter=None):
        self.guest = guest
        guest.run(f"mountpoint -q {TRACEFS} || mount -t tracefs tracefs {TRACEFS}")
        switches = [f"{EVENTS}/virtio_xenbus_{kind}" for kind in kinds] or [EVENTS]
        filters = [f"echo '{filter}' >{switch}/filter && " for switch in switches if filter]
        guest.run(f"cd {TRACEFS} && echo 0 >tracing_on && echo >trace && "
                  f"echo 8192 >buffer_size_kb && {''.join(filters)}"
                  f"for each in {' '.join(switches)}; do echo 1 >$each/enable; done && "
                  "echo 1 >tracing_on")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # Not there if the driver has been unloaded.
        self.guest.run(f"cd {EVENTS} 2>/dev/null || exit 0; "
                       "echo 0 >enable; echo 0 >filter; "
                       "echo >../../trace; echo 1408 >../../buffer_size_kb", check=False)

    def stop(self):
        """The events, none of which was lost: (kind, {field: text})."""
        self.guest.run(f"echo 0 >{TRACEFS}/tracing_on")
        for line in self.guest.run(f"cat {TRACEFS}/per_cpu/cpu*/stats").stdout.splitlines():
            name, _, number = line.partition(": ")
            assert name not in ("overrun", "commit overrun", "dropped events") \
                or number == "0", line
        return parse(self.guest.run(["cat", f"{TRACEFS}/trace"], 120).stdout)
