# SPDX-License-Identifier: GPL-2.0
"""What the lab tests stand on, besides the lab itself."""
