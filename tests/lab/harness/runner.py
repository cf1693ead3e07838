# SPDX-License-Identifier: GPL-2.0
"""Finds the tests, gives them a lab, says how each went."""

import argparse
import concurrent.futures
import contextlib
import importlib
import inspect
import io
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import re
import signal
import sys
import time
import traceback

import support
from vxblab import files
from vxblab.channel import LabError
from vxblab.lab import DAEMON_LOG, Lab

from . import reports

LIMIT = 1200  # seconds one test may take, unless it has a `limit` of its own
LAB_KIB = 3584 << 10  # memory that a lab takes
TAIL = 25  # lines of a console shown at a failure
MESSAGE = 40  # lines of a failure's message said once more at the end


class Failed(Exception):
    """A test failed, for a reason that it could not see itself."""


def discover(directory):
    """Name -> function of all tests, in the order of the files and in them."""
    tests = {}
    for path in sorted(directory.glob("test_*.py")):
        module = importlib.import_module(path.stem)
        for name, function in vars(module).items():
            if name.startswith("test_") and inspect.isfunction(function) \
                    and function.__module__ == path.stem:
                tests[f"{path.stem.removeprefix('test_')}/{name.removeprefix('test_')}"] \
                    = function
    return tests


@contextlib.contextmanager
def limited(seconds):
    """Raise Failed in the block when it takes longer."""
    def expired(_number, frame):
        where = "".join(traceback.format_stack(frame)[-3:])
        raise Failed(f"not done after {seconds} s; it was at:\n{where}")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def clean(lab):
    """Take away what a test left: guests, the daemon and its like, files."""
    for name in lab.dom0.guests():
        lab.dom0.run(["guest", "destroy", name])
    lab.dom0.run("daemon status >/dev/null && daemon stop; "
                 "killall -q qemu-storage-daemon virtiofsd vhost-device-rng "
                 "vhost-device-scsi; umount -q /scratch/*; "
                 "chattr -fR -i /scratch; dmsetup remove_all; losetup -D; "
                 "rmmod vhost_net 2>/dev/null; "
                 "rm -rf /scratch/* /dev/shm/*; ip link set br0 mtu 1500")


def keep(lab, consoles, directory):
    """Save what tells about a failure into directory; returns {name: text}."""
    texts = consoles.texts()
    for name, command in (("dom0-dmesg", "dmesg"), ("daemon", f"cat {DAEMON_LOG}"),
                          ("xl-list", "xl list"), ("xenstore", "xenstore-ls -f"),
                          ("xl-dmesg", "xl dmesg")):
        try:
            texts[name] = lab.dom0.run(command, 20, check=False).stdout
        except LabError as error:
            texts[name] = f"(not to be had: {error})\n"
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (directory / f"{name}.log").write_text(text)
    return texts


def show(texts, trace):
    """Print the ends of what was saved and is short; dom0's is in Xen's console."""
    print(trace.rstrip())
    for name, text in texts.items():
        if name in ("xenstore", "xl-dmesg", "dom0-dmesg"):
            continue
        lines = [line for line in text.splitlines() if line.strip()][-TAIL:]
        if lines:
            print(f"  --- {name}, its end:")
            print("\n".join(f"  | {line}" for line in lines))


def run_one(name, function, lab, options, results, last):
    """Run a test; returns why it failed, None if it passed. What tests share stays for
    the next one of the same file, unless this is the last one or failed."""
    begin = time.monotonic()
    consoles = None
    try:
        lab.up(**options)
        consoles = reports.Consoles(lab)
        with limited(getattr(function, "limit", LIMIT)):
            function(lab)
            if last:
                support.release()
                clean(lab)
        trouble = consoles.trouble(getattr(function, "expected_trouble", None))
        if trouble:
            raise Failed("; ".join(f"{where} reports: {lines[0]}"
                                   for where, lines in trouble.items()))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a test raises is its failure
        reason = str(error).strip() or type(error).__name__
        print(f"FAIL {name}: {reason.splitlines()[0]}", flush=True)
        if consoles:
            texts = keep(lab, consoles, results / name.replace("/", "."))
            show(texts, traceback.format_exc())
        else:
            traceback.print_exc(file=sys.stdout)
        recover(lab)
        return reason
    print(f"PASS {name} ({time.monotonic() - begin:.1f} s)", flush=True)
    return None


def summarise(failed, results):
    """Say once more, where it is found, what failed and why."""
    for name, reason in failed.items():
        print(f"failed: {name}")
        print("\n".join(f"  | {line}" for line in reason.splitlines()[-MESSAGE:]))
    print(f"logs: {results}")


def recover(lab):
    """After a failure: a clean lab, booted anew if it must be."""
    try:
        with limited(180):
            support.give_up()
            clean(lab)
    except (LabError, Failed) as error:
        print(f"  the lab is started anew: {error}", flush=True)
        lab.down()


def run_file(tests, lab, options, results):
    """Run the tests of one file; returns name -> why it failed. What a test prints comes
    in one piece."""
    failed = {}
    for number, (name, function) in enumerate(tests, 1):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            reason = run_one(name, function, lab, options, results, number == len(tests))
        sys.stdout.write(said.getvalue())
        sys.stdout.flush()
        if reason:
            failed[name] = reason
    return failed


