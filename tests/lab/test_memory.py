# SPDX-License-Identifier: GPL-2.0
"""What one disk and one card cost by default."""

import re

from resources import grants
from support import Setup, appears, cards, images, vanishes

PAGE = 4096
PAGES = {"disk": (8 << 20) // PAGE, "card": (16 << 20) // PAGE}
DAEMON_KIB = 20 << 10
SMALL = Setup(cards("small"),
              "echo N >/sys/module/xen_blkback/parameters/feature_persistent; "
              + images("small.img"),
              small={"disks": ["virtio:/scratch/small.img"], "cards": ["virtio"]})


def shared_pages(guest, device):
    """Pages that the driver has granted for a device."""
    driver = "/sys/bus/xen/drivers/virtio_xenbus"
    node = {"disk": "/dev/vda", "card": "/sys/class/net/eth0"}[device]
    name = guest.run({"disk": f"ls {driver} | grep virtio_disk-",
                      "card": f"ls {driver} | grep virtio-"}[device]).stdout.strip()
    held = grants(guest)
    guest.run(f"echo {name} >{driver}/unbind")
    vanishes(guest, node)
    free = grants(guest)
    guest.run(f"echo {name} >{driver}/bind")
    appears(guest, node)
    return held - free


def test_pool_of_a_disk(lab):
    assert_pool(lab, "disk")


def test_pool_of_a_card(lab):
    assert_pool(lab, "card")


def assert_pool(lab, device):
    """Pool and rings are within the limit. Besides them there are the control page
    and the directory, which has 1024 references to a page."""
    limit = PAGES[device]
    with SMALL(lab) as guest:
        pages = shared_pages(guest, device)
        assert 0 < pages <= limit + 1 + limit // 1024, f"{pages} pages are shared"


def test_pool_sizes_can_be_set(lab):
    """Module parameters make them smaller, and the devices still work, also with
    requests that are larger than the pool."""
    with SMALL(lab) as guest:
        guest.run("rmmod virtio_xenbus && driver disk_pool_kib=1024 net_pool_kib=2048")
        appears(guest, "/dev/vda")
        assert shared_pages(guest, "disk") == 256 + 2
        assert shared_pages(guest, "card") == 512 + 2
        for way in ("if=/dev/zero of=/dev/vda oflag", "if=/dev/vda of=/dev/null iflag"):
            guest.run(f"dd {way}=direct bs=4M count=8 status=none")
        guest.run("ip addr replace 10.78.0.2/24 dev eth0 && ip link set eth0 up && "
                  "ping -q -c 3 -W 10 10.78.0.1")
        guest.run("rmmod virtio_xenbus && driver")
        appears(guest, "/dev/vda")


def test_daemon_under_20_mib(lab):
    """Resident memory after work, without the pools, which are the guest's pages."""
    with SMALL(lab) as guest:
        guest.run("dd if=/dev/vda of=/dev/null bs=1M count=64 iflag=direct status=none")
        guest.run("ip addr replace 10.78.0.2/24 dev eth0 && ip link set eth0 up && "
                  "ping -q -f -c 1000 10.78.0.1")
        maps = lab.dom0.run("cat /proc/$(daemon status)/smaps").stdout
        resident = pools = 0
        for part in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", maps, flags=re.M)[1:]:
            kib = int(re.search(r"^Rss:\s+(\d+) kB", part, re.M)[1])
            if "xen/gnt" in part.splitlines()[0]:
                pools += 1
            else:
                resident += kib
        assert pools >= 2, maps
        assert 0 < resident < DAEMON_KIB, f"{resident} KiB are resident"
