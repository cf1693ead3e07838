# SPDX-License-Identifier: GPL-2.0
"""The lab for its users: Lab, Dom0, Guest."""

import fcntl
import json
import os
import pathlib
import re
import time

from . import files, kernel, qemu
from .channel import LabError
from .machine import Machine

# More CPUs than the host has: a guest's CPUs that wait for each other spin, and must
# then not wait for their turn in the hypervisor as well.
OPTIONS = {"memory": 3072, "cpus": 4, "dom0_memory": 1024, "dom0_vcpus": 1,
           "one_thread": False, "icount": False, "tree": "lab", "disks": []}
DAEMON_LOG = "/var/log/virtio-xenbusd.log"


def payload_directory():
    """What dom0 and the guests see at /payload."""
    return pathlib.Path(os.environ.get("VXB_PAYLOAD",
                                       files.SCRIPTS.parent / "build" / "payload"))


def tail(path, size=3000):
    """The end of a console's log, as text."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return f"({path}: nothing)\n"
    return re.sub(r"\r*\n\s*\n*", "\n", text)


class Guest(Machine):
    """A running guest. Made by Dom0.create_guest or Lab.guest."""

    def __init__(self, dom0, name):
        # Not by the guest command: to start Python there takes a second.
        state = dom0.run(["cat", f"/var/lib/lab/{name}.json"], check=False)
        if state.returncode:
            raise LabError(f"there is no guest {name}")
        agent = json.loads(state.stdout)["agent"]
        super().__init__(name, dom0._address, dom0._token, (agent,))
        self.dom0 = dom0

    @property
    def domid(self):
        """The domain's number, anew each time: it changes when the domain is restored."""
        return int(self.dom0.run(["xl", "domid", self.name]).stdout)

    @property
    def console_log(self):
        """The host's file with all the console said."""
        return self.dom0.lab.directory / "share" / "consoles" / f"guest-{self.name}.log"

    def wait_console(self, pattern, timeout):
        """Wait until the console's log matches the regular expression; returns the
        match. The console of a guest without agent is the only sign of life."""
        deadline = time.monotonic() + timeout
        with self.dom0.start(["tail", "-n", "+1", "-F",
                              f"/host/consoles/{self.console_log.name}"]) as log:
            found = log.wait_for(
                lambda: re.search(pattern, log.stdout.decode(errors="replace")),
                deadline - time.monotonic())
        if not found:
            raise LabError(f"{self.name}: waited {timeout} s for {pattern!r} on its "
                           f"console, which says:\n{tail(self.console_log)}")
        return found

    def type(self, text):
        """Type text on the console. Nothing is awaited."""
        path = f"/local/domain/{self.domid}/console/tty"
        self.dom0.run(f'cat >"$(xenstore-read {path})"', stdin=text)

    def destroy(self):
        self.dom0.run(["guest", "destroy", self.name])


class Dom0(Machine):
    """The control domain of a running lab."""

    def __init__(self, lab, address, token):
        super().__init__("dom0", address, token)
        self.lab = lab

    def create_guest(self, name, *, type="pv", memory=512, vcpus=1, kernel="stock",
                     root=None, disks=(), cards=(), xl=(), append="", agent=True,
                     paused=False, timeout=240):
        """Create a guest and wait until its init is done; returns the Guest.

        root, disks, cards, xl: as `lab guest create` has --root, --disk, --card and
        --xl."""
        words = ["--type", type, "--memory", memory, "--vcpus", vcpus,
                 "--kernel", self.lab.kernel(kernel), f"--append={append}",
                 "--boot-timeout", timeout]
        for option, values in (("disk", disks), ("card", cards), ("xl", xl)):
            words += [f"--{option}={value}" for value in values]
        words += [f"--root={root}"] * bool(root)
        words += ["--paused"] * paused + ["--no-agent"] * (not agent)
        self.run(["guest", "create", *words, name], timeout + 60)
        return Guest(self, name)

    def guests(self):
        """Names of the guests there are."""
        names = self.run("cd /var/lib/lab 2>/dev/null && ls -- *.json", check=False).stdout
        return [name.removesuffix(".json") for name in names.split()]

    def start_daemon(self, config, timeout=120):
        """Write `config` (text) to a file, start the payload's daemon on it and wait
        until it is ready. Its log is DAEMON_LOG."""
        path = "/etc/virtio-xenbusd.toml"
        self.push(config.encode(), path)
        self.run(["daemon", "start", path], timeout)

    def stop_daemon(self, number=15, timeout=120):
        """End the daemon with signal `number` and wait until it is gone. The command has a
        shorter limit of its own, so that at the end of this one it is dom0 that does not get
        on."""
        self.run(["daemon", "stop", number], timeout)


