# SPDX-License-Identifier: GPL-2.0
"""Trouble that kernels and the hypervisor report on their consoles."""

import re

_TROUBLE = re.compile("|".join((
    r"\bWARNING: (?!.*\bout-of-tree\b)", r"\bBUG: ", r"kernel BUG at", r"\bOops\b",
    r"general protection fault", r"unable to handle",
    r"Kernel panic", r"INFO: task .* blocked for more than",
    r"possible (circular|recursive) locking", r"inconsistent lock state",
    r"suspicious RCU usage", r"\bbad unlock balance", r"held lock freed",
    r"rcu: INFO: .*stall", r"soft lockup", r"hard LOCKUP", r"\bUBSAN: ", r"\bKASAN: ",
    r"refcount_t: ", r"page allocation failure", r"Bad page state",
    r"g\.e\. 0x[0-9a-f]+ still in use", r"nobody cared", r"Xen BUG at",
    r"\(XEN\).*(FATAL|Panic|grant_table\.c|event_channel\.c)",
)))


def find(text, expected=None):
    """The lines of a console's text that report trouble, other than `expected`."""
    return [line.strip() for line in text.splitlines()
            if _TROUBLE.search(line) and not (expected and re.search(expected, line))]


def expected(pattern):
    """Decorates a test that makes a kernel report trouble which matches the pattern."""
    def decorate(test):
        test.expected_trouble = pattern
        return test
    return decorate


class Consoles:
    """All consoles of a lab from now on, those of guests to come included."""

    def __init__(self, lab):
        self._lab = lab
        self._sizes = {stat.st_ino: stat.st_size for stat in self._stats().values()}

    def _stats(self):
        return {path: path.stat() for path in self._lab.console_logs().values()}

    def texts(self):
        """Console name -> what it said since."""
        texts = {}
        for name, path in self._lab.console_logs().items():
            with open(path, "rb") as file:
                file.seek(self._sizes.get(path.stat().st_ino, 0))
                texts[name] = file.read().decode(errors="replace").replace("\r", "")
        return texts

    def trouble(self, pattern=None):
        """Console name -> lines that report trouble other than `pattern`, without the
        quiet consoles."""
        found = {name: find(text, pattern) for name, text in self.texts().items()}
        return {name: lines for name, lines in found.items() if lines}
