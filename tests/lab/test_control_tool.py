# SPDX-License-Identifier: GPL-2.0
"""virtio-xenbusctl: what it tells is so; devices come and go while the guest runs."""

import json
import signal

from net import BRIDGES, MAKE_BR9, connect
from resources import assert_same, count
from support import (Setup, appears, cards, guest, images, log_size, sha256, value,
                     vanishes, wait_log)

TOOL = "/payload/virtio-xenbusctl"
CONFIG = cards("ctl")
MORE = "/scratch/more.img"
# Without persistent grants of the guest's root disk, whose number depends on what
# has been read from it.
SETUP = Setup(CONFIG,
              "echo N >/sys/module/xen_blkback/parameters/feature_persistent; "
              f"{MAKE_BR9} && {images('ctl.img', 'more.img', size='32M')}",
              ctl={"disks": ["virtio:/scratch/ctl.img"], "cards": ["virtio"], "vcpus": 2})

# Some features, by kind of device: name -> bit.
FEATURES = {"block": {"RO": 5, "FLUSH": 9, "MQ": 12, "EVENT_IDX": 29, "VERSION_1": 32},
            "network": {"CSUM": 0, "MAC": 5, "MRG_RXBUF": 15, "MQ": 22, "VERSION_1": 32}}


def ask(lab, *words):
    """What the tool writes as JSON."""
    return json.loads(lab.dom0.run([TOOL, "--json", *words], 120).stdout)


def refused(lab, status, *words):
    """The message of a command that fails with an exit status."""
    done = lab.dom0.run([TOOL, *words], 120, check=False)
    assert done.returncode == status and not done.stdout, done
    return done.stderr


def devices(lab, name="ctl"):
    """Kind of device -> device, of a guest with one of each kind."""
    return {device["kind"]: device for device in ask(lab, "show", name)}


def totals(device):
    """The sums of a device's counters."""
    return {name: sum(queue[name] for queue in device["queues"])
            for name in ("requests", "bytes_to_guest", "bytes_from_guest", "errors",
                         "drops", "kicks", "interrupts")}


def spent(before, after):
    """What totals() have grown by."""
    return {name: after[name] - number for name, number in before.items()}


def store(lab, one):
    """What xenstore has of a guest's devices, except what a driver changes when it is
    loaded anew."""
    text = "".join(lab.dom0.run(["xenstore-ls", path]).stdout
                   for path in (f"/local/domain/{one.domid}/device",
                                f"/local/domain/0/backend/virtio/{one.domid}",
                                f"/libxl/{one.domid}/device"))
    return [line for line in text.splitlines()
            if line.split()[0] not in ("state", "control-ref", "event-channel")]


def test_list_is_the_truth(lab):
    """Names, numbers, states, features and queues are those of guest and dom0."""
    with SETUP(lab) as one:
        found = devices(lab)
        number = int(one.run(["xenstore-list", "device/virtio_disk"]).stdout)
        for kind, place, path in (("block", ("virtio_disk", number), "/sys/block/vda"),
                                  ("network", ("virtio", 0), "/sys/class/net/eth0")):
            device = found[kind]
            assert (device["domain"], device["name"]) == (one.domid, "ctl"), device
            assert (device["type"], device["number"]) == place, device
            assert device["state"] == device["frontend_state"] == "Connected", device
            assert device["address_mode"] == "pool", device
            assert device["error"] is device["frontend_error"] is None, device
            bits = value(one, f"{path}/device/features")
            assert len(device["features"]) == bits.count("1"), (device["features"], bits)
            for name, bit in FEATURES[kind].items():
                assert (name in device["features"]) == (bits[bit] == "1"), (name, bits)
            assert all(queue["running"] for queue in device["queues"]), device["queues"]
        queues = one.run(["ls", "/sys/block/vda/mq"]).stdout.split()
        assert len(found["block"]["queues"]) == len(queues)
        names = [queue["name"] for queue in found["network"]["queues"]]
        assert names == ["receive 0", "transmit 0", "receive 1", "transmit 1", "control"]
        assert "/scratch/ctl.img" in found["block"]["description"]
        for text in (value(one, "/sys/class/net/eth0/address"), f"vx{one.domid}.0", "br0"):
            assert text in found["network"]["description"], found["network"]

        for words in (("list",), ("show", "ctl"), ("show", str(one.domid))):
            places = [(device["type"], device["number"]) for device in ask(lab, *words)]
            assert places == [("virtio", 0), ("virtio_disk", number)], places
        lines = lab.dom0.run([TOOL, "list"]).stdout.splitlines()
        assert lines[0].startswith("DOMAIN") and len(lines) == 3, lines
        assert all(line.split()[:2] == ["ctl", str(one.domid)] for line in lines[1:]), lines
        text = lab.dom0.run([TOOL, "show", "ctl", "virtio/0"]).stdout
        assert "MRG_RXBUF" in text and "transmit 1" in text, text


