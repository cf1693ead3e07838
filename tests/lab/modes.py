# SPDX-License-Identifier: GPL-2.0
"""Address modes: the driver loaded in one of them, and the proof that it was used."""

import contextlib
import json

from observe import Device, grown
from support import appears, devices, vanishes

TOOL = "/payload/virtio-xenbusctl"


@contextlib.contextmanager
def loaded(guest, options, *parameters):
    """The driver loaded with parameters of its own, in a guest made with `options`."""
    guest.run(["driver", *parameters])
    try:
        appears(guest, *devices(options))
        yield
    finally:
        guest.run(["rmmod", "virtio_xenbus"])
    vanishes(guest, *devices(options))


def served(backend, guest, device):
    """What the daemon on machine `backend` says of a device, and its counters' sums."""
    kind, number = device.name.rsplit("-", 1)
    for found in json.loads(backend.run([TOOL, "--json", "show", str(guest.domid)],
                                        120).stdout):
        if (found["type"], found["number"]) == (kind, int(number)):
            names = [name for name, count in found["queues"][0].items()
                     if isinstance(count, int) and not isinstance(count, bool)]
            return found, {name: sum(queue[name] for queue in found["queues"])
                           for name in names if name not in ("queue", "size")}
    raise AssertionError(f"the daemon has no {device.name} of {guest.name}")


@contextlib.contextmanager
def used(backend, guest, path, mode, size, copied=1.0):
    """Asserts that the device behind `path` in /sys is in address mode `mode`, and that
    `size` bytes of data go that way in the block, as both sides count: not more than the
    part `copied` of them through the pool, if the mode is another."""
    device = Device(guest, path)
    assert device.read("mode") == mode
    before, (_, at_first) = device.counted(), served(backend, guest, device)
    yield
    spent = grown(before, device.counted())
    found, later = served(backend, guest, device)
    counted = grown(at_first, later)
    print(f"  {guest.name} {path.rpartition('/')[2]} {mode}: driver {nonzero(spent)}, "
          f"daemon {nonzero(counted)}", flush=True)
    assert found["address_mode"] == mode, found
    assert counted["errors"] == 0, counted
    assert counted["bytes_to_guest"] + counted["bytes_from_guest"] >= size, counted
    # What each mode costs, here and there.
    costs = {"grant": (spent["granted"], counted["grant_buffers"],
                       counted["bytes_grant_copied"]),
             "machine": (spent["machine"], counted["machine_buffers"],
                         counted["frames_mapped"] + counted["frame_hits"])}
    for name, numbers in costs.items():
        if name == mode:
            assert all(numbers), (name, spent, counted)
        else:
            assert not any(numbers), (name, spent, counted)
    pool = spent["bytes_to_pool"] + spent["bytes_from_pool"]
    if mode == "pool":
        assert pool >= size, spent
    else:
        assert pool <= copied * size, spent


def nonzero(counters):
    return {name: number for name, number in counters.items() if number}
