# SPDX-License-Identifier: GPL-2.0
"""Interrupts of the queues of a guest with 4 CPUs: where they are handled; channels of a
card that come and go."""

import concurrent.futures
import contextlib
import re

from net import BRIDGES, Traffic, connect
from support import ONE_CPU, Setup, add_test, cards, fio, images, interrupt_lines, value

LAB = ONE_CPU
CPUS = 4
RING_RESET = 40  # feature bit
# What the queues with data are called: a disk's and a card's.
QUEUES = re.compile(r"-(req|input|output)\.(\d)$")
GUESTS = {kind: Setup(cards(kind), images("affinity.img"),
                      **{kind: {"type": kind, "disks": ["virtio:/scratch/affinity.img"],
                                "cards": ["virtio"], "vcpus": CPUS}})
          for kind in ("pv", "pvh")}


def lines(guest):
    """The interrupts of queues with data: name -> (IRQ number, counts)."""
    found = {name: line for name, line in interrupt_lines(guest, "virtio").items()
             if QUEUES.search(name)}
    assert len(found) == 3 * CPUS, found
    return found


def ping_from_each_cpu(guest):
    """A card sends through the queue of the CPU that sends (XPS); which queue receives is
    the backend's choice."""
    guest.run(f"for cpu in {{0..{CPUS - 1}}}; do taskset -c $cpu ping -q -f -c 50 "
              f"{BRIDGES['eth0']} || exit; done", 120)


def load(lab, guest):
    """Use all queues of the disk and of the card, which gets acknowledgements of what it
    sends; returns name -> interrupts of that on each CPU."""
    before = lines(guest)
    with concurrent.futures.ThreadPoolExecutor() as pool, \
            Traffic(lab, guest, "eth0", "send", 4, streams=16) as traffic:
        disk = pool.submit(fio, guest, filename="/dev/vda", rw="randread", bs="4k",
                           ioengine="libaio", direct=1, iodepth=4, numjobs=CPUS, size="2M",
                           cpus_allowed=f"0-{CPUS - 1}", cpus_allowed_policy="split",
                           group_reporting=1)
        ping_from_each_cpu(guest)
        traffic.check()
        disk.result()
    after = lines(guest)
    grown = {name: [later - earlier for earlier, later in zip(before[name][1], counts)]
             for name, (_, counts) in after.items()}
    idle = [name for name, counts in grown.items() if not any(counts)]
    assert not idle, f"no interrupt of {idle}: {grown}"
    return grown


@contextlib.contextmanager
def kept_affinity(guest):
    """The CPUs that interrupts may go to are in the end what they were."""
    was = {number: value(guest, f"/proc/irq/{number}/smp_affinity_list")
           for number, _ in lines(guest).values()}
    yield was
    guest.run("; ".join(f"echo {cpus} >/proc/irq/{number}/smp_affinity_list"
                        for number, cpus in was.items()))


def spread(lab, guest):
    """The queues of a kind have their interrupts on different CPUs."""
    connect(guest, devices=("eth0",))
    cpus = {}
    for name, counts in load(lab, guest).items():
        used = [cpu for cpu, count in enumerate(counts) if count]
        assert len(used) == 1, f"{name}: interrupts on CPUs {used}: {counts}"
        cpus.setdefault(QUEUES.search(name)[1], set()).update(used)
    assert cpus == {kind: set(range(CPUS)) for kind in ("req", "input", "output")}, cpus


def follow(lab, guest):
    """Interrupts are handled on the CPU that smp_affinity_list says, and only there."""
    connect(guest, devices=("eth0",))
    with kept_affinity(guest) as numbers:
        for cpu in (3, 1):
            guest.run("; ".join(f"echo {cpu} >/proc/irq/{number}/smp_affinity_list"
                                for number in numbers))
            for name, counts in load(lab, guest).items():
                counts.pop(cpu)
                assert not any(counts), f"{name}: on others than CPU {cpu}: {counts}"


def channels(lab, guest):
    """ethtool -L while data flows: so many queues are in use, and the data goes on."""
    connect(guest, devices=("eth0",))
    with Traffic(lab, guest, "eth0", "send", 20, streams=2) as traffic:
        for number in (1, 3, 2, 4):
            guest.run(["ethtool", "-L", "eth0", "combined", number])
            text = guest.run(["ethtool", "-l", "eth0"]).stdout
            assert re.findall(r"Combined:\s*(\d+)", text) == [str(CPUS), str(number)], text
            before = lines(guest)
            ping_from_each_cpu(guest)
            used = {QUEUES.search(name).groups() for name, line in lines(guest).items()
                    if line != before[name]}
            for kind in ("input", "output"):
                numbers = {int(queue) for other, queue in used if other == kind}
                assert max(numbers) < number, (number, used)
        traffic.check()


def ring_sizes(_lab, guest):
    """ethtool -G needs a feature that the driver does not take, and fails; the card goes
    on as it was."""
    assert value(guest, "/sys/class/net/eth0/device/features")[RING_RESET] == "0"
    before = guest.run(["ethtool", "-g", "eth0"]).stdout
    assert guest.run(["ethtool", "-G", "eth0", "rx", "64"], check=False).returncode
    assert guest.run(["ethtool", "-g", "eth0"]).stdout == before
    connect(guest, devices=("eth0",))
    guest.run(["ping", "-q", "-c", 3, "-W", 10, BRIDGES["eth0"]])


def affinity_test(kind, what):
    """The test of `what` in a guest of type `kind`."""
    def test(lab):
        with GUESTS[kind](lab) as guest:
            what(lab, guest)
    test.__doc__ = what.__doc__
    return test


for _kind in GUESTS:
    for _what in (spread, follow, channels, ring_sizes):
        add_test(globals(), f"{_kind}_{_what.__name__}", affinity_test(_kind, _what))
