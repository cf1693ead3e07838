# SPDX-License-Identifier: GPL-2.0
"""One QEMU that runs Xen and dom0: its command line, its start and its end."""

import contextlib
import json
import os
import secrets
import select
import shlex
import signal
import socket
import subprocess
import time

from . import cpio, files, kernel, wire
from .channel import LabError

DOM0_ADDRESS = "10.0.2.15"
SCRATCH = 24 << 30  # bytes, sparse
# Scrubbing would make the host back all of the memory at once.
XEN = ("console=com1 com1=115200,8n1 noreboot loglvl=warning guest_loglvl=warning "
       "bootscrub=0 dom0_mem={memory}M,max:{memory}M dom0_max_vcpus={vcpus}")
DOM0 = ("console=hvc0 earlyprintk=xen panic=1 tsc=nowatchdog net.ifnames=0 "
        "vxb.root=vda vxb.name=dom0 vxb.place={place}")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def arguments(directory, boot, port, payload, options):
    """QEMU's command line. options: those of lab.OPTIONS."""
    tree = options["tree"]
    dom0 = DOM0.format(place="dom0" if tree == "lab" else "systemd")
    xen = XEN.format(memory=options["dom0_memory"], vcpus=options["dom0_vcpus"])
    thread = "single" if options["one_thread"] else "multi"
    accel = ["-accel", f"tcg,thread={thread}", "-smp", str(options["cpus"])]
    if options["icount"]:
        accel = ["-accel", "tcg,thread=single", "-smp", "1",
                 "-icount", "shift=0,sleep=off"]
    args = [
        "qemu-system-x86_64", *accel, "-name", f"vxb-lab-{directory.name}",
        "-machine", "q35", "-cpu", "qemu64,+svm,+npt", "-m", f"{options['memory']}M",
        "-nodefaults", "-display", "none", "-no-reboot",
        "-daemonize", "-pidfile", f"{directory}/pid",
        "-qmp", f"unix:{directory}/qmp.sock,server=on,wait=off",
        "-kernel", kernel.hypervisor(tree), "-append", xen,
        "-initrd", f"{boot}/vmlinux {dom0},{directory}/initrd",
        "-drive", f"file={kernel.root_image(tree)},if=none,id=root,format=raw,"
                  "readonly=on,file.locking=off",
        "-device", "virtio-blk-pci,drive=root",
        "-drive", f"file={directory}/scratch,if=none,id=scratch,format=raw,"
                  "cache=unsafe,discard=unmap",
        "-device", "virtio-blk-pci,drive=scratch",
        *(word for number, path in enumerate(options["disks"]) for word in (
            "-drive", f"file={path},if=none,id=disk{number},format=raw,cache=unsafe",
            "-device", f"virtio-blk-pci,drive=disk{number}")),
        "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-{DOM0_ADDRESS}:{wire.PORT}",
        "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "virtio-serial-pci",
    ]
    for name in ("xen", "dom0", "events"):
        args += ["-chardev", f"socket,id={name},path={directory}/{name}.sock,server=on,"
                             f"wait=off,logfile={directory}/{name}.log,logappend=on"]
    args += ["-serial", "chardev:xen", "-device", "virtconsole,chardev=dom0",
             "-device", "virtserialport,chardev=events,name=events"]
    for tag, path, extra in (("payload", payload, ",readonly=on"),
                             ("kernels", files.CACHE / "kernels", ",readonly=on"),
                             ("host", directory / "share", "")):
        args += ["-virtfs", f"local,path={path},mount_tag={tag},security_model=none,"
                            f"multidevs=remap{extra}"]
    return [str(arg) for arg in args]


def make_scratch(path):
    """An empty file system on a sparse file."""
    with open(path, "wb") as file:
        file.truncate(SCRATCH)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0",
                    "-E", "lazy_itable_init=1,nodiscard", path], check=True)


def start(directory, payload, options):
    """Start QEMU. directory: an empty directory, which is all the instance's own."""
    (directory / "share" / "consoles").mkdir(parents=True)
    token = secrets.token_hex(16)
    (directory / "token").write_text(token)
    boot = files.CACHE / "kernels" / kernel.stock(options["tree"])
    cpio.append_lab(directory / "initrd", boot / "initrd", files.LAB, token.encode())
    payload.mkdir(parents=True, exist_ok=True)
    make_scratch(directory / "scratch")
    port = free_port()
    args = arguments(directory, boot, port, payload, options)
    (directory / "command").write_text(shlex.join(args) + "\n")
    (directory / "state").write_text(json.dumps({"port": port, **options}) + "\n")
    launch(directory)


def launch(directory):
    """Run the command of start(), once more after dom0's reboot."""
    args = shlex.split((directory / "command").read_text())
    done = subprocess.run(args, check=False, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise LabError(f"QEMU does not start: {done.stdout.strip()}")


def wait_ready(directory, timeout):
    """Wait for the line that dom0's process 1 sends when the agent listens."""
    deadline = time.monotonic() + timeout
    heard = b""
    with socket.socket(socket.AF_UNIX) as events:
        events.connect(f"{directory}/events.sock")
        while not heard.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([events], [], [], left)[0]:
                raise LabError(f"dom0 was not ready after {timeout} s")
            data = events.recv(4096)
            if not data:
                raise LabError("QEMU ended before dom0 was ready")
            heard += data
    if heard != b"ready\n":
        raise LabError(f"dom0 is not ready: {heard.decode(errors='replace').strip()}")


def pid(directory):
    """The process of this instance, or None if it does not run."""
    with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
        number = int((directory / "pid").read_text())
        name = f"vxb-lab-{directory.name}".encode()
        with open(f"/proc/{number}/cmdline", "rb") as file:
            if name in file.read().split(b"\0"):
                return number
    return None


@contextlib.contextmanager
def process(directory):
    """A pidfd of QEMU, or None if it does not run."""
    handle = None
    number = pid(directory)
    if number is not None:
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(number)
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


def ended(handle, timeout):
    """Wait until QEMU is gone; False if it is not."""
    return bool(select.select([handle], [], [], timeout)[0])


def stop(directory):
    """End QEMU and wait until it is gone."""
    with process(directory) as handle, contextlib.suppress(ProcessLookupError):
        if handle is not None:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            if not ended(handle, 10):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                ended(handle, 10)
