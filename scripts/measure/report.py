# SPDX-License-Identifier: GPL-2.0
"""Figures as JSON lines and as a table."""

import json

from .system import PATHS

LEAST = {"wall": 0.9, "instructions": 1.0}  # of the stock drivers, in the best mode
CLOCKS = tuple(LEAST)


class Report:
    """Takes figures as they come. Each is written to the file at once."""

    def __init__(self, file):
        self._file = file
        self._figures = {}
        self._units = {}

    def add(self, case, path, clock, value, runs):
        """value: in case.unit, of `runs` runs by this clock."""
        unit = case.unit
        if clock == "instructions":
            # A nanosecond is an instruction: per operation is how to read that.
            value = 1e9 / case.operations(value)
            unit = f"instructions per {case.operation}"
        self._figures[case.name, clock, path] = value
        self._units[case.name, clock] = unit
        stock = "xen-netfront" if case.name.startswith("tcp") else "xen-blkfront"
        driver = stock if path == "stock" else f"virtio_xenbus {path}"
        json.dump({"test": case.name, "driver": driver, "clock": clock,
                   "value": round(value, 3), "unit": unit, "runs": runs}, self._file)
        self._file.write("\n")
        self._file.flush()

    def ratio(self, name, clock, path):
        """How much faster a path is than stock; None without both figures."""
        value, stock = (self._figures.get((name, clock, each)) for each in (path, "stock"))
        if not value or not stock:
            return None
        return value / stock if clock == "wall" else stock / value

    def line(self, name, clock):
        """A line of the table: one test by one clock."""
        cells, ratios = [], []
        for path in PATHS:
            value = self._figures.get((name, clock, path))
            ratio = None if path == "stock" else self.ratio(name, clock, path)
            cells.append(("-" if value is None else f"{value:.0f}")
                         + ("" if ratio is None else f" {ratio:.2f}"))
            ratios += [ratio] if ratio is not None else []
        least = LEAST[clock]
        flag = f"  BELOW {least}" if ratios and max(ratios) < least else ""
        return (f"{name:18} {clock:12} {''.join(f'{cell:>14}' for cell in cells)}"
                f"  {self._units[name, clock]}{flag}")

    def table(self):
        """All of them."""
        head = f"{'test':18} {'clock':12} {''.join(f'{path:>14}' for path in PATHS)}  unit"
        rows = dict.fromkeys((name, clock) for name, clock, _ in self._figures)
        return [head, *(self.line(*row) for row in rows)]
