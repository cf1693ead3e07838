# SPDX-License-Identifier: GPL-2.0
"""The system under measurement: one guest with both ways to one file and one bridge."""

import contextlib

from vxblab.lab import LabError

from . import network

LIMIT = 900  # seconds for one run, more than any takes under emulation
PATHS = ("virtio", "stock")
DAEMON = """\
[[device]]
domain = "bench"
device = 0
[device.net]
bridge = "br0"
"""


# What dom0 gives the guest, and where the guest finds it.
STOCK_DISK = "format=raw,vdev=xvdm,access=rw,target={file}"
DISKS = {"virtio": "/dev/vda", "stock": "/dev/xvdm"}


class System:
    """A booted lab's dom0 and guest. A path is a way between them: "virtio"
    (virtio_xenbus and its daemon) or "stock" (xen-blkfront with xen-blkback on a loop
    device, xen-netfront with xen-netback)."""

    def __init__(self, lab, guest):
        self.dom0, self.guest = lab.dom0, guest

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

    def wait_disk(self, path):
        self.guest.run(["udevadm", "wait", "--initialized=no", "--timeout=120",
                        DISKS[path]], 150)

    def wait_card(self, path):
        """Name of the path's interface, once there is one."""
        driver = "virtio_net" if path == "virtio" else "vif"
        find = (f"for card in /sys/class/net/*; do "
                f"case $card:$(readlink -f $card/device/driver) in */lab0:*) ;; "
                f"*/{driver}) echo ${{card##*/}} ;; esac; done")
        with self.guest.start(["ip", "monitor", "link"]) as changes:
            name = changes.wait_for(lambda: self.guest.run(find).stdout.strip(), 120)
        if not name:
            raise LabError(f"the guest got no {path} card")
        return name

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
    if "virtio" in options.driver:
        dom0.start_daemon(DAEMON, 120)
    guest = dom0.create_guest(
        "bench", memory=options.memory, vcpus=options.vcpus, timeout=900,
        disks=[f"virtio:{options.file}" if path == "virtio" else
               STOCK_DISK.format(file=options.file) for path in options.driver],
        cards=options.driver)
    system = System(lab, guest)
    if "virtio" in options.driver:
        guest.run(["driver"], 300)
    for path in options.driver:
        system.wait_disk(path)
        system.set_up_card(path)
    with network.servers(dom0):
        yield system
