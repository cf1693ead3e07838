# SPDX-License-Identifier: GPL-2.0
"""CPUs come and go, and stand still, while all queues of a disk and a card are used."""

import concurrent.futures
import time

from basics import verified
from net import BRIDGES, Traffic, connect, transfer
from resources import nothing_left
from support import Setup, cards, images, value

ALL, SOME = "0-3", "0-1"
PAUSE = 15  # seconds
# What the kernel keeps for a CPU, and what a load leaves at hand, is a few MiB: the guest's
# memory is not counted here.
CPUS = Setup(cards("cpus"),
             # Without persistent grants of the guest's root disk, whose number depends on what
             # has been read from it.
             "echo N >/sys/module/xen_blkback/parameters/feature_persistent; "
             + images("cpus.img", size="64M"),
             cpus={"disks": ["virtio:/scratch/cpus.img"], "cards": ["virtio"], "vcpus": 2,
                   "xl": ["maxvcpus = 4"]})


def wait_cpus(guest, wanted):
    """Wait until these CPUs are online. Sysfs tells nobody, so it is looked at."""
    guest.run("for _ in {1..600}; do [ $(cat /sys/devices/system/cpu/online) != "
              f"{wanted} ] || exit 0; sleep 0.1; done; exit 1", 90)


def send_from_each_cpu(guest):
    """A card sends through the queue of the CPU that sends."""
    guest.run("for cpu in $(ls -d /sys/bus/cpu/devices/cpu*); do number=${cpu##*cpu}; "
              "[ $(cat $cpu/online 2>/dev/null || echo 1) = 0 ] || "
              f"taskset -c $number ping -q -f -c 20 {BRIDGES['eth0']} || exit; done", 120)


def test_cpus_come_and_go(lab):
    """By xl vcpu-set and by sysfs: no request and no packet waits for a CPU that is gone."""
    with CPUS(lab) as guest:
        connect(guest, devices=("eth0",))
        assert len(guest.run(["ls", "/sys/block/vda/mq"]).stdout.split()) == 4
        wait_cpus(guest, SOME)
        with nothing_left(lab, guest, memory=False), verified(guest), \
                Traffic(lab, guest, "eth0", "both", 30, "-b", "20M") as traffic:
            traffic.wait_flow()
            for _ in range(2):
                lab.dom0.run(["xl", "vcpu-set", "cpus", "4"])
                guest.run("for _ in {1..600}; do for cpu in 2 3; do "
                          "echo 1 >/sys/devices/system/cpu/cpu$cpu/online; done 2>/dev/null && "
                          "exit 0; sleep 0.1; done; exit 1", 90)
                wait_cpus(guest, ALL)
                send_from_each_cpu(guest)
                guest.run("echo 0 >/sys/devices/system/cpu/cpu1/online")
                send_from_each_cpu(guest)
                guest.run("echo 1 >/sys/devices/system/cpu/cpu1/online")
                lab.dom0.run(["xl", "vcpu-set", "cpus", "2"])
                wait_cpus(guest, SOME)
                send_from_each_cpu(guest)
            traffic.check()


def test_long_pause(lab):
    """xl pause: everything stands still, and goes on as if nothing had been."""
    with CPUS(lab) as guest:
        connect(guest, devices=("eth0",))
        with nothing_left(lab, guest, memory=False), verified(guest), \
                concurrent.futures.ThreadPoolExecutor() as pool:
            tap = f"/sys/class/net/vx{guest.domid}.0/statistics/rx_bytes"
            some = int(value(lab.dom0, tap)) + (8 << 20)
            file = pool.submit(transfer, guest, lab.dom0, BRIDGES["eth0"], 128)
            lab.dom0.run(f"until [ $(cat {tap}) -gt {some} ]; do :; done", 60)
            lab.dom0.run(["xl", "pause", "cpus"])
            at_first = value(lab.dom0, tap)
            # What is tested is that time passes.
            time.sleep(PAUSE)
            assert value(lab.dom0, tap) == at_first
            lab.dom0.run(["xl", "unpause", "cpus"])
            file.result()
        assert value(guest, "/sys/class/net/eth0/carrier") == "1"
