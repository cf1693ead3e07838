# SPDX-License-Identifier: GPL-2.0
"""lab: boot Xen, dom0 and guests under QEMU; run commands and scripts in them."""

import argparse
import os
import pathlib
import signal
import string
import sys
import threading

from . import guests, terminal
from .channel import LabError
from .lab import OPTIONS, Lab


def stream(process, timeout):
    """Give our standard input to a process that writes to our outputs already."""
    def feed():
        while data := os.read(0, 65536):
            process.write(data)
        process.close_stdin()

    if sys.stdin is None or sys.stdin.isatty():
        process.close_stdin()
    else:
        threading.Thread(target=feed, daemon=True).start()
    status = process.wait(timeout, binary=True).returncode
    return status if status >= 0 else 128 - status


SINKS = tuple(lambda data, fd=fd: os.write(fd, data) for fd in (1, 2))


def words_of(options):
    """The command after an optional --."""
    words = options.command[options.command[:1] == ["--"]:]
    if not words:
        raise LabError("no command given")
    return words


def run(machine, options):
    words = words_of(options)
    if options.tty:
        return terminal.attach_process(
            lambda sinks: machine.start(words, sinks=sinks, tty=True))
    return stream(machine.start(words, sinks=SINKS), options.timeout)


def run_script(machine, options):
    path = pathlib.Path(options.file)
    where = f"/tmp/lab-script-{os.getpid()}-{path.name}"
    if not path.is_file():
        raise LabError(f"no script {path}")
    machine.push(path, where)
    machine.run(["chmod", "+x", where])
    return stream(machine.start([where, *options.arguments], sinks=SINKS),
                  options.timeout)


def create(lab, options):
    return lab.dom0.create_guest(
        options.name, type=options.type, memory=options.memory, vcpus=options.vcpus,
        kernel=options.kernel, root=options.root, disks=options.disk,
        cards=options.card, xl=options.xl, append=options.append,
        agent=not options.no_agent, paused=options.paused, timeout=options.boot_timeout)


def default_config(options):
    """A daemon configuration that puts each virtio card of the guest on br0."""
    cards = [spec for spec in options.card if guests.card_line(spec)[0] == "virtio"]
    return "".join(f'[[device]]\ndomain = "{options.name}"\ndevice = {number}\n'
                   '[device.net]\nbridge = "br0"\n\n' for number in range(len(cards)))


def virtio_devices(options):
    """Where the guest's devices of the driver appear."""
    disks = [spec for spec in options.disk
             if "specification=virtio" in guests.disk_line(spec, 0)]
    kinds = [guests.card_line(spec)[0] for spec in options.card]
    first = kinds.count("vif")  # those are there from the start
    return [*(f"/dev/vd{letter}" for letter, _ in zip(string.ascii_lowercase, disks)),
            *(f"/sys/class/net/eth{first + number}"
              for number in range(kinds.count("virtio")))]


def one_shot(lab, options):
    """Boot what is not there, run a script in it, take down what was booted."""
    booted = not lab.running
    if booted:
        print("lab: booting Xen and dom0", file=sys.stderr)
        lab.up()
    try:
        for command in options.prepare:
            lab.dom0.run(command, 600)
        if options.place == "dom0":
            return run_script(lab.dom0, options)
        virtio = virtio_devices(options)
        if virtio:
            text = default_config(options)
            if options.config:
                text = pathlib.Path(options.config).read_text(encoding="utf-8")
            lab.dom0.start_daemon(text)
        print(f"lab: creating guest {options.name}", file=sys.stderr)
        guest = create(lab, options)
        try:
            if virtio and not options.no_driver:
                guest.run(["driver"])
                guest.run(["udevadm", "wait", "--initialized=no", "--timeout=60", *virtio],
                          90)
            return run_script(guest, options)
        finally:
            guest.destroy()
            if virtio:
                lab.dom0.stop_daemon()
    finally:
        if booted:
            lab.down()


def console(lab, name):
    if name in ("dom0", "xen"):
        if not lab.running:
            raise LabError(f"the lab '{lab.name}' does not run; lab up")
        terminal.attach_console(lab.directory / f"{name}.sock", greet=name == "dom0")
        return 0
    if name not in lab.dom0.guests():
        raise LabError(f"there is no guest {name}; there are: "
                       f"{', '.join(lab.dom0.guests()) or 'none'}")
    print(terminal.NOTE, file=sys.stderr)
    terminal.attach_process(lambda sinks: lab.dom0.start(
        ["xl", "console", name], sinks=sinks, tty=True))
    return 0


