# SPDX-License-Identifier: GPL-2.0
"""Seeing inside: what debugfs and the tracepoints tell of a disk and a card is so."""

import collections
import json

from net import BRIDGES, connect
from observe import DEBUGFS, EVENTS, KINDS, TRACEFS, Device, Tracing, grown, parse
from support import (Setup, appears, cards, fio, images, interrupts, rebind, script, started,
                     value, vanishes)

DISK, CARD = "/sys/block/vda", "/sys/class/net/eth0"
MIB = 1 << 20
POOL = 1 << 62  # marks an address in the pool
POOLS = {DISK: 8 * MIB, CARD: 16 * MIB}
INSIDE = Setup(cards("inside"), images("inside.img"),
               inside={"disks": ["virtio:/scratch/inside.img"], "cards": ["virtio"],
                       "vcpus": 2})
WRITE = "dd if=/dev/zero of=/dev/vda bs=64k count=32 oflag=direct status=none"
READ = "dd if=/dev/vda of=/dev/null bs=64k count=32 iflag=direct status=none"
PING = f"ping -q -c 20 -i 0.05 -s 1000 {BRIDGES['eth0']}"
# One request each.
CONFIGURE = f"cd {DISK} && echo 'write through' >cache_type && echo 'write back' >cache_type"

# Some features as the headers call them, by device.
FEATURES = {
    DISK: {9: "VIRTIO_BLK_F_FLUSH", 12: "VIRTIO_BLK_F_MQ", 32: "VIRTIO_F_VERSION_1"},
    CARD: {5: "VIRTIO_NET_F_MAC", 17: "VIRTIO_NET_F_CTRL_VQ",
           29: "VIRTIO_RING_F_EVENT_IDX"},
}
WCE_OFFSET = 32  # of the cache's mode in a disk's configuration space
# Device status: a driver is there, has agreed on features, is ready.
STATUS_READY = 0b1111


def test_state_and_mode(lab):
    """As in xenstore."""
    with INSIDE(lab) as guest:
        for path in (DISK, CARD):
            device = Device(guest, path)
            assert device.read("state") == "Connected"
            state = guest.run(["xenstore-read", f"{device.node}/state"]).stdout.strip()
            mode = guest.run(["xenstore-read", f"{device.node}/address-mode"]).stdout.strip()
            assert (state, device.read("mode")) == ("4", mode)


def test_features(lab):
    """Those accepted are those of sysfs, each by its name; none is accepted that is
    not offered."""
    with INSIDE(lab) as guest:
        for path in (DISK, CARD):
            device = Device(guest, path)
            features = device.features()
            accepted = {bit for bit, (yes, _) in features.items() if yes}
            assert accepted == bits(guest, path)
            names = {bit: name for bit, (_, name) in features.items()}
            assert "unknown" not in names.values(), names
            assert FEATURES[path].items() <= names.items(), names

            driver = {DISK: "virtio_blk", CARD: "virtio_net"}[path]
            guest.run(f"echo {device.virtio} >/sys/bus/virtio/drivers/{driver}/unbind")
            vanishes(guest, path)
            assert not any(yes for yes, _ in device.features().values())
            guest.run(f"echo {device.virtio} >/sys/bus/virtio/drivers/{driver}/bind")
            appears(guest, path)
            assert device.features() == features


def bits(guest, path):
    """The numbers of the features that sysfs shows for a device."""
    text = value(guest, f"{path}/device/features")
    return {number for number, bit in enumerate(text) if bit == "1"}