def test_counters_count(lab):
    """Bytes, requests and events of a known load."""
    with SETUP(lab) as one:
        mib = 1 << 20
        before = totals(devices(lab)["block"])
        one.run("dd if=/dev/zero of=/dev/vda bs=1M count=4 oflag=direct status=none && "
                "dd if=/dev/vda of=/dev/null bs=1M count=8 iflag=direct status=none")
        disk = spent(before, totals(devices(lab)["block"]))
        assert 4 * mib <= disk["bytes_from_guest"] < 5 * mib, disk
        assert 8 * mib <= disk["bytes_to_guest"] < 9 * mib, disk
        assert disk["requests"] >= 12 and disk["kicks"] and disk["interrupts"], disk
        assert not disk["errors"] and not disk["drops"], disk

        connect(one, devices=("eth0",))
        before = totals(devices(lab)["network"])
        one.run(["ping", "-q", "-c", 100, "-i", "0.01", "-s", 1000, "10.78.0.1"])
        card = spent(before, totals(devices(lab)["network"]))
        for way in ("bytes_from_guest", "bytes_to_guest"):
            assert 100 * 1042 <= card[way] < 200 * 1042, card
        assert 200 <= card["requests"] < 400 and card["kicks"] and card["interrupts"], card


def test_attach_and_detach_under_load(lab):
    """A disk and a card come and go while another disk is under fio."""
    with SETUP(lab) as one:
        one.run(["rm", "-f", "/tmp/stop"])
        load = one.start("until [ -e /tmp/stop ]; do fio --name=load --filename=/dev/vda "
                         "--rw=randwrite --bs=16k --size=16M --ioengine=libaio --direct=1 "
                         "--iodepth=8 --verify=crc32c --do_verify=1 --verify_fatal=1 || exit; "
                         "done >&2")
        with load:
            at_first = store(lab, one)
            disk = ask(lab, "attach", "ctl", "disk", MORE, "--serial", "more")
            assert disk == {"domain": one.domid, "name": "ctl", "device": "virtio/1"}, disk
            appears(one, "/dev/vdb")
            assert value(one, "/sys/block/vdb/serial") == "more"
            one.run("dd if=/dev/urandom of=/dev/vdb bs=1M count=16 oflag=direct status=none")

            card = ask(lab, "attach", "ctl", "net", "--bridge", "br9",
                       "--mac", "00:16:3e:00:00:99")
            assert card["device"] == "virtio/2", card
            appears(one, "/sys/class/net/eth1")
            assert value(one, "/sys/class/net/eth1/address") == "00:16:3e:00:00:99"
            connect(one, devices=("eth1",))
            one.run(["ping", "-q", "-c", 10, "-W", 10, BRIDGES["eth1"]])
            tap = f"/sys/class/net/vx{one.domid}.2"
            lab.dom0.run(["test", "-e", tap])

            sent = sha256(one, "/dev/vdb")
            ask(lab, "detach", "ctl", "virtio/1")
            vanishes(one, "/dev/vdb")
            assert sha256(lab.dom0, MORE) == sent
            ask(lab, "detach", str(one.domid), "virtio/2")
            vanishes(one, "/sys/class/net/eth1")
            lab.dom0.run(["test", "!", "-e", tap])
            assert store(lab, one) == at_first
            assert len(ask(lab, "list")) == 2

            assert load.poll() is None, load.stderr
            one.run(["touch", "/tmp/stop"])
            load.wait(120, check=True)


