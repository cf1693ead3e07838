# SPDX-License-Identifier: GPL-2.0
"""Guests, as seen from dom0, where this runs: guest create|run|destroy|list.

Every guest has dom0's root file system with a layer of its own in memory, the files
of /lab and /payload as they are at its creation, and, unless told otherwise, a stock
network card to dom0 for its agent.
"""

import argparse
import fcntl
import json
import os
import pathlib
import re
import select
import subprocess
import sys
import time

from . import channel, cpio, wire

STATE = pathlib.Path("/var/lib/lab")
KERNELS = pathlib.Path("/kernels")
CONSOLES = pathlib.Path("/host/consoles")
TOKEN = pathlib.Path("/lab/token")
HOTPLUG = "/lab/target/hotplug"
NETWORK = "10.77.0."
# Behind all disks of tests. The first disks of an HVM guest are emulated too, and not
# those after them.
ROOT = "xvdz"
LabError = channel.LabError


def add_create_options(parser, name=None):
    """name: fixed, for a guest that its user need not name."""
    if name:
        parser.set_defaults(name=name, root=None)
    else:
        parser.add_argument("name", help="the domain's name")
        parser.add_argument("--root", metavar="DISK",
                            help="a disk, as for --disk, with root file system and /lab: "
                                 "no initrd, no stock device; the first card is lab0")
    parser.add_argument("--type", choices=("pv", "pvh", "hvm"), default="pv")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB")
    parser.add_argument("--vcpus", type=int, default=1)
    parser.add_argument("--kernel", default="stock",
                        help="stock, debug, in-tree-y, in-tree-m, a Debian tree with a "
                             "kernel, or a directory with vmlinuz and modules/")
    parser.add_argument("--disk", action="append", default=[],
                        help="virtio:PATH[,ro], stock:PATH[,ro], or a disk as in xl.cfg")
    parser.add_argument("--card", action="append", default=[],
                        help="virtio, stock[:BRIDGE], or a vif/virtio device as in xl.cfg")
    parser.add_argument("--xl", action="append", default=[], metavar="LINE",
                        help="a line for xl.cfg")
    parser.add_argument("--append", default="", help="more kernel parameters")
    parser.add_argument("--no-agent", action="store_true",
                        help="without network card and agent: only a console")
    parser.add_argument("--paused", action="store_true", help="leave it paused")
    parser.add_argument("--boot-timeout", type=float, default=180, metavar="S",
                        help="seconds until its init must be done")


def disk_line(spec, index):
    """An entry of xl.cfg's disk list."""
    if "=" in spec:
        return spec
    kind, _, rest = spec.partition(":")
    path, _, mode = rest.partition(",")
    if kind not in ("virtio", "stock") or not path or mode not in ("", "ro", "rw"):
        raise LabError(f"--disk {spec}: must be virtio:PATH[,ro], stock:PATH[,ro] or an "
                       "entry of xl.cfg's disk list")
    line = f"format=raw,vdev=xvd{chr(ord('a') + index)},access={mode or 'rw'},"
    if kind == "virtio":
        line += "specification=virtio,backendtype=standalone,"
    return line + f"target={path}"


def card_line(spec):
    """(list of xl.cfg, entry) for a card."""
    if spec == "virtio":
        return "virtio", "type=virtio,device1,transport=mmio,grant_usage=1"
    if "=" in spec:
        return ("virtio" if "type=virtio" in spec else "vif"), spec
    kind, _, bridge = spec.partition(":")
    if kind != "stock":
        raise LabError(f"--card {spec}: must be virtio, stock[:BRIDGE] or an entry of "
                       "xl.cfg's vif or virtio list")
    # An HVM guest would have an emulated card as well.
    return "vif", f"type=vif,bridge={bridge or 'br0'}"


def config(options, kernel, initrd, address):
    """The guest's xl.cfg as text."""
    image = "vmlinuz" if options.type == "hvm" else "vmlinux"
    command = f"console=hvc0 net.ifnames=0 panic=1 tsc=nowatchdog vxb.name={options.name}"
    lists = {"disk": [], "vif": [], "virtio": []}
    disks, cards = options.disk, options.card
    if options.root:
        command += " root=/dev/vda rw rootwait init=/lab/target/init-root"
        disks, cards = [options.root, *disks], ["virtio", *cards]
    else:
        command += f" vxb.place=guest vxb.root={ROOT}"
        lists["disk"].append(
            f"format=raw,vdev={ROOT},access=r,script={HOTPLUG},target=/dev/vda")
        lists["vif"] += [f"type=vif,bridge=lab0,script={HOTPLUG}"] * bool(address)
    if address:
        command += f" vxb.address={address}"
    for index, spec in enumerate(disks):
        lists["disk"].append(disk_line(spec, index))
    for spec in cards:
        kind, line = card_line(spec)
        lists[kind].append(line)
    lines = {
        "name": f"'{options.name}'", "type": f"'{options.type}'",
        "memory": options.memory, "vcpus": options.vcpus,
        "kernel": f"'{kernel / image}'",
        "cmdline": f"'{command} {options.append}'",
        "on_poweroff": "'destroy'", "on_reboot": "'destroy'", "on_crash": "'destroy'",
    }
    if initrd:
        lines["ramdisk"] = f"'{initrd}'"
    if options.type == "hvm":
        # With an emulated HPET its kernel does not get through its boot here.
        lines.update(vga="'none'", vnc=0, hpet=0)
    lines.update((key, repr(value)) for key, value in lists.items() if value)
    for line in options.xl:
        lines.pop(line.partition("=")[0].strip(), None)
    return "".join(f"{key} = {value}\n" for key, value in lines.items()) + \
        "".join(f"{line}\n" for line in options.xl)