def module_of(tests):
    """The module of the tests of one file."""
    return sys.modules[tests[0][1].__module__]


class Worker:
    """A process that runs files of tests in a lab of its own, on a CPU of its own but for
    files that say ALONE. With other options of a lab, which a file has as LAB, it is booted
    anew."""

    lab, options, booted = None, {}, {}

    @classmethod
    def start(cls, names, cpus):
        """In the new process. names, cpus: queues with something for each."""
        cls.lab = Lab(names.get())
        if cpu := cpus.get():
            os.sched_setaffinity(0, cpu)
            # More emulated CPUs than there are here would wait for each other.
            cls.options = {"one_thread": True}

    @classmethod
    def run(cls, tests, results):
        begin = time.monotonic()
        options = {**cls.options, **getattr(module_of(tests), "LAB", {})}
        if cls.booted not in ({}, options):
            cls.lab.down()
        cls.booted = options
        failed = run_file(tests, cls.lab, options, results)
        return failed, time.monotonic() - begin


def workers_for(count):
    """How many labs run side by side: one for each CPU, as far as there is memory."""
    with open("/proc/meminfo", encoding="ascii") as file:
        available = int(re.search(r"^MemAvailable: *(\d+) kB", file.read(), re.M)[1])
    return max(1, min(count, len(os.sched_getaffinity(0)), available // LAB_KIB))


class Durations:
    """How long each file of tests took last time. The longest are begun first."""

    def __init__(self):
        self._path = files.CACHE / "lab" / "durations"
        try:
            self._seconds = json.loads(self._path.read_text("ascii"))
        except (OSError, ValueError):
            self._seconds = {}

    def order(self, groups):
        """Those that are not known come first."""
        return sorted(groups, key=lambda name: -self._seconds.get(name, math.inf))

    def record(self, name, seconds):
        self._seconds[name] = round(seconds)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._seconds), "ascii")


def run_files(groups, jobs, results, keep_labs, alone=False):
    """Run the files of tests, in so many labs; returns name -> why it failed. alone: the
    one lab has all CPUs of the host."""
    durations = Durations()
    context = multiprocessing.get_context("fork")
    names, cpus = context.Queue(), context.Queue()
    base = os.environ.get("VXB_LAB", "check")
    labs = [base if jobs == 1 else f"{base}-{number}" for number in range(jobs)]
    for name, cpu in zip(labs, itertools.cycle(sorted(os.sched_getaffinity(0)))):
        names.put(name)
        cpus.put(None if alone else {cpu})
    failed = {}
    try:
        with concurrent.futures.ProcessPoolExecutor(
                jobs, context, Worker.start, (names, cpus)) as pool:
            running = {pool.submit(Worker.run, groups[name], results): name
                       for name in durations.order(groups)}
            for done in concurrent.futures.as_completed(running):
                reasons, seconds = done.result()
                failed |= reasons
                if not reasons and len(groups) > 1:
                    durations.record(running[done], seconds)
    finally:
        if not keep_labs:
            for name in labs:
                Lab(name).down()
    return failed


def run_all(tests, jobs, results, keep_labs):
    """Run all tests; returns name -> why it failed. Those of files that say ALONE come
    last, in one lab that has all CPUs of the host."""
    groups, alone = {}, {}
    for file, group in itertools.groupby(tests.items(), lambda item: item[0].split("/")[0]):
        group = list(group)
        part = alone if getattr(module_of(group), "ALONE", False) else groups
        part[file] = group
    failed = {}
    if groups:
        failed |= run_files(groups, jobs, results, keep_labs)
    if alone:
        failed |= run_files(alone, 1, results, keep_labs, alone=True)
    return failed


def main(directory):
    parser = argparse.ArgumentParser(prog="tests/lab/run", description=__doc__)
    parser.add_argument("--filter", default="", metavar="REGEX",
                        help="only tests whose name contains it")
    parser.add_argument("--list", action="store_true", help="only name the tests")
    parser.add_argument("--jobs", type=int, metavar="N",
                        help="labs side by side; without it, one for each CPU")
    parser.add_argument("--keep", action="store_true",
                        help="leave the lab running; there is but one")
    parser.add_argument("--results", type=pathlib.Path,
                        default=directory.parents[1] / "build" / "lab-results",
                        help="where logs of failed tests go")
    options = parser.parse_args()
    tests = {name: function for name, function in discover(directory).items()
             if re.search(options.filter, name)}
    if options.list:
        print("\n".join(tests))
        return 0
    if not tests:
        print(f"no test matches {options.filter!r}", file=sys.stderr)
        return 1
    # Killed or interrupted, the lab goes all the same.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = options.results / time.strftime("%Y%m%d-%H%M%S")
    count = len({name.split("/")[0] for name in tests})
    jobs = options.jobs or (1 if options.keep else workers_for(count))
    failed = run_all(tests, jobs, results, options.keep)
    if failed:
        summarise(failed, results)
    print(f"{len(tests) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0
