#!/bin/bash
# SPDX-License-Identifier: GPL-2.0

check() {
	return 0
}

depends() {
	return 0
}

# Also for a disk that this machine does not have yet.
installkernel() {
	hostonly='' instmods virtio_xenbus virtio_blk virtio_net
}
