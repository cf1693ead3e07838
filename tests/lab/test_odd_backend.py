# SPDX-License-Identifier: GPL-2.0
"""Offers of a backend that is not ours: the driver refuses them with a reason in the
guest's dmesg and at the device's error node, and other devices go on."""

from support import Setup, images, wait_store

GOOD = {"virtio-xenbus-versions": "1", "address-modes": "pool", "max-queues": "1",
        "max-pool-pages": "2048", "type": "virtio,device2", "online": "1"}
SETUP = Setup("", images("odd.img"), odd={"disks": ["virtio:/scratch/odd.img"]})


def plug(lab, guest, number, keys):
    """Give the guest device `number`, offered by a backend of xenstore keys alone."""
    front = f"/local/domain/{guest.domid}/device/virtio/{number}"
    # Not where the daemon looks.
    back = f"/local/domain/0/odd/{guest.domid}/{number}"
    nodes = {f"{back}/{key}": text for key, text in keys.items()}
    nodes |= {f"{back}/frontend": front, f"{back}/frontend-id": guest.domid,
              f"{back}/state": 2}
    lab.dom0.run(["xenstore-write", *(str(word) for item in nodes.items() for word in item)])
    lab.dom0.run(["xenstore-chmod", "-r", back, "n0", f"r{guest.domid}"])
    # The driver takes the device when its state is 1.
    lab.dom0.run(["xenstore-write", f"{front}/backend-id", 0, f"{front}/backend", back,
                  f"{front}/state", 0])
    lab.dom0.run(["xenstore-chmod", "-r", front, f"n{guest.domid}", "r0"])
    lab.dom0.run(["xenstore-write", f"{front}/state", 1])
    return front


def unplug(lab, guest, number):
    lab.dom0.run(["xenstore-rm", f"/local/domain/{guest.domid}/device/virtio/{number}"])
    lab.dom0.run(["xenstore-rm", f"/local/domain/0/odd/{guest.domid}/{number}"])


def refused(lab, number, changes, *named):
    """The driver refuses GOOD with `changes`; its message has all of `named`."""
    with SETUP(lab) as guest:
        keys = {key: text for key, text in (GOOD | changes).items() if text is not None}
        plug(lab, guest, number, keys)
        error = f"/local/domain/{guest.domid}/error/device/virtio/{number}/error"
        text = wait_store(lab.dom0, error, ".+")
        dmesg = [line for line in guest.run(["dmesg"]).stdout.splitlines()
                 if f"virtio-{number}:" in line]
        for name in named:
            assert name in text, f"no {name!r} at the error node: {text}"
            assert any(name in line for line in dmesg), f"no {name!r} in dmesg: {dmesg}"
        guest.run("dd if=/dev/vda of=/dev/null bs=1M count=4 iflag=direct status=none")
        unplug(lab, guest, number)


def test_unknown_protocol_version(lab):
    refused(lab, 90, {"virtio-xenbus-versions": "7 8"}, "virtio-xenbus-versions", "7 8", "1")


def test_no_protocol_version(lab):
    refused(lab, 91, {"virtio-xenbus-versions": None}, "virtio-xenbus-versions")


def test_unknown_address_mode(lab):
    refused(lab, 92, {"address-modes": "teleport"}, "address-modes", "teleport", "pool")


def test_number_that_is_none(lab):
    refused(lab, 93, {"max-pool-pages": "plenty"}, "max-pool-pages", "plenty")


def test_pool_too_small(lab):
    refused(lab, 94, {"max-pool-pages": "1"}, "max-pool-pages", "1")


def test_device_without_id(lab):
    refused(lab, 95, {"type": "virtio,devicezz"}, "type", "virtio,devicezz")
