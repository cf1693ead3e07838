# SPDX-License-Identifier: GPL-2.0
"""Figures as JSON lines and as a table."""

import json

LEAST = 0.7  # of the stock drivers; below it needs a reason
CLOCKS = ("wall", "instructions")
DRIVERS = {"virtio": "virtio_xenbus"}


class Report:
    """Takes figures as they come. Each is written to the file at once."""

    def __init__(self, file):
        self._file = file
        self._figures = {}

    def add(self, case, path, clock, value, runs):
        """value: in case.unit, of `runs` runs by this clock."""
        unit = case.unit
        if clock == "instructions":
            # A nanosecond is an instruction: per operation is how to read that.
            value = 1e9 / case.operations(value)
            unit = f"instructions per {case.operation}"
        self._figures[case.name, clock, path] = value, unit
        stock = "xen-netfront" if case.name.startswith("tcp") else "xen-blkfront"
        json.dump({"test": case.name, "driver": DRIVERS.get(path, stock), "clock": clock,
                   "value": round(value, 3), "unit": unit, "runs": runs}, self._file)
        self._file.write("\n")
        self._file.flush()

    def ratio(self, name, clock):
        """How much faster virtio_xenbus is than stock; None without both figures."""
        virtio, stock = (self._figures.get((name, clock, path), (None,))[0]
                         for path in ("virtio", "stock"))
        if not virtio or not stock:
            return None
        return virtio / stock if clock == "wall" else stock / virtio

    def line(self, name, clock):
        """A line of the table: one test by one clock."""
        cells, unit = [], ""
        for path in ("virtio", "stock"):
            value, unit = self._figures.get((name, clock, path), (None, unit))
            cells.append("-" if value is None else f"{value:.0f}")
        ratio = self.ratio(name, clock)
        text = "-" if ratio is None else f"{ratio:.2f}"
        flag = f"  BELOW {LEAST}" if ratio is not None and ratio < LEAST else ""
        return (f"{name:18} {clock:12} {cells[0]:>13} {cells[1]:>10} {text:>5}  "
                f"{unit}{flag}")

    def table(self):
        """All of them."""
        head = (f"{'test':18} {'clock':12} {'virtio_xenbus':>13} {'stock':>10} "
                f"{'ratio':>5}  unit")
        rows = dict.fromkeys((name, clock) for name, clock, _ in self._figures)
        return [head, *(self.line(*row) for row in rows)]
