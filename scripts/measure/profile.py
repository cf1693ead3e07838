# SPDX-License-Identifier: GPL-2.0
"""Where the instructions of one test go, seen from outside: QEMU is stopped again and
again, and asked what its processor is at.

Nothing in the machine knows of it: with time that counts instructions the clock
stands as long as QEMU is stopped. Samples come at random moments of the host's time,
so what is dear to emulate (page table changes, segment loads) counts for more than
its instructions.
"""

import collections
import json
import random
import re
import socket
import time

from vxblab.lab import LabError

from . import session, symbols, system

XEN = range(0xffff800000000000, 0xffff880000000000)  # of a PV guest's address space
FOREVER = 100000  # seconds


class Monitor:
    """QEMU's machine protocol."""

    def __init__(self, directory):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(f"{directory}/qmp.sock")
        self._file = self._socket.makefile("rw", encoding="utf-8")
        self._file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command, **arguments):
        json.dump({"execute": command, "arguments": arguments}, self._file)
        self._file.write("\n")
        self._file.flush()
        for line in self._file:
            answer = json.loads(line)
            if "error" in answer:
                raise LabError(f"QEMU's {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise LabError("QEMU ended")

    def registers(self):
        """Of each processor that is not halted: (RIP, CR3, CPL)."""
        self.execute("stop")
        text = self.execute("human-monitor-command", **{"command-line": "info registers -a"})
        self.execute("cont")
        return [(int(rip, 16), int(cr3, 16), int(cpl)) for rip, cpl, halted, cr3 in
                re.findall(r"RIP=(\w+) .*CPL=(\d).*HLT=(\d)(?s:.*?)CR3=(\w+)", text)
                if halted == "0"]


class Places:
    """Tells whose an address is."""

    def __init__(self, machine):
        dom0, guest = machine.dom0, machine.guest
        def symbols_of(each, path):
            return symbols.of_kallsyms(each.run(["cat", path], 600).stdout)

        self._kernels = {"dom0": symbols_of(dom0, "/proc/kallsyms"),
                         "guest": symbols_of(guest, "/proc/kallsyms")}
        self._xen = symbols_of(dom0, "/proc/xen/xensyms")
        self._programs = {"dom0": symbols.Programs(dom0), "guest": symbols.Programs(guest)}
        dump = dom0.run(["xen-mfndump", "dump-p2m", guest.domid], 600).stdout
        self._guest_frames = {int(frame, 16) for frame in re.findall(r"mfn=0x(\w+)", dump)}

    def find(self, rip, cr3, cpl):
        """(place, function). Page tables of a PV domain are its own memory, so their
        root tells the domain; Xen runs on those of the domain it works for."""
        domain = "guest" if cr3 >> 12 in self._guest_frames else "dom0"
        if cpl == 0 or rip in XEN:
            return f"Xen, for {domain}", self._xen.name(rip)
        if rip > XEN[-1]:
            return f"{domain} kernel", self._kernels[domain].name(rip)
        program, function = self._programs[domain].find(rip)
        return f"{domain}: {program}", function


def counters(machine):
    """Counted since boot, by name; the guest's clock among them, in seconds."""
    found = {"time": float(machine.guest.run(["cat", "/proc/uptime"]).stdout.split()[0])}
    for place, each in (("dom0", machine.dom0), ("guest", machine.guest)):
        text = each.run(["cat", "/proc/stat"]).stdout
        for what, key in (("interrupts", "intr"), ("context switches", "ctxt")):
            found[f"{what} of {place}"] = int(
                re.search(rf"^{key} (\d+)", text, re.M)[1])
    return found


def sample(monitor, places, process, number):
    """Counter of (place, function) over `number` samples while process runs."""
    found = collections.Counter()
    stops = 0
    while found.total() < number:
        if process.poll() is not None or stops > 20 * number:
            raise LabError(f"the test does not run on:\n{process.stderr.decode()}")
        time.sleep(random.uniform(0.0005, 0.003))  # of the host, to be out of step
        found.update(places.find(*each) for each in monitor.registers())
        stops += 1
    return found


def lines(case, found, rate, events):
    """The report. rate: operations per second of the machine's time. events: of
    counters(), per second."""
    total = found.total()
    each = 1e9 / rate
    places = collections.Counter()
    for (place, _), count in found.items():
        places[place] += count
    yield f"{each:.0f} instructions per {case.operation}; of these, by place:"
    for place, count in places.most_common():
        if count * 200 >= total:
            yield f"{count / total:7.1%} {count / total * each:9.0f}  {place}"
    yield "by function:"
    for (place, function), count in found.most_common(50):
        yield f"{count / total:7.1%} {count / total * each:9.0f}  {place:24} {function}"
    yield f"per {case.operation}:"
    for name, number in events.items():
        yield f"{number / rate:17.2f}  {name}"


def show(case, options):
    """Profile a test on each driver asked for, under a clock of instructions."""
    for path in options.driver:
        if path not in case.paths:
            continue
        with session.booted("bench", icount=True) as lab, \
             system.made(lab, options) as machine:
            session.say(f"{case.name} on {path}: Xen, dom0 and the guest are up")
            output = machine.run(case.command(machine, path, options.virtual))
            rate = case.operations(case.value(output))
            with machine.guest.start(case.command(machine, path, FOREVER)) as process:
                places = Places(machine)
                before = counters(machine)
                machine.guest.run(["sleep", "1"], 900)  # of the time that counts
                after = counters(machine)
                session.say(f"taking {options.samples} samples")
                found = sample(Monitor(lab.directory), places, process, options.samples)
        seconds = after.pop("time") - before["time"]
        events = {name: (count - before[name]) / seconds for name, count in after.items()}
        print(f"\n{case.name} on {path}")
        print(*lines(case, found, rate, events), sep="\n")
    return 0