def test_read_only_disk(lab):
    """A setting of the command line reaches the guest."""
    with SETUP(lab) as one:
        device = ask(lab, "attach", "ctl", "disk", MORE, "--readonly",
                     "--queues", "1")["device"]
        appears(one, "/dev/vdb")
        assert value(one, "/sys/block/vdb/ro") == "1"
        assert len(ask(lab, "show", "ctl", device)[0]["queues"]) == 1
        ask(lab, "detach", "ctl", device)
        vanishes(one, "/dev/vdb")


def test_nothing_leaks(lab):
    """Neither guest nor daemon hold more after some rounds than before."""
    def rounds(number):
        for _ in range(number):
            for words in (("disk", MORE), ("net", "--bridge", "br0")):
                ask(lab, "detach", "ctl", ask(lab, "attach", "ctl", *words)["device"])
        vanishes(one, "/dev/vdb", "/sys/class/net/eth1")

    with SETUP(lab) as one:
        rounds(2)
        before = count(lab, one)
        rounds(5)
        assert_same(lab, one, before)


def test_bad_input_is_named(lab):
    """Each message names the thing, the value and what to do; nothing changes."""
    with SETUP(lab) as one:
        at_first = store(lab, one)
        attach = ("attach", "ctl")
        for status, words, named in (
                (1, ("attach", "nobody", "disk", MORE), ('"nobody"', "xl list")),
                (1, (*attach, "disk", "/scratch/missing.img"),
                 ("/scratch/missing.img", "no such file")),
                (1, (*attach, "disk", "/scratch"), ("/scratch", "is a directory")),
                (1, (*attach, "disk", MORE, "--queues", "17"), ("17", "from 1 to 16")),
                (1, (*attach, "disk", MORE, "--serial", "two words"), ('"two words"',)),
                (1, (*attach, "disk", MORE, "--logical-block-size", "1000"),
                 ("1000", "512 or 4096")),
                (1, (*attach, "net", "--bridge", "br404"), ("br404", "not there")),
                (1, (*attach, "net", "--bridge", "lo"), ("lo", "not a bridge")),
                (1, (*attach, "net", "--bridge", "br0", "--mac", "01:00:5e:00:00:01"),
                 ("01:00:5e:00:00:01", "unicast")),
                (1, (*attach, "net", "--bridge", "br0", "--mtu", "67"),
                 ("67 is not an MTU",)),
                (1, ("detach", "ctl", "virtio/77"), ('"virtio/77"', "list")),
                (1, ("detach", "ctl", "vda"), ('"vda"', "list")),
                (1, ("detach", "nobody", "virtio/0"), ('"nobody"', "list")),
                (1, ("show", "nobody"), ('"nobody"', "list")),
                (1, ("list", "--socket", "/nonexistent"),
                 ("/nonexistent", "start virtio-xenbusd")),
                (2, (*attach, "disk"), ("<PATH>",)),
                (2, (*attach, "net"), ("--bridge",)),
                (2, ("detach", "ctl", "virtio/0", "--timeout", "601"), ("601", "600")),
                (2, ("completion", "csh"), ("csh", "bash"))):
            text = refused(lab, status, *words)
            for name in named:
                assert name in text, f"{words}: no {name!r} in: {text}"
        assert store(lab, one) == at_first
        one.run("dd if=/dev/vda of=/dev/null bs=1M count=4 iflag=direct status=none")