def add_run_options(parser, script):
    parser.add_argument("--timeout", type=float, metavar="S",
                        help="seconds; then it is killed")
    if script:
        parser.add_argument("file", help="an executable script of this machine")
        parser.add_argument("arguments", nargs=argparse.REMAINDER)
    else:
        parser.add_argument("-t", "--tty", action="store_true", help="on a terminal")
        parser.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND...")


def add_up_options(parser):
    parser.add_argument("--icount", action="store_true", default=None,
                        help="time counts instructions: one CPU, 1 ns each")
    parser.add_argument("--one-thread", action="store_true", default=None,
                        help="all CPUs in one thread of the host")
    for name, what in (("memory", "MiB of the machine"), ("cpus", "CPUs of the machine"),
                       ("dom0-memory", "MiB of dom0"), ("dom0-vcpus", "CPUs of dom0")):
        default = OPTIONS[name.replace("-", "_")]
        parser.add_argument(f"--{name}", type=int,
                            help=f"{what} ({default})")
    parser.add_argument("--tree", help="boot dom0 from this tree of scripts/trees, with its own "
                                       f"systemd; without guests of the lab ({OPTIONS['tree']})")
    parser.add_argument("--disk", dest="disks", action="append", metavar="FILE",
                        help="one more disk of dom0: vdc, vdd, ...")


def parse():
    parser = argparse.ArgumentParser(prog="lab", description=__doc__)
    parser.add_argument("--name", dest="lab", help="which lab, if several run (VXB_LAB; default)")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    add_up_options(actions.add_parser("up", help="boot Xen and dom0"))
    actions.add_parser("down", help="end it")
    actions.add_parser("status", help="what runs; exit status 1 if nothing does")
    add_up_options(actions.add_parser("shell", help="up, then the shell of dom0"))
    actions.add_parser("console", help="join a console: dom0, xen or a guest's") \
        .add_argument("console")
    add_run_options(actions.add_parser("run", help="run a command in dom0"), False)
    add_run_options(actions.add_parser("run-script", help="run a script in dom0"), True)

    script = actions.add_parser(
        "script", help="boot what is needed, run a script there, take it down again")
    script.add_argument("--in", dest="place", choices=("dom0", "guest"), default="guest")
    script.add_argument("--prepare", action="append", default=[], metavar="COMMAND",
                        help="a shell command to run in dom0 first (make a disk's file)")
    script.add_argument("--config", help="the daemon's configuration file; without it "
                        "each virtio card is put on the bridge br0")
    script.add_argument("--no-driver", action="store_true",
                        help="do not load the module before the script")
    guests.add_create_options(script, name="script")
    add_run_options(script, True)

    guest = actions.add_parser("guest", help="create, use and destroy guests")
    steps = guest.add_subparsers(dest="step", required=True, metavar="STEP")
    guests.add_create_options(steps.add_parser("create"))
    for step, with_script in (("run", False), ("run-script", True)):
        runner = steps.add_parser(step)
        runner.add_argument("name")
        add_run_options(runner, with_script)
    steps.add_parser("destroy").add_argument("name")
    steps.add_parser("list")
    return parser.parse_args()


def act(options):
    guest_name = getattr(options, "name", None)
    lab = Lab(options.lab)
    match options.action:
        case "up" | "shell":
            given = {name: getattr(options, name) for name in OPTIONS}
            lab.up(**{name: value for name, value in given.items() if value is not None})
            if options.action == "shell":
                return console(lab, "dom0")
        case "down":
            lab.down()
        case "status":
            if not lab.running:
                print(f"lab {lab.name}: does not run")
                return 1
            print(f"lab {lab.name}: runs in {lab.directory}; guests: "
                  f"{', '.join(lab.dom0.guests()) or 'none'}")
        case "console":
            return console(lab, options.console)
        case "run":
            return run(lab.dom0, options)
        case "run-script":
            return run_script(lab.dom0, options)
        case "script":
            return one_shot(lab, options)
        case "guest":
            match options.step:
                case "create":
                    create(lab, options)
                case "destroy":
                    lab.guest(guest_name).destroy()
                case "list":
                    for name in lab.dom0.guests():
                        print(name)
                case "run":
                    return run(lab.guest(guest_name), options)
                case "run-script":
                    return run_script(lab.guest(guest_name), options)
    return 0


def main():
    # Killed or interrupted, what was booted for the script goes all the same.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return act(parse())
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130
