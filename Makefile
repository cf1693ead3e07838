# SPDX-License-Identifier: GPL-2.0
#
# make help. Kbuild is what builds the module; this file is the way to it and to
# all the rest. Documentation/building.rst

ifdef KDIR
KVER ?= $(shell cat "$(KDIR)/include/config/kernel.release")
else
KVER ?= $(shell uname -r)
endif
build := $(CURDIR)/build
modules := $(build)/modules/$(KVER)
in_tree := scripts/in-build-tree

.PHONY: all modules tools man packages demo check soak kunit lab bench lint format payload clean help
all: modules

modules:
	@kdir=$$(scripts/rust-metadata "$(KVER)") && \
	$(MAKE) --no-print-directory -C "$$kdir" \
		M="$(CURDIR)" MO="$(modules)" modules && \
	scripts/check-symbols "$(modules)/drivers/virtio/xenbus/virtio_xenbus.ko" \
		"$$kdir/Module.symvers" && \
	cp "$(modules)/drivers/virtio/xenbus/virtio_xenbus.ko" "$(build)" && \
	echo "built for $(KVER): build/virtio_xenbus.ko"

tools:
	cargo build --release --locked --manifest-path tools/Cargo.toml \
		--target-dir "$(build)/tools"

man:
	scripts/man-pages "$(build)/man"

# From here on a Debian 13 tree of the project's own has the compilers, so that
# these work on Debian 12 too.
payload packages demo check soak kunit lab bench lint format: setup

.PHONY: setup
setup:
	@scripts/setup-host

payload:
	@$(in_tree) scripts/payload "$(build)/payload"

packages:
	@$(in_tree) scripts/build-debs "$(build)/packages"

demo bench: payload
	@scripts/$@ $(ARGS)

lab: payload
	@scripts/lab/lab $(ARGS)

check:
	@scripts/check

soak: payload
	@tests/lab/soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(ARGS)

kunit:
	@tests/kunit/run

lint:
	@$(in_tree) scripts/lint

format:
	@$(in_tree) scripts/lint --format

clean:
	rm -rf "$(build)"

help:
	@echo 'make [KVER=release] [KDIR=headers]   build/virtio_xenbus.ko for the running or'
	@echo '                                     a named kernel (W=1 CLIPPY=1 C=1 as in the'
	@echo '                                     kernel)'
	@echo 'make tools                           virtio-xenbusd and its control tool'
	@echo 'make man                             manual pages, in build/man'
	@echo
	@echo 'As root on Debian 12 or 13; packages, Debian trees and kernels are fetched:'
	@echo 'make demo      boot Xen, dom0 and a guest; show a disk and a card at work'
	@echo 'make check     all tests; ends with "N passed, N failed"'
	@echo 'make soak      [MINUTES=60] [SEED=n] what happens in production, at random'
	@echo 'make kunit     the KUnit suites alone'
	@echo 'make lab       the running system by hand: dom0 shell, guest console'
	@echo 'make bench     fio and iperf3, beside xen-blkfront and xen-netfront'
	@echo 'make packages  Debian packages, in build/packages'
	@echo 'make payload   module and daemon as the lab takes them, in build/payload'
	@echo 'make lint      every checker; make format formats'
	@echo 'make clean     removes build/ (the cache is $${VXB_CACHE:-/var/cache/virtio-xenbus})'
