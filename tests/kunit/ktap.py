# SPDX-License-Identifier: GPL-2.0
"""The log of a KUnit kernel: results of the suites, and what the kernel itself
complains about."""

import re

STAMP = re.compile(r"^\[ *\d+\.\d+\] ?")
PLAN = re.compile(r"^( *)1\.\.(\d+)$")
SUBTEST = re.compile(r"^ +# Subtest: (\S+)$")
RESULT = re.compile(r"^( *)(not )?ok \d+ (\S+)(?:.*# (SKIP\b.*))?")
COMPLAINT = re.compile(
    r"WARNING:|BUG:|BUG at|INFO: (task|rcu|possible|trying)|possible .* detected"
    r"|Oops|general protection|Kernel panic|Call Trace:|ODEBUG|corruption"
    r"|inconsistent lock|bad: scheduling|unable to handle")


class Results:
    """What the part of the log that begins with `start` says."""

    def __init__(self, log, start):
        self.passed = 0
        self.failures = []
        self._suite = None
        self._note = []
        self._expected = {}
        self._seen = {}
        lines = [STAMP.sub("", line.rstrip("\r")) for line in log.split("\n")]
        for line in lines:
            if COMPLAINT.search(line):
                self.failures.append(f"the kernel complains: {line.strip()}")
        begin = next((number for number, line in enumerate(lines) if start in line), None)
        if begin is None:
            self.failures.append(f"the log has no '{start}': the kernel did not get that far")
            return
        for line in lines[begin:]:
            self._line(line)
        for scope, number in self._expected.items():
            if self._seen.get(scope, 0) != number:
                self.failures.append(f"{scope or 'suites'}: {number} planned, "
                                     f"{self._seen.get(scope, 0)} reported")
        if not self.passed and not self.failures:
            self.failures.append("no test was run")

    def _line(self, line):
        if match := SUBTEST.match(line):
            self._suite = match[1]
            self._note = []
        elif match := PLAN.match(line):
            self._expected[self._suite if match[1] else ""] = int(match[2])
        elif match := RESULT.match(line):
            self._result(*match.groups())
        elif "speed:" not in line and line.startswith(("    # ", "        ")):
            self._note.append(line.strip())

    def _result(self, indent, failed, name, skip):
        if not indent:
            self._seen[""] = self._seen.get("", 0) + 1
            self._suite = None
            return
        self._seen[self._suite] = self._seen.get(self._suite, 0) + 1
        if failed:
            self.failures.append(f"{self._suite}.{name}: " + " ".join(self._note))
        elif skip:
            self.failures.append(f"{self._suite}.{name}: skipped, {skip}")
        else:
            self.passed += 1
        self._note = []
