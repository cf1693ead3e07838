# SPDX-License-Identifier: GPL-2.0
"""What several test files need: guests that tests share, and the tools run in them."""

import concurrent.futures
import contextlib
import functools
import io
import json
import pathlib
import re
import shlex
import string
import tarfile
import time

from vxblab.lab import DAEMON_LOG, LabError

# The lab of a file that has this as LAB. With more CPUs in one thread PVH and HVM guests do
# not get through their boot, and with a thread for each the emulator was seen to fail.
ONE_CPU = {"cpus": 1}
SCRIPTS = pathlib.Path(__file__).parent / "guest"


class Setup:
    """A daemon with its configuration and guests, made when a test first uses them
    and kept for the next tests that do:

        with DISK(lab) as guest:

    Several guests come as a tuple. What a failed test used is not used again, and
    one Setup ends before another one begins.

    guests: name -> options of Dom0.create_guest, and "driver": parameters of the
    module, None to leave it unloaded. prepare: shell command for dom0 before.
    """

    _current = None

    def __init__(self, config="", prepare="true", /, **guests):
        self.config, self.prepare, self.options = config, prepare, guests
        self._held = None
        self._guests = ()

    @contextlib.contextmanager
    def __call__(self, lab):
        if Setup._current is not self:
            release()
            Setup._current = self
            try:
                self._make(lab)
            except BaseException:
                give_up()
                raise
        try:
            yield self._guests[0] if len(self._guests) == 1 else self._guests
            lab.dom0.run(["daemon", "status"])
        except BaseException:
            give_up()
            raise

    def _make(self, lab):
        self._held = contextlib.ExitStack()
        lab.dom0.run(self.prepare)
        lab.dom0.start_daemon(self.config)
        self._held.callback(lab.dom0.stop_daemon)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            self._guests = tuple(pool.map(
                lambda item: self._held.enter_context(guest(lab, item[0], **item[1])),
                self.options.items()))


def add_test(module, name, test):
    """Add a test to a module, whose globals() are given. It is found by its name from
    then on, in other processes too."""
    test.__name__ = test.__qualname__ = f"test_{name}"
    module[test.__name__] = test


def release():
    """End what the last test has left for the next one."""
    setup, Setup._current = Setup._current, None
    if setup and setup._held:
        held, setup._held = setup._held, None
        held.close()


def give_up():
    """As release(), after an error, which is the one to be told of."""
    with contextlib.suppress(LabError):
        release()


def create(lab, name, options):
    """A guest. One that does not boot, with stock drivers alone, says nothing about ours:
    its console is shown, and there is a second try. If ours is built in, there is none."""
    try:
        return lab.dom0.create_guest(name, **options)
    except LabError as error:
        if "does not come up" not in str(error) or options.get("kernel") == "in-tree-y":
            raise
        print(f"  booted once more: {error}", flush=True)
        return lab.dom0.create_guest(name, **options)


@contextlib.contextmanager
def guest(lab, name, driver=(), **options):
    """A guest with the drivers loaded and its devices there, destroyed in the end."""
    one = create(lab, name, options)
    try:
        if driver is not None:
            one.run(["driver", *driver])
            appears(one, *devices(options))
            name_cards(one)
        yield one
    finally:
        one.destroy()


def name_cards(guest):
    """Call the guest's cards eth0, eth1, ... in the order of their devices. The kernel counts
    them in the order in which their backends were ready."""
    links = guest.run("cd /sys/class/net && for name in *; do "
                      "echo $name $(readlink -f $name/device); done").stdout
    cards_ = sorted((int(match[2]), match[1]) for match in
                    re.finditer(r"^(\S+) .*/virtio-(\d+)/virtio\d+$", links, re.M))
    names = [name for _, name in cards_]
    if names != sorted(names):
        guest.run(" && ".join(f"ip link set {old} name {new}" for old, new in
                              [(name, f"card{name}") for name in names]
                              + [(f"card{name}", f"eth{number}")
                                 for number, name in enumerate(names)]))


def devices(options):
    """The devices that a guest made with these options gets from the driver."""
    disks, cards_ = ([spec for spec in options.get(kind, ())
                      if spec.partition(":")[0] == "virtio"] for kind in ("disks", "cards"))
    return [*(f"/dev/vd{letter}" for letter, _ in zip(string.ascii_lowercase, disks)),
            *(f"/sys/class/net/eth{number}" for number, _ in enumerate(cards_))]


@contextlib.contextmanager
def daemon(lab, config=""):
    """The daemon, ended in the end."""
    lab.dom0.start_daemon(config)
    try:
        yield
    finally:
        lab.dom0.run("! daemon status || daemon stop")


def images(*names, size="512M"):
    """A shell command that makes empty sparse files in dom0's /scratch."""
    paths = " ".join(f"/scratch/{name}" for name in names)
    return f"rm -f {paths} && truncate -s {size} {paths}"


