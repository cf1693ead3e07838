# SPDX-License-Identifier: GPL-2.0
"""Kernels made ready to boot: a directory with vmlinuz, vmlinux, initrd, release.

Decompressing under emulation takes seconds, so it is done here, once: the image
(domain builder and hypervisor take the plain ELF file) and the initrd's modules.
"""

import lzma
import os
import pathlib
import shutil
import subprocess

from . import cpio, files
from .channel import LabError

# What the initrd loads, by the place it boots in; dependencies are found.
DOM0 = ("virtio_pci virtio_blk ext4 overlay 9p 9pnet_virtio virtio_net "
        "xenfs xen-evtchn xen-gntdev xen-privcmd xen-gntalloc loop xen-blkback "
        "xen-netback tun bridge").split()
GUEST = "xen-blkfront ext4 overlay xen-netfront".split()
# What a guest may load later. All modules of a distribution would fill its memory.
LATER = "virtio_blk virtio_net".split()
# A dom0 with systemd loads the rest itself.
SYSTEMD = "virtio_pci virtio_blk ext4 overlay 9p 9pnet_virtio".split()
TARGET = files.LAB / "target"


def decompress(path):
    """The content of a module file."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc"], input=data, check=True,
                              stdout=subprocess.PIPE).stdout
    return data


def plain_name(path):
    """A module's name as modules.dep's reader thinks of it."""
    return pathlib.PurePath(path).name.split(".")[0].replace("-", "_")


class Modules:
    """The modules of one kernel: a directory lib/modules/RELEASE."""

    def __init__(self, directory):
        self.directory = directory
        self._needs = {}
        for line in (directory / "modules.dep").read_text().splitlines():
            module, needs = line.split(":")
            self._needs[plain_name(module)] = (module, needs.split())
        self._builtin = {plain_name(line) for line in
                         (directory / "modules.builtin").read_text().split()}

    def order(self, names):
        """Files to load for names, each after what it needs. Built in counts."""
        order = []
        for name in map(plain_name, names):
            if name in self._builtin:
                continue
            if name not in self._needs:
                raise LabError(f"the kernel of {self.directory} has no {name}, neither "
                               "as module nor built in; it cannot boot in the lab")
            module, needs = self._needs[name]
            # modules.dep lists needs so that the last one comes first.
            for each in [*reversed(needs), module]:
                if each not in order:
                    order.append(each)
        return order


def plain_image(vmlinuz):
    """The ELF image inside a bzImage."""
    data = vmlinuz.read_bytes()
    if data[:4] == b"\x7fELF":
        return data
    for magic, command in ((b"\x28\xb5\x2f\xfd", ["zstd", "-dc"]),
                           (b"\xfd7zXZ\x00", ["xz", "-dc"]),
                           (b"\x1f\x8b\x08", ["gzip", "-dc"])):
        start = data.find(magic)
        while start >= 0:
            # What follows the compressed image makes the tool complain at the end.
            image = subprocess.run(command, input=data[start:], check=False,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
            if image[:4] == b"\x7fELF":
                return image
            start = data.find(magic, start + 1)
    raise LabError(f"{vmlinuz}: no image compressed with zstd, xz or gzip in it; "
                   "is it a bzImage?")


def write_initrd(path, modules, release, lists, installed):
    """lists: place -> module files in order. installed: the modules to put below
    lib/modules, for a kernel that the root file system knows nothing of; or "all"."""
    archive = cpio.Archive(open(path, "wb"))
    tree = tree_of("lab")
    archive.tree("bin/busybox", tree / "usr/bin/busybox")
    archive.tree("init", TARGET / "initrd")
    for place, order in lists.items():
        names = [pathlib.PurePath(each).name.split(".ko")[0] + ".ko" for each in order]
        archive.data(f"modules/{place}", "".join(f"{name}\n" for name in names).encode())
    for each in sorted(set(sum(lists.values(), []))):
        name = pathlib.PurePath(each).name.split(".ko")[0] + ".ko"
        archive.data(f"modules/{name}", decompress(modules.directory / each))
    target = f"lib/modules/{release}"
    if installed == "all":
        archive.tree(target, modules.directory)
    elif installed:
        for each in [*(path.name for path in sorted(modules.directory.glob("modules.*"))),
                     *modules.order(installed)]:
            archive.tree(f"{target}/{each}", modules.directory / each)
    for name in ("proc", "sys", "dev", "new", "ro", "rw"):
        archive.directory(name)
    archive.close()


def tree_of(name):
    """The Debian tree `name`, made if need be."""
    done = subprocess.run([files.SCRIPTS / "debian-tree", name], check=False,
                          stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise LabError(f"no Debian tree '{name}'; debian-tree's messages are above")
    return pathlib.Path(done.stdout.strip())


def prepare(vmlinuz, directory, places, installed=()):
    """Make vmlinuz with the modules in directory bootable; returns the name of the
    result under CACHE/kernels. installed: as for write_initrd."""
    release = directory.name
    modules = Modules(directory)
    lists = {place: modules.order(wanted) for place, wanted in places.items()}
    # A module may change without the image: one of ours does.
    taken = directory.rglob("*.ko*") if installed == "all" else \
        [directory / each for each in {*sum(lists.values(), []), *modules.order(installed)}]
    name = f"{release}-" + files.key(
        vmlinuz, directory / "modules.dep", *sorted(taken), TARGET / "initrd",
        pathlib.Path(__file__), pathlib.Path(cpio.__file__), repr((places, installed)))

    def make(part):
        part.mkdir()
        shutil.copy(vmlinuz, part / "vmlinuz")
        (part / "vmlinux").write_bytes(plain_image(vmlinuz))
        write_initrd(part / "initrd", modules, release, lists, installed)
        (part / "release").write_text(release + "\n")

    files.made(files.CACHE / "kernels" / name, make)
    return name


def kernel_of(tree):
    """The kernel of a Debian tree: its image and the directory of its modules."""
    releases = sorted((tree / "usr/lib/modules").iterdir())
    if len(releases) != 1:
        raise LabError(f"{tree} has {len(releases)} kernels; one was expected")
    return tree / "boot" / f"vmlinuz-{releases[0].name}", releases[0]


def stock(name="lab"):
    """The distribution's kernel, for dom0 and guests, of the tree `name`."""
    return prepare(*kernel_of(tree_of(name)),
                   {"dom0": DOM0, "guest": GUEST, "systemd": SYSTEMD})