class Lab:
    """An instance of the lab: one QEMU with Xen, dom0 and the guests in it."""

    def __init__(self, name=None):
        self.name = name or os.environ.get("VXB_LAB", "default")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise LabError(f"{self.name!r} is no name for a lab: letters, digits, _ . -")
        self.directory = files.CACHE / "lab" / self.name
        if len(os.fsencode(self.directory)) > 90:
            raise LabError(f"{self.directory}: too long for the sockets in it; set "
                           "VXB_CACHE to a shorter path")
        self._kernels = {}
        self._dom0 = None

    @property
    def running(self):
        return qemu.pid(self.directory) is not None

    def up(self, timeout=300, **options):
        """Boot, unless it runs. options: see OPTIONS. Returns self."""
        unknown = set(options) - set(OPTIONS)
        if unknown:
            raise LabError(f"no such option of a lab: {', '.join(sorted(unknown))}")
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{self.directory}.lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            ready = self.directory / "ready"
            if self.running and ready.exists():
                self._same(options)
                return self
            self.down()  # what an interrupted start has left
            files.remove(self.directory)
            self.directory.mkdir()
            qemu.start(self.directory, payload_directory(), {**OPTIONS, **options})
            self._wait_ready(timeout)
        return self

    def _wait_ready(self, timeout):
        """Wait until dom0's agent listens; if it does not, end the machine."""
        ready = self.directory / "ready"
        try:
            qemu.wait_ready(self.directory, timeout)
            ready.touch()
        except LabError as error:
            text = tail(self.directory / "xen.log")
            raise LabError(f"{error}; its console:\n{text}") from None
        finally:
            if not ready.exists():
                qemu.stop(self.directory)

    def reboot(self, timeout=300):
        """Reboot dom0, whose tree has systemd; what it has written is kept."""
        (self.directory / "ready").unlink()
        with qemu.process(self.directory) as machine:
            self.dom0.start(["systemctl", "reboot"])
            if not qemu.ended(machine, timeout):
                raise LabError(f"dom0 had not gone down {timeout} s after systemctl reboot; "
                               f"its console:\n{tail(self.directory / 'xen.log')}")
        qemu.launch(self.directory)
        self._wait_ready(timeout)

    def _same(self, options):
        """Raise LabError unless the running instance was booted with these options."""
        state = json.loads((self.directory / "state").read_text())
        for name, value in options.items():
            if state[name] != value:
                raise LabError(f"the lab '{self.name}' runs with {name} {state[name]}, "
                               f"not {value}; lab down first")

    def down(self):
        """End it. Logs stay until the next up."""
        qemu.stop(self.directory)
        files.remove(self.directory / "scratch")
        self._dom0 = None

    @property
    def dom0(self):
        if self._dom0 is None:
            if not self.running:
                raise LabError(f"the lab '{self.name}' does not run; lab up")
            state = json.loads((self.directory / "state").read_text())
            token = (self.directory / "token").read_text()
            self._dom0 = Dom0(self, ("127.0.0.1", state["port"]), token)
        return self._dom0

    def guest(self, name):
        """The guest `name`, which runs already."""
        return Guest(self.dom0, name)

    def kernel(self, name):
        """The name under /kernels of a kernel: see `lab guest create --kernel`."""
        if name not in self._kernels:
            self._kernels[name] = kernel.find(name)
        return self._kernels[name]

    def console_logs(self):
        """Console name -> log file, of all there has been since up."""
        logs = {"xen": self.directory / "xen.log"}
        for path in sorted((self.directory / "share" / "consoles").glob("guest-*.log")):
            logs[path.stem.removeprefix("guest-")] = path
        return logs