def test_queue_counters_of_a_disk(lab):
    """1024 reads of 4 KiB: what was copied, kicks and interrupts."""
    reads = 1024
    with INSIDE(lab) as guest:
        disk = Device(guest, DISK)
        queues = disk.queues()
        assert len(queues) == len(guest.run(["ls", f"{DISK}/mq"]).stdout.split())
        assert [queue["name"] for queue in queues] == \
            [f"req.{number}" for number in range(len(queues))]
        assert all(queue["size"] >= 16 for queue in queues), queues

        before, handled = disk.counted(), interrupts(guest, f"{disk.virtio}-req.")
        job = fio(guest, filename="/dev/vda", rw="randread", bs="4k", size=reads * 4096,
                  ioengine="libaio", direct=1, iodepth=4)
        assert job["read"]["total_ios"] == reads, job["read"]
        after = disk.counted()
        spent = grown(before, after)
        # The data and a status byte come back; a header and descriptors go out.
        assert reads * 4096 <= spent["bytes_from_pool"] < reads * 4096 * 1.05, spent
        assert reads * 8 < spent["bytes_to_pool"] < reads * 256, spent
        assert reads * 2 < spent["mapped"] <= reads * 5, spent
        assert 0 < spent["kicks"] <= reads * 1.05, spent
        assert 0 < spent["interrupts"] <= reads * 2, spent
        assert 0 <= spent["spurious"] <= spent["interrupts"], spent
        assert after["in_use"] == 0, after
        assert spent["interrupts"] == sum(
            grown(handled, interrupts(guest, f"{disk.virtio}-req.")).values()), spent


def test_queue_counters_of_a_card(lab):
    """20 packets of 1000 bytes each way."""
    with INSIDE(lab) as guest:
        connect(guest, devices=("eth0",))
        card = Device(guest, CARD)
        names = {queue["name"] for queue in card.queues()}
        assert {"input.0", "output.0", "control"} <= names, names
        before = card.counted()
        guest.run(PING)
        spent = grown(before, card.counted())
        for way in ("bytes_to_pool", "bytes_from_pool"):
            assert 20 * 1000 <= spent[way] < MIB, spent
        assert spent["kicks"] > 0 and spent["interrupts"] > 0, spent


def test_pool(lab):
    """The parts are the whole; after a load as much is in use as before it, and the
    most that was in use is told until the device is bound anew."""
    with INSIDE(lab) as guest:
        for path, size in POOLS.items():
            assert Device(guest, path).table("pool")["total"]["size"] == size

        bind_anew(guest)
        disk = Device(guest, DISK)
        idle = disk.table("pool")
        for column, number in idle["total"].items():
            assert number == sum(part[column] for name, part in idle.items()
                                 if name != "total"), (column, idle)
        fio(guest, filename="/dev/vda", rw="read", bs="128k", size="32M", ioengine="libaio",
            direct=1, iodepth=16)
        later = disk.table("pool")
        for name, part in later.items():
            assert part["in_use"] == idle[name]["in_use"], (idle, later)
            assert part["in_use"] <= part["high_water"] <= part["size"], later
            assert part["failed"] == 0, later
        most = later["total"]["high_water"]
        assert most - idle["total"]["in_use"] >= 128 << 10, (idle, later)
        assert most > idle["total"]["high_water"], (idle, later)
        bind_anew(guest)
        again = Device(guest, DISK).table("pool")["total"]
        assert again["in_use"] == idle["total"]["in_use"], (idle, again)
        assert again["high_water"] < most, (later, again)


def bind_anew(guest):
    """Take the disk from the driver and give it back; it is idle then."""
    rebind(guest, "/sys/bus/xen/drivers/virtio_xenbus", Device(guest, DISK).name, DISK)
    appears(guest, "/dev/vda")
    # It can be opened when the kernel has looked for partitions.
    guest.run("dd if=/dev/vda of=/dev/null count=1 iflag=direct status=none")