def claim(name):
    """Reserve a number, and so an address, for guest `name`."""
    STATE.mkdir(parents=True, exist_ok=True)
    with open(STATE / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (STATE / f"{name}.json").exists():
            raise LabError(f"there is a guest {name} already; guest destroy {name}")
        taken = {json.loads(each.read_text())["number"] for each in STATE.glob("*.json")}
        number = min(set(range(2, 255)) - taken)
        address = NETWORK + str(number)
        (STATE / f"{name}.json").write_text(
            json.dumps({"number": number, "agent": (address, wire.PORT)}))
    return address


def release(name):
    for suffix in ("json", "initrd"):
        (STATE / f"{name}.{suffix}").unlink(missing_ok=True)


def xl(*arguments, check=True):
    done = subprocess.run(["xl", *arguments], check=False, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if check and done.returncode:
        raise LabError(f"xl {' '.join(arguments)} failed with status {done.returncode}:\n"
                       f"{done.stdout}{done.stderr}")
    return done.stdout.strip()


def read_store(path):
    """The value of a xenstore node, or None."""
    done = subprocess.run(["xenstore-read", path], check=False, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return None if done.returncode else done.stdout.rstrip("\n")


def wait_store(path, good, timeout):
    """Wait until good(value of node path, None without it) is true; returns the
    value. Each change of the node or of one above it is looked at, nothing else."""
    deadline = time.monotonic() + timeout
    with subprocess.Popen(["xenstore-watch", path], stdout=subprocess.PIPE) as watch:
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([watch.stdout], [], [], left)[0]:
                    # The last of many changes may not have been looked at yet.
                    value = read_store(path)
                    if good(value):
                        return value
                    raise LabError(f"{path} in xenstore was {value!r} after {timeout} s")
                if not os.read(watch.stdout.fileno(), 4096):
                    raise LabError("xenstore-watch ended")
                value = read_store(path)
                if good(value):
                    return value
        finally:
            watch.kill()


def wait_ready(name, domid, timeout):
    """Wait until the guest's init is done."""
    home = f"/local/domain/{domid}"

    def done(value):
        if value == "ready":
            return True
        if read_store(f"{home}/name") is None:
            raise LabError(f"guest {name} ended before it was ready")
        return False

    try:
        wait_store(f"{home}/data/lab", done, timeout)
    except LabError as error:
        raise LabError(f"guest {name} does not come up: {error}; its console:\n"
                       f"{console_tail(name)}") from None


def console_tail(name, size=4000):
    path = CONSOLES / f"guest-{name}.log"
    try:
        return path.read_bytes()[-size:].decode(errors="replace")
    except FileNotFoundError:
        return "(nothing)"


def keep_console(name):
    """Put an earlier guest's console log aside; the log of this one starts empty."""
    log = CONSOLES / f"guest-{name}.log"
    if log.exists():
        number = 1 + len(list(CONSOLES.glob(f"guest-{name}:*.log")))
        log.rename(CONSOLES / f"guest-{name}:{number}.log")


def create(options):
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", options.name):
        raise LabError(f"{options.name!r} is no name for a guest: letters, digits, . and -")
    kernel = KERNELS / options.kernel
    if not (kernel / "initrd").exists():
        raise LabError(f"no kernel {options.kernel} among "
                       f"{sorted(each.name for each in KERNELS.iterdir() if each.is_dir())}")
    address = claim(options.name)
    created = False
    try:
        initrd = None if options.root else STATE / f"{options.name}.initrd"
        if initrd:
            cpio.append_lab(initrd, kernel / "initrd", "/lab", TOKEN.read_bytes(),
                            "/payload")
        path = STATE / f"{options.name}.cfg"
        path.write_text(config(options, kernel, initrd,
                               None if options.no_agent else address))
        keep_console(options.name)
        xl("create", *(["-p"] if options.paused else []), str(path))
        created = True
        if not options.paused:
            wait_ready(options.name, xl("domid", options.name), options.boot_timeout)
    except BaseException:
        if created:
            xl("destroy", options.name, check=False)
        release(options.name)
        raise


def destroy(name):
    if not (STATE / f"{name}.json").exists():
        raise LabError(f"there is no guest {name}")
    domid = subprocess.run(["xl", "domid", name], check=False, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.strip()
    if domid:
        xl("destroy", name)
        wait_store(f"/local/domain/{domid}", lambda value: value is None, 30)
    release(name)


def agent_of(name):
    """Where the guest's agent listens."""
    try:
        return tuple(json.loads((STATE / f"{name}.json").read_text())["agent"])
    except FileNotFoundError:
        raise LabError(f"there is no guest {name}") from None


def run(name, command, timeout):
    sinks = [lambda data, fd=fd: os.write(fd, data) for fd in (1, 2)]
    token = TOKEN.read_text().strip()
    sock = channel.connect(agent_of(name), token)
    process = channel.Process(sock, token, command, sinks)
    process.close_stdin()
    return process.wait(timeout).returncode


def main():
    parser = argparse.ArgumentParser(prog="guest", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    add_create_options(actions.add_parser("create"))
    actions.add_parser("destroy").add_argument("name")
    actions.add_parser("list")
    runner = actions.add_parser("run")
    runner.add_argument("--timeout", type=float)
    runner.add_argument("name")
    runner.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    try:
        if options.action == "create":
            create(options)
        elif options.action == "destroy":
            destroy(options.name)
        elif options.action == "list":
            print(*sorted(each.stem for each in STATE.glob("*.json")), sep="\n")
        else:
            command = options.command[options.command[:1] == ["--"]:]
            status = run(options.name, command, options.timeout)
            sys.exit(status if status >= 0 else 128 - status)
    except LabError as error:
        sys.exit(f"guest: {error}")


if __name__ == "__main__":
    main()
