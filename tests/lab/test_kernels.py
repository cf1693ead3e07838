# SPDX-License-Identifier: GPL-2.0
"""Other kernels of Debian as the guest's, each with the module built for it by its own
compilers. The stock kernel is that of all other tests."""

from basics import check_card, check_disk, check_file_system
from net import connect
from support import Setup, cards, images
from vxblab import kernel


def check_kernel(lab, tree):
    """Disk and card with the kernel of a Debian tree (scripts/trees)."""
    setup = Setup(cards("kernel"), images("kernel.img"),
                  kernel={"kernel": tree, "disks": ["virtio:/scratch/kernel.img"],
                          "cards": ["virtio"], "vcpus": 2})
    with setup(lab) as guest:
        release = guest.run(["uname", "-r"]).stdout.strip()
        assert release == kernel.kernel_of(kernel.tree_of(tree))[1].name, release
        print(f"  {guest.run(['cat', '/proc/version']).stdout.strip()}", flush=True)
        check_disk(guest)
        check_file_system(guest)
        connect(guest, devices=("eth0",))
        check_card(lab, guest)
        guest.run(["rmmod", "virtio_xenbus"])


def test_cloud(lab):
    """The cloud flavour of the stock kernel."""
    check_kernel(lab, "cloud")


def test_forky(lab):
    """The kernel of the next Debian release: another version, rustc, bindgen and gcc."""
    check_kernel(lab, "forky")
