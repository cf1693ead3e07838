# SPDX-License-Identifier: GPL-2.0
"""The backend, here in dom0 or in a driver domain: daemon start CONFIG | stop [SIGNAL].

It is run as systemd runs it: Type=notify, so that "started" means that it watches
xenstore, and not that some time has passed.
"""

import contextlib
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import time

PROGRAM = "/payload/virtio-xenbusd"
LOG = pathlib.Path("/var/log/virtio-xenbusd.log")
NOTIFY = pathlib.Path("/run/lab/notify")
PID = pathlib.Path("/run/lab/daemon.pid")
TIMEOUT = 20  # seconds


def running():
    """A pidfd and the pid of the daemon, or None."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        pid = int(PID.read_text())
        if os.readlink(f"/proc/{pid}/exe") == PROGRAM:
            return os.pidfd_open(pid), pid
    return None


def log_since(start):
    with open(LOG, "rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


def start(config, arguments):
    if running():
        sys.exit("daemon: it runs already; daemon stop")
    if not os.access(PROGRAM, os.X_OK):
        sys.exit(f"daemon: no program {PROGRAM}; build it and see VXB_PAYLOAD")
    NOTIFY.parent.mkdir(exist_ok=True)
    NOTIFY.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, open(LOG, "ab") as log:
        before = log.tell()
        notify.bind(str(NOTIFY))
        process = subprocess.Popen(
            [PROGRAM, "--config", config, *arguments], stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "NOTIFY_SOCKET": str(NOTIFY)})
        PID.write_text(f"{process.pid}\n")
        ended = os.pidfd_open(process.pid)
        deadline = time.monotonic() + TIMEOUT
        while True:
            left = deadline - time.monotonic()
            ready = select.select([notify, ended], [], [], max(0, left))[0]
            if notify in ready:
                if b"READY=1" in notify.recv(4096).split(b"\n"):
                    return
            elif ended in ready:
                sys.exit(f"daemon: it ended with status {process.wait()}:\n"
                         f"{log_since(before)}")
            else:
                process.kill()
                sys.exit(f"daemon: not ready (READY=1) after {TIMEOUT} s; its log:\n"
                         f"{log_since(before)}")


def stop(number):
    found = running()
    if not found:
        sys.exit("daemon: it does not run")
    ended, pid = found
    signal.pidfd_send_signal(ended, number)
    if not select.select([ended], [], [], TIMEOUT)[0]:
        threads = subprocess.run(["ps", "-Lo", "tid,stat,wchan:24,time,comm", "-p", str(pid)],
                                 check=False, stdout=subprocess.PIPE, text=True).stdout
        sys.exit(f"daemon: process {pid} still there {TIMEOUT} s after signal {number}:\n"
                 f"{threads}")
    PID.unlink(missing_ok=True)


def main():
    words = sys.argv[1:]
    if words[:1] == ["start"] and len(words) >= 2:
        start(words[1], words[2:])
    elif words[:1] == ["stop"] and len(words) <= 2:
        stop(int(words[1]) if words[1:] else signal.SIGTERM)
    elif words == ["status"]:
        found = running()
        print(found[1] if found else "does not run")
        sys.exit(0 if found else 1)
    else:
        sys.exit("usage: daemon start CONFIG [ARGUMENT...] | stop [SIGNAL] | status")


if __name__ == "__main__":
    main()
