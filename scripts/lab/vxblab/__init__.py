# SPDX-License-Identifier: GPL-2.0
"""The lab: Xen, dom0 and guests under QEMU, driven from Python."""