def test_guest_without_driver(lab):
    """Attaching fails and leaves nothing, or does not wait and is seen to later."""
    with SETUP(lab) as one:
        one.run(["rmmod", "virtio_xenbus"])
        at_first = store(lab, one)
        text = refused(lab, 1, "attach", "ctl", "disk", MORE, "--timeout", "1")
        assert "frontend Initialising" in text and "virtio_xenbus" in text, text
        assert store(lab, one) == at_first

        device = ask(lab, "attach", "ctl", "disk", MORE, "--serial", "late",
                     "--timeout", "0")["device"]
        one.run(["driver"])
        appears(one, "/dev/vda", "/dev/vdb", "/sys/class/net/eth0")
        serials = [value(one, f"/sys/block/{disk}/serial") for disk in ("vda", "vdb")]
        assert "late" in serials, serials
        ask(lab, "detach", "ctl", device)
        # The names of disks as they were.
        one.run(["rmmod", "virtio_xenbus"])
        one.run(["driver"])
        appears(one, "/dev/vda", "/sys/class/net/eth0")
        assert store(lab, one) == at_first


def test_guest_that_does_not_let_go(lab):
    """Detaching fails while the guest does not run, and is forced if that is wanted."""
    with SETUP(lab) as one:
        at_first = store(lab, one)
        device = ask(lab, "attach", "ctl", "disk", MORE)["device"]
        appears(one, "/dev/vdb")
        lab.dom0.run(["xl", "pause", "ctl"])
        try:
            text = refused(lab, 1, "detach", "ctl", device, "--timeout", "1")
            for name in ("in use", "backend Closing", "frontend Connected", "--force"):
                assert name in text, text
            assert ask(lab, "show", "ctl", device)[0]["state"] == "Closing"
            ask(lab, "detach", "ctl", device, "--timeout", "1", "--force")
        finally:
            lab.dom0.run(["xl", "unpause", "ctl"])
        vanishes(one, "/dev/vdb")
        assert store(lab, one) == at_first
        one.run("dd if=/dev/vda of=/dev/null bs=1M count=4 iflag=direct status=none")


def test_attached_device_outlives_the_daemon(lab):
    """A daemon that is killed leaves its socket and the device's settings: the next
    one goes on with both."""
    with SETUP(lab) as one:
        dom0 = lab.dom0
        device = ask(lab, "attach", "ctl", "disk", MORE, "--readonly")["device"]
        appears(one, "/dev/vdb")
        dom0.stop_daemon(signal.SIGKILL)
        assert "start virtio-xenbusd" in refused(lab, 1, "list")
        start = log_size(dom0)
        dom0.start_daemon(CONFIG)
        wait_log(dom0, start, f"ctl {device}: connected: disk {MORE}")
        assert dom0.run("stat -c %a /run/virtio-xenbusd/control.sock").stdout == "600\n"
        assert "read-only" in ask(lab, "show", "ctl", device)[0]["description"]
        one.run("dd if=/dev/vdb of=/dev/null bs=1M count=4 iflag=direct status=none")
        ask(lab, "detach", "ctl", device)
        vanishes(one, "/dev/vdb")


def test_attached_device_goes_with_its_guest(lab):
    """xl destroy removes what it has not made."""
    with SETUP(lab):
        with guest(lab, "brief", memory=320) as one:
            domid = one.domid
            ask(lab, "attach", "brief", "disk", MORE)
            appears(one, "/dev/vda")
        backends = lab.dom0.run("xenstore-ls /local/domain/0/backend/virtio").stdout
        assert f"/{domid}/" not in backends and MORE not in backends, backends
        lab.dom0.run(f"! xenstore-exists /libxl/{domid}")


def test_completions_load(lab):
    """bash knows the program after reading what it writes."""
    with SETUP(lab):
        text = lab.dom0.run(f"source <({TOOL} completion bash) && complete -p "
                            "virtio-xenbusctl").stdout
        assert "virtio-xenbusctl" in text, text