def test_requests(lab):
    """Those of a virtio driver that is bound anew, and of a change of configuration
    space: each is counted and traced, with its argument and the time it took."""
    with INSIDE(lab) as guest:
        disk = Device(guest, DISK)
        before = disk.table("requests")
        with Tracing(guest, "request", filter=f'device == "{disk.node}"') as tracing:
            rebind(guest, "/sys/bus/virtio/drivers/virtio_blk", disk.virtio, DISK)
            guest.run(CONFIGURE)
            events = [event for _, event in tracing.stop()]
        after = disk.table("requests")

        arguments = collections.defaultdict(list)
        for event in events:
            assert event["device"] == disk.node and event["result"] == "0", event
            assert 0 < int(event["latency_us"]) <= after[event["request"]]["worst_us"], event
            arguments[event["request"]].append(int(event["argument"], 0))
        for name, request in after.items():
            assert request["count"] - before[name]["count"] == len(arguments[name]), \
                (name, before, after, events)
            assert request["failed"] == 0, (name, after)
            if request["count"]:
                assert 0 < request["last_us"] <= request["worst_us"], (name, after)
                assert 0 < request["mean_us"] <= request["worst_us"], (name, after)
        low = sum(1 << bit for bit in bits(guest, DISK) if bit < 64)
        assert arguments["FEATURES"] == [low], arguments
        assert arguments["QUEUE_ENABLE"] == list(range(len(disk.queues()))), arguments
        assert arguments["CONFIG_WRITE"] == [WCE_OFFSET] * 2, arguments
        assert set(arguments["RESET"]) == {0}, arguments
        assert arguments["STATUS"][-1] == STATUS_READY, arguments


def test_events(lab):
    """Each of the five kinds; what they tell of the disk is what its counters tell."""
    with INSIDE(lab) as guest:
        connect(guest, devices=("eth0",))
        disk, card = Device(guest, DISK), Device(guest, CARD)
        before = disk.counted()
        with Tracing(guest) as tracing:
            guest.run(f"{WRITE} && {READ} && {PING} && {CONFIGURE}")
            events = tracing.stop()
        spent = grown(before, disk.counted())
        check_events(events, {disk.node: (len(disk.queues()), POOLS[DISK]),
                              card.node: (len(card.queues()), POOLS[CARD])})

        seen = collections.defaultdict(list)
        for kind, event in events:
            seen[kind, event["device"]].append(event)
        for kind in KINDS:
            assert seen[kind, disk.node], f"no {kind} of the disk"
        for kind in KINDS - {"request"}:
            assert seen[kind, card.node], f"no {kind} of the card"

        mapped, unmapped = seen["map", disk.node], seen["unmap", disk.node]
        assert collections.Counter(map(place, mapped)) == \
            collections.Counter(map(place, unmapped))
        assert {"kicks": len(seen["kick", disk.node]),
                "interrupts": len(seen["interrupt", disk.node]), "mapped": len(mapped),
                "bytes_to_pool": copied(mapped, "TO_DEVICE"),
                "bytes_from_pool": copied(unmapped, "FROM_DEVICE")}.items() \
            <= spent.items(), spent
        assert copied(mapped, "TO_DEVICE") > 2 * MIB < copied(unmapped, "FROM_DEVICE")


def place(event):
    """Where a buffer is and which way it goes, in a map or unmap event."""
    return tuple(event[name] for name in
                 ("queue", "address", "dma", "length", "direction"))


def copied(events, direction):
    """The bytes of the buffers that go in a direction."""
    return sum(int(event["length"]) for event in events
               if event["direction"] in (direction, "BIDIRECTIONAL"))


def check_events(events, devices):
    """All fields are there and can be true. devices: node -> queues, bytes of the pool."""
    for kind, event in events:
        assert kind in KINDS, kind
        queues, pool = devices[event["device"]]
        if kind == "request":
            assert set(event) == {"device", "request", "argument", "result", "latency_us"}
            continue
        assert int(event["queue"]) < queues, event
        if kind in ("map", "unmap"):
            assert set(event) == {"device", "queue", "address", "dma", "length",
                                  "direction", "result"}
            assert event["result"] == "0" and int(event["address"], 0) > 0, event
            offset = int(event["dma"], 0) - POOL
            assert 0 <= offset < offset + int(event["length"]) <= pool, event
            assert event["direction"] in ("TO_DEVICE", "FROM_DEVICE", "BIDIRECTIONAL"), event


