# SPDX-License-Identifier: GPL-2.0
"""A disk whose blocks carry sequence numbers, written all the time: see guest/writelog."""

import json
import time

from support import script, started

SLOTS, THREADS = 512, 16


class WriteLog:
    """Writes to a guest's disk, whose file is in dom0. A context manager."""

    def __init__(self, lab, guest, device, file):
        self._lab, self._file = lab, file
        guest.run(["blkdiscard", "-l", "2M", device])
        self._log = started(guest, "writelog", device, SLOTS, THREADS)
        self._log.wait_output("writing\n", 60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._log.close()

    def check(self):
        """Assert, while no daemon runs, that all that was flushed is in the file, and nothing
        that was not begun."""
        state = self._state()
        assert max(json.loads(state)["flushed"]) > 0
        self.check_file(state)

    def flushed(self):
        """What was flushed and begun, when most slots have something that was flushed."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            state = self._state()
            if json.loads(state)["flushed"].count(0) < SLOTS // 2:
                return state
        raise AssertionError("few slots were flushed in 120 s")

    def _state(self):
        lines = self._log.stdout.count(b"\n")
        self._log.write(b"state\n")
        assert self._log.wait_for(lambda: self._log.stdout.count(b"\n") > lines, 60), \
            self._log.stderr
        return self._log.stdout.splitlines()[-1]

    def check_file(self, state, *options):
        """Assert that the file is as the state says; options: of guest/writelog-check."""
        script(self._lab.dom0, "writelog-check", *options, self._file, stdin=state)

    def end(self):
        """Assert that nothing was lost or came back; returns how much was done of what."""
        self._log.write(b"end\n")
        counts = json.loads(self._log.wait(120, check=True).stdout.splitlines()[-1])
        assert min(counts.values()) > 0, counts
        return counts
