# SPDX-License-Identifier: GPL-2.0
"""What scripts/demo and scripts/bench measure with, on the lab of scripts/lab."""

import pathlib
import sys

SCRIPTS = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(SCRIPTS / "lab"))