def test_nothing_is_traced_when_off(lab):
    with INSIDE(lab) as guest:
        connect(guest, devices=("eth0",))
        disk = Device(guest, DISK)
        with Tracing(guest) as tracing:
            guest.run(f"echo 0 >{EVENTS}/enable && echo >{TRACEFS}/trace")
            before = disk.counted()
            guest.run(f"{WRITE} && {READ} && {PING} && {CONFIGURE}")
            assert grown(before, disk.counted())["mapped"] > 0
            assert not tracing.stop()


def test_pool_that_is_full(lab):
    """Buffers without a place are counted, and their events say so. The disk works."""
    with INSIDE(lab) as guest:
        guest.run("rmmod virtio_xenbus && driver disk_pool_kib=1024")
        appears(guest, DISK, CARD)
        disk = Device(guest, DISK)
        before = disk.table("pool")["total"]
        assert before["size"] == MIB, before
        with Tracing(guest, "map", filter="result != 0") as tracing:
            job = fio(guest, filename="/dev/vda", rw="read", bs="128k", size="8M",
                      ioengine="libaio", direct=1, iodepth=32, iodepth_batch_submit=32)
            events = tracing.stop()
        assert job["read"]["io_bytes"] == 8 * MIB, job["read"]
        failed = grown(before, disk.table("pool")["total"])["failed"]
        assert len(events) == failed > 0, (len(events), failed)
        assert {(kind, event["device"], event["result"]) for kind, event in events} == \
            {("map", disk.node, "-12")}, events[:3]
        guest.run("rmmod virtio_xenbus && driver")
        appears(guest, DISK, CARD)


def test_trace_cmd(lab):
    """It records and understands the events."""
    with INSIDE(lab) as guest:
        guest.run(f"cd /tmp && trace-cmd record -q -e virtio_xenbus -o trace.dat {READ}")
        text = guest.run("cd /tmp && trace-cmd report -i trace.dat && rm trace.dat").stdout
        assert "FAILED TO PARSE" not in text, text
        disk, card = Device(guest, DISK), Device(guest, CARD)
        events = parse(text)
        check_events(events, {disk.node: (len(disk.queues()), POOLS[DISK]),
                              card.node: (len(card.queues()), POOLS[CARD])})
        kinds = {kind for kind, event in events if event["device"] == disk.node}
        assert kinds == KINDS - {"request"}, text


def test_only_root_may_read(lab):
    with INSIDE(lab) as guest, Tracing(guest):
        for path in (f"{DEBUGFS}/{Device(guest, DISK).name}/state", f"{EVENTS}/enable"):
            value(guest, path)
            done = guest.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                              "cat", path], check=False)
            assert done.returncode and "Permission denied" in done.stderr, done


def test_files_vanish_while_read(lab):
    """Devices unbound, the driver unloaded: readers go on, files that were open give
    errors."""
    with INSIDE(lab) as guest:
        with started(guest, "readers") as readers:
            readers.wait_output("reading", 60)
            for _ in range(5):
                name = Device(guest, DISK).name
                bind_anew(guest)
                appears(guest, f"{DEBUGFS}/{name}")
            script(guest, "reload", 3)
            readers.close_stdin()
            result = json.loads(readers.wait(60, check=True).stdout.splitlines()[-1])
        assert list(result["held"]) == ["EIO"] and result["read"] > 0, result
        guest.run(["rmmod", "virtio_xenbus"])
        vanishes(guest, DEBUGFS)
        guest.run(["driver"])
        appears(guest, DISK, CARD, DEBUGFS)


def test_unload_while_traced(lab):
    """rmmod, under load too, with events being recorded; afterwards they are off, and can
    be recorded again."""
    with INSIDE(lab) as guest:
        for load in ((), ("--load",)):
            with Tracing(guest):
                assert value(guest, f"{EVENTS}/enable") == "1"
                script(guest, "reload", 1, *load, timeout=200)
                assert value(guest, f"{EVENTS}/enable") == "0"
        with Tracing(guest) as tracing:
            guest.run(READ)
            kinds = {kind for kind, _ in tracing.stop()}
        assert kinds >= KINDS - {"request"}, kinds