def cards(name, count=1, first=0, settings='bridge = "br0"'):
    """The daemon's configuration for `count` virtio devices of guest `name`, all cards."""
    return "".join(f'[[device]]\ndomain = "{name}"\ndevice = {number}\n'
                   f"net = {{ {settings} }}\n" for number in range(first, first + count))


@functools.cache
def _scripts():
    """The scripts of tests/lab/guest as a tar archive."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for path in sorted(SCRIPTS.iterdir()):
            if path.is_file():
                archive.add(path, path.name)
    return data.getvalue()


def script(machine, name, *arguments, timeout=120, **options):
    """Run a script of tests/lab/guest; returns what it writes."""
    return machine.run([_installed(machine, name), *arguments], timeout, **options).stdout


def started(machine, name, *arguments):
    """Start a script of tests/lab/guest; returns its channel.Process."""
    return machine.start([_installed(machine, name), *arguments])


def _installed(machine, name):
    """Where a script of tests/lab/guest is on a machine, after this."""
    machine.run("mkdir -p /tmp/tests && tar -xC /tmp/tests", stdin=_scripts())
    return f"/tmp/tests/{name}"


def value(machine, path):
    """The text in a file of sysfs or procfs."""
    return machine.run(["cat", path]).stdout.strip()


def appears(guest, *paths, timeout=120):
    """Wait until devices are there: paths in /dev or /sys."""
    script(guest, "devices.py", timeout, *paths, timeout=timeout + 30)


def vanishes(guest, *paths, timeout=120):
    """Wait until devices are gone."""
    script(guest, "devices.py", "--gone", timeout, *paths, timeout=timeout + 30)


def rebind(guest, driver, device, path):
    """Take a device from its driver and give it back; path is what it makes."""
    guest.run(f"echo {device} >{driver}/unbind")
    vanishes(guest, path)
    guest.run(f"echo {device} >{driver}/bind")
    appears(guest, path)


def interrupt_lines(guest, what):
    """Name -> (IRQ number, [interrupts so far on each CPU]), of those whose name contains
    `what`."""
    heading, *lines = guest.run(["cat", "/proc/interrupts"]).stdout.splitlines()
    cpus = len(heading.split())
    return {words[-1]: (int(words[0].rstrip(":")), [int(word) for word in words[1:cpus + 1]])
            for words in map(str.split, lines)
            if words and words[0].rstrip(":").isdigit() and what in words[-1]}


def interrupts(guest, what):
    """Name -> number of interrupts so far, of those whose name contains `what`."""
    return {name: sum(counts) for name, (_, counts) in interrupt_lines(guest, what).items()}


def wait_store(dom0, path, wanted, timeout=60):
    """Wait until a xenstore node has a value, an extended regular expression; returns
    the value. Each change of the node is looked at."""
    with dom0.start(["xenstore-watch", path]) as watch:
        deadline = time.monotonic() + timeout
        events = 0
        while (left := deadline - time.monotonic()) > 0:
            if not watch.wait_for(lambda: watch.stdout.count(b"\n") > events, left):
                break
            events = watch.stdout.count(b"\n")
            done = dom0.run(["xenstore-read", path], check=False)
            if done.returncode == 0 and re.fullmatch(wanted, done.stdout.rstrip("\n"), re.S):
                return done.stdout.rstrip("\n")
    text = dom0.run(["xenstore-read", path], check=False).stdout
    raise LabError(f"waited {timeout} s for {path} to be {wanted}: it is {text!r}")


def sha256(machine, path, timeout=120):
    """Checksum of a file or device, read past the page cache."""
    return machine.run(f"set -o pipefail; dd if={shlex.quote(path)} bs=1M iflag=direct "
                       "status=none | sha256sum", timeout).stdout.split()[0]


def fio(guest, *arguments, timeout=300, **options):
    """Run fio with one job; returns what it says of that job."""
    words = [f"--{key}={value}" for key, value in options.items()]
    text = guest.run(["fio", "--name=test", "--output-format=json", *words, *arguments],
                     timeout).stdout
    job, = json.loads(text[text.index("{"):])["jobs"]
    assert job["error"] == 0, job
    return job


def log_since(dom0, start):
    """The daemon's log from byte `start` on."""
    return dom0.run(["tail", "-c", f"+{start + 1}", DAEMON_LOG]).stdout


def wait_log(dom0, start, text, timeout=60):
    """Wait until `text` stands in the daemon's log after byte `start`."""
    with dom0.start(["tail", "-c", f"+{start + 1}", "-F", DAEMON_LOG]) as log:
        log.wait_output(text, timeout)


def log_size(dom0):
    """Where the daemon's log ends now, in bytes."""
    return int(dom0.run(["stat", "-c", "%s", DAEMON_LOG]).stdout)
