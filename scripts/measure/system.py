# SPDX-License-Identifier: GPL-2.0
"""The system under measurement: one guest with both ways to one file and one bridge."""

import contextlib

from vxblab.lab import LabError

from . import network

LIMIT = 900  # seconds for one run, more than any takes under emulation
MODES = ("pool", "grant", "machine")
# "vhost" is mode pool, with the data path of a card in dom0's kernel.
PATHS = (*MODES, "vhost", "stock")
DISK_PATHS = (*MODES, "stock")


def is_ours(path):
    return path != "stock"


def disks(paths):
    """Path -> name that xl gives its disk, in the guest's order."""
    return {path: f"xvd{chr(ord('a') + number)}" for number, path in
            enumerate(path for path in paths if path in DISK_PATHS)}


def cards(paths):
    """Path -> number of its device in xl's list, of those that are ours."""
    return {path: number for number, path in enumerate(filter(is_ours, paths))}


def daemon(paths, poll):
    """The daemon's configuration: each device has its own mode, which the driver takes
    as the daemon's preference."""
    def modes(path):
        return f'address-modes = {[path, "pool"] if path in MODES[1:] else ["pool"]}'

    return "".join(
        [f'[[device]]\ndomain = "bench"\ndevice = {number}\n'
         f'net = {{ bridge = "br0", vhost = {str(path == "vhost").lower()}, {modes(path)} }}\n'
         for path, number in cards(paths).items()]
        + [f'[[disk]]\ndomain = "bench"\nvdev = "{vdev}"\nblk = {{ poll-us = {poll}, {modes(path)} }}\n'
           for path, vdev in disks(paths).items() if is_ours(path)]).replace("'", '"')


class System:
    """A booted lab's dom0 and guest. A path is a way between them: virtio_xenbus and its
    daemon in one of its modes, or "stock" (xen-blkfront with xen-blkback on a loop
    device, xen-netfront with xen-netback)."""

    def __init__(self, lab, guest, paths):
        self.dom0, self.guest = lab.dom0, guest
        self._disks, self._cards = disks(paths), cards(paths)
        self._devices = {}

    @staticmethod
    def on_card(path):
        """Words before a command of the guest that shall use this path's card."""
        return ["ip", "netns", "exec", path]

    def run(self, command):
        """Output of a case's command in the guest."""
        done = self.guest.run(command, LIMIT, check=False)
        if done.returncode:
            said = done.stderr.strip() or done.stdout[-1000:]
            raise LabError(f"{' '.join(command)}: status {done.returncode}: {said}")
        return done.stdout

    def disk(self, path):
        """The device node of this path's disk, once it is there."""
        if path not in self._devices:
            vdev = self._disks[path]
            if is_ours(path):
                # As xenbus numbers them: the major of the first disk, 16 minors for each.
                number = (202 << 8) + 16 * (ord(vdev[-1]) - ord("a"))
                vdev = self._appears("block", f"virtio_disk-{number}")
            self.guest.run(["udevadm", "wait", "--initialized=no", "--timeout=120",
                            f"/dev/{vdev}"], 150)
            self._devices[path] = f"/dev/{vdev}"
        return self._devices[path]

    def _appears(self, kind, device):
        """The name that the guest has given what a xenbus device has become."""
        find = (f"for each in /sys/class/{kind}/*; do "
                f"case $(readlink -f $each/device) in */{device}|*/{device}/*) "
                f"basename $each ;; esac; done")
        with self.guest.start(["udevadm", "monitor", "--kernel"]) as changes:
            name = changes.wait_for(lambda: self.guest.run(find).stdout.strip(), 120)
        if not name:
            raise LabError(f"the guest got no {kind} device of {device}")
        return name

    def wait_card(self, path):
        """Name of the path's interface, once there is one."""
        # The first stock card is the lab's own.
        return self._appears("net", f"virtio-{self._cards[path]}" if is_ours(path)
                             else "vif-1")

    def set_up_card(self, path):
        """Put the card into a network namespace of its own: both are on one bridge."""
        name = self.wait_card(path)
        self.guest.run(f"""set -e
            ip netns add {path}
            ip link set {name} netns {path}
            ip -n {path} addr add {network.CARDS[path]}/24 dev {name}
            ip -n {path} link set lo up
            ip -n {path} link set {name} up
            # ARP and a port that forwards are not what is measured.
            ip netns exec {path} ping -c 1 -w 60 {network.HOST} >/dev/null""", 120)


@contextlib.contextmanager
def made(lab, options):
    """The System on a booted lab; options: of the command line."""
    dom0 = lab.dom0
    # Written, so that it has no holes.
    dom0.run(["dd", "if=/dev/zero", f"of={options.file}", "bs=1M",
              f"count={options.size}", "conv=fsync"], 600)
    paths = options.driver
    ours = any(map(is_ours, paths))
    if "vhost" in paths:
        dom0.run(["modprobe", "vhost_net"])
    if ours:
        dom0.start_daemon(daemon(paths, options.poll_us), 120)
    guest = dom0.create_guest(
        "bench", memory=options.memory, vcpus=options.vcpus, timeout=900,
        disks=[f"virtio:{options.file}" if is_ours(path) else f"stock:{options.file}"
               for path in disks(paths)],
        cards=["virtio" if is_ours(path) else "stock" for path in paths])
    system = System(lab, guest, paths)
    if ours:
        guest.run(["driver"], 300)
    for path in paths:
        if path in DISK_PATHS:
            system.disk(path)
        system.set_up_card(path)
    with network.servers(dom0):
        yield system