def of_tree(name):
    """The kernel of another Debian tree, for guests."""
    return prepare(*kernel_of(tree_of(name)), {"guest": GUEST}, LATER)


def built(directory):
    """A kernel someone built, for guests: directory has vmlinuz and modules/RELEASE,
    as `make modules_install` leaves it."""
    directory = pathlib.Path(directory)
    found = [path.parent for path in directory.glob("modules/*/modules.dep")]
    if len(found) != 1 or not (directory / "vmlinuz").exists():
        raise LabError(f"{directory}: no kernel for a guest; it must have vmlinuz and "
                       "modules/RELEASE/ with modules.dep")
    modules = found[0]
    return prepare(directory / "vmlinuz", modules, {"guest": GUEST}, "all")


def find(name):
    """A kernel by its name for users of the lab."""
    if name == "stock":
        return stock()
    if name == "debug":
        return built(os.environ.get("VXB_DEBUG_KERNEL", files.CACHE / "debug-kernel"))
    if name in ("in-tree-y", "in-tree-m"):
        return built(files.SCRIPTS.parent / "build" / name)
    if (files.SCRIPTS / "trees" / f"{name}.packages").exists():
        return of_tree(name)
    return built(name)


def root_image(name="lab"):
    """The tree `name` as root file system: read-only, for dom0 and the lab's guests."""
    tree = tree_of(name)

    def make(part):
        with open(part, "wb") as file:
            file.truncate(4 << 30)
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-L", "lab",
             "-d", tree, part], check=True)

    return files.made(files.CACHE / "images" / f"{tree.name}.ext4", make)


def hypervisor(name="lab"):
    """Xen of the tree `name`, as the ELF file that QEMU boots."""
    tree = tree_of(name)
    found = sorted((tree / "boot").glob("xen-*-amd64.gz"))
    if not found:
        raise LabError(f"{tree}/boot has no hypervisor (xen-*-amd64.gz)")

    def make(part):
        with open(part, "wb") as file:
            subprocess.run(["gzip", "-dc", found[-1]], stdout=file, check=True)

    return files.made(files.CACHE / "images" / f"xen-{files.key(found[-1])}.elf", make)
