# SPDX-License-Identifier: GPL-2.0
"""The daemon ends under load and is started again: the guest sees a pause, and nothing else.
VXB_KILLS=N kills it N times."""

import json
import os
import signal
import statistics

from harness.runner import LIMIT
from net import Traffic, connect
from observe import Device
from resources import assert_same, count
from support import Setup, add_test, cards, images, log_size, started, wait_log
from writelog import WriteLog

KILLS = int(os.environ.get("VXB_KILLS", "5"))
QUEUES, DEPTH = 4, 32
START = ["daemon", "start", "/etc/virtio-xenbusd.toml"]
FILE = "/scratch/restart.img"


CONFIG = cards("restart", settings='bridge = "br0", queues = 2')
# Without persistent grants of the guest's root disk, whose number depends on what has been
# read from it.
PREPARE = ("echo N >/sys/module/xen_blkback/parameters/feature_persistent; "
           + images("restart.img"))
SETUPS = {mode: Setup(CONFIG, PREPARE,
                      restart={"disks": [f"virtio:{FILE}"], "cards": ["virtio"],
                               "vcpus": QUEUES, "driver": [f"address_mode={mode}"]})
          for mode in ("pool", "grant", "machine")}


def ended_and_started(lab, number=signal.SIGKILL, meanwhile=None, again=False):
    """End the daemon and start the next one, which goes on with disk and card. Again: that
    one is killed as soon as it has begun, and it is the one after it that goes on."""
    lab.dom0.stop_daemon(number)
    if meanwhile:
        meanwhile()
    if again:
        lab.dom0.run(START)
        lab.dom0.stop_daemon(signal.SIGKILL)
    start = log_size(lab.dom0)
    lab.dom0.run(START)
    for device in ("virtio/0", "virtio_disk/51712"):
        wait_log(lab.dom0, start, f"restart {device}: connected")


class Pauses:
    """How long a guest's reads take: measure() says the longest one since the last time."""

    def __init__(self, guest):
        self._script = started(guest, "pauses", "/dev/vda")
        self._script.wait_output("reading\n", 60)
        self.all = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._script.close()

    def measure(self):
        before = self._script.stdout.count(b"\n")
        self._script.write(b"\n")
        assert self._script.wait_for(lambda: self._script.stdout.count(b"\n") > before, 60)
        self.all.append(int(self._script.stdout.split()[-1]))
        return self.all[-1]


def verified(guest):
    """fio that writes and verifies until it is interrupted."""
    return guest.start(
        ["fio", "--name=restart", "--filename=/dev/vda", "--rw=randwrite", "--bs=4k",
         f"--numjobs={QUEUES}", "--offset_increment=64M", "--size=64M", "--time_based",
         "--runtime=1d", "--ioengine=libaio", "--direct=1", f"--iodepth={DEPTH}",
         "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=512",
         "--group_reporting", "--status-interval=1", "--output-format=json"])


def interrupted(job):
    """What fio says in the end; it must not have ended by itself, as it does at an error."""
    assert job.poll() is None, job.stdout[-2000:]
    job.kill(signal.SIGINT)
    done = job.wait(120)
    assert done.returncode == 128, done
    text = done.stdout
    result, = json.loads(text[text.rindex("\n{\n"):] if "\n{\n" in text else text)["jobs"]
    assert result["error"] == 0, result
    return result


def killed_under_load(lab, guest, kills):
    """The daemon is killed while all queues are full and data passes both ways."""
    with Pauses(guest) as pauses, verified(guest) as job, \
            Traffic(lab, guest, "eth0", "both", 86400) as traffic:
        assert job.wait_for(lambda: job.stdout.count(b"fio version") > 1, 60)
        traffic.wait_flow()
        for _ in range(kills):
            pauses.measure()
            pauses.all.pop()
            ended_and_started(lab)
            pauses.measure()
            # In the same connection.
            traffic.wait_flow()
        result = interrupted(job)
    assert result["write"]["total_ios"] > 0 and result["read"]["total_ios"] > 0, result
    print(f"  {kills} kills, {result['write']['total_ios']} writes, "
          f"{result['read']['total_ios']} verified; pause: median "
          f"{statistics.median(pauses.all):.0f} ms, worst {max(pauses.all)} ms", flush=True)
    errors = guest.run("dmesg | grep -iE 'I/O error|blk_update|NETDEV WATCHDOG' || true").stdout
    assert not errors, errors


def in_mode(mode, kills):
    """A test in address mode `mode`."""
    def test(lab):
        with SETUPS[mode](lab) as guest:
            assert Device(guest, "/sys/block/vda").read("mode") == mode
            assert len(guest.run(["ls", "/sys/block/vda/mq"]).stdout.split()) == QUEUES
            connect(guest, devices=["eth0"])
            # What a disk, a card and their users take once is taken.
            killed_under_load(lab, guest, 2)
            logged(lab, guest, 1, signal.SIGTERM)
            # But for its memory: what fio and iperf3 have left there is no leak.
            before = count(lab, guest, memory=False)
            killed_under_load(lab, guest, kills)
            logged(lab, guest, kills, signal.SIGKILL)
            assert_same(lab, guest, before)
    test.__doc__ = f"Killed under load, with buffers of mode {mode}."
    test.limit = LIMIT + 60 * kills
    return test


def logged(lab, guest, rounds, number):
    """Blocks carry sequence numbers: none is lost, none comes back, all that was flushed is
    in the file while no daemon runs."""
    with WriteLog(lab, guest, "/dev/vda", FILE) as log:
        for turn in range(rounds):
            ended_and_started(lab, number, log.check, again=turn % 2 == 1)
            guest.run("dd if=/dev/vda of=/dev/null bs=64k count=16 iflag=direct status=none")
        counts = log.end()
    print(f"  {rounds} times: {counts}", flush=True)


for _mode, _kills in ("pool", KILLS), ("grant", -(-KILLS // 4)), ("machine", -(-KILLS // 4)):
    add_test(globals(), f"killed_{_mode}", in_mode(_mode, _kills))


def test_ended_in_order(lab):
    """SIGTERM, as systemctl restart sends it."""
    with SETUPS["pool"](lab) as guest:
        logged(lab, guest, 3, signal.SIGTERM)
