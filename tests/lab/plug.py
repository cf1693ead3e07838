# SPDX-License-Identifier: GPL-2.0
"""Disks that are attached to running guests, used, and detached while they are."""

import json

from support import appears, vanishes

TOOL = "/payload/virtio-xenbusctl"


def attach(lab, guest, path, kind="disk", there="/dev/vdb"):
    """Attach a disk, or a card to the bridge `path`, which is `there` in the guest; returns
    the device's name."""
    words = [TOOL, "--json", "attach", guest.name, kind, *["--bridge"] * (kind == "net"), path]
    device = json.loads(lab.dom0.run(words, 120).stdout)["device"]
    appears(guest, there)
    return device


def detach(lab, guest, device, *options, check=True):
    return lab.dom0.run([TOOL, "detach", guest.name, device, *options], 120, check=check)


def used(guest, path, kind="randrw"):
    """Start fio on a file or disk; it goes on until that fails."""
    load = guest.start(["fio", "--name=load", f"--filename={path}", f"--rw={kind}", "--bs=16k",
                        "--size=8M", "--ioengine=libaio", "--direct=1", "--iodepth=16",
                        "--time_based", "--runtime=600", "--status-interval=1"])
    load.wait_output("IOPS", 60)
    return load


def assert_failed(load):
    """A load has come to an end by itself, with an error of its file."""
    done = load.wait(60)
    assert done.returncode and "io_u error" in done.stdout + done.stderr, done


def assert_healthy(guest):
    """No task waits for what does not come."""
    guest.run("while grep -q '^State:.D' /proc/[0-9]*/status; do read -r -t 0.2 _; done "
              "< <(sleep 60)", 30)


def check_mounted(lab, guest, path):
    """A file system in use is on a disk that goes: who uses it gets errors, it can be
    unmounted, and what had been synchronised is in the file."""
    device = attach(lab, guest, path)
    guest.run("mkfs.ext4 -q -F /dev/vdb && mount /dev/vdb /mnt && echo kept >/mnt/kept && "
              "sync -f /mnt/kept", 120)
    with used(guest, "/mnt/load") as load:
        detach(lab, guest, device)
        assert_failed(load)
    done = guest.run("echo more >/mnt/more && sync -f /mnt/more", check=False)
    assert done.returncode, done
    guest.run(["umount", "/mnt"])
    vanishes(guest, "/dev/vdb")
    # What the file system knew of its end is lost.
    text = lab.dom0.run(f"e2fsck -fy {path} >/dev/null; debugfs -R 'cat /kept' {path}").stdout
    assert text == "kept\n", text
