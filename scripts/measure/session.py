# SPDX-License-Identifier: GPL-2.0
"""A lab that is gone when its user is, and progress for who waits for it."""

import contextlib
import os
import signal
import sys
import time

from vxblab.lab import Lab, LabError

STARTED = time.monotonic()
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def say(text):
    """A line of progress, after the seconds since the start."""
    print(f"{time.monotonic() - STARTED:5.0f} s  {text}", flush=True)


def interrupt(number, _frame):
    raise KeyboardInterrupt(signal.Signals(number).name)


def listen(handler):
    for number in SIGNALS:
        signal.signal(number, handler)


def run(main):
    """Exit with main()'s status; a failure or a signal ends in one line, after
    everything has been taken down."""
    listen(interrupt)
    name = os.path.basename(sys.argv[0])
    try:
        sys.exit(main())
    except (LabError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as why:
        print(f"{name}: interrupted ({why})", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def booted(name, **options):
    """The lab `name`, booted for this and ended afterwards. options: as Lab.up."""
    lab = Lab(os.environ.get("VXB_LAB", name))
    if lab.running:
        raise LabError(f"a lab '{lab.name}' runs already; end it with: "
                       f"scripts/lab/lab --name {lab.name} down")
    try:
        yield lab.up(**options)
    finally:
        # Impatience must not leave a machine behind.
        listen(signal.SIG_IGN)
        lab.down()
        listen(interrupt)
