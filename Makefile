# SPDX-License-Identifier: GPL-2.0
#
# The entry point of the project. All output goes to build/. Every target can be
# interrupted and run again. `make help` lists the targets.

IMPL ?= rust
SECONDS ?= 60
# The tests behind an IOMMU run on the kernel with all checkers.
ifneq ($(filter-out 1,$(IOMMU)),)
$(error IOMMU is '$(IOMMU)'; give IOMMU=1, or leave it out)
endif
ifneq ($(IOMMU),)
override DEBUG := 1
endif
export LINUX DEBUG MODULES
unexport SECONDS

ifneq ($(filter-out 1,$(DEBUG)),)
$(error DEBUG is '$(DEBUG)'; give DEBUG=1, or leave it out)
endif
ifneq ($(filter-out 1 rst,$(LIST)),)
$(error LIST is '$(LIST)'; give LIST=1, LIST=rst, or leave it out)
endif
ifneq ($(filter-out 1,$(ICOUNT)),)
$(error ICOUNT is '$(ICOUNT)'; give ICOUNT=1, or leave it out)
endif

enter := scripts/enter
guest = --impl $(IMPL) $(if $(DEBUG),--debug) $(if $(TIMEOUT),--timeout $(TIMEOUT))

# ONLY leaves out what it does not name. Tests of this machine need no kernel.
tests_here := $(if $(ONLY),$(filter host host::%,$(ONLY)),all)
tests_in_guests := $(if $(ONLY),$(filter-out host host::%,$(ONLY)),all)

# Targets run one at a time, as each of them uses all CPUs.
.NOTPARALLEL:
.PHONY: help run test coverage mutants soak bench profile bench-um fuzz lint external kernel boot shell minutes host-tests ringfence apply unapply series series-check series-cc kconfig-matrix doc deb toolchain \
	tree guest only list clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  IMPL=rust|c chooses the implementation, DEBUG=1 the kernel with all checkers,'
	@echo '  IOMMU=1 runs only the device tests of that kernel, behind an IOMMU,'
	@echo '  LINUX=/path names another Linux 7.3 tree, TIMEOUT=seconds limits a guest.'
	@echo '  make test LIST=1 lists all tests, LIST=rst writes the catalogue in Documentation/.'
	@echo '  ONLY="..." takes tests, modules, groups (D10), kunit, kunit::SUITE and host, whole names only.'

run: kernel guest ## build everything, boot, and run the demonstration
	@$(enter) python3 scripts/run-demo $(guest) build/guest.cpio

test: $(if $(LIST),list,only $(if $(tests_in_guests),kernel guest) $(if $(tests_here),host-tests)) ## run KUnit and user-space tests in QEMU: [IMPL=c] [DEBUG=1] [IOMMU=1] [ONLY="D1 filters::inherit"] [LIST=1]
	@$(if $(LIST),,$(if $(tests_in_guests),$(enter) python3 scripts/run-tests $(guest) $(if $(IOMMU),--iommu) \
		$(if $(ONLY),--only '$(tests_in_guests)') build/guest.cpio))

list: toolchain
	@$(enter) python3 scripts/catalogue.py $(if $(filter rst,$(LIST)),rst,list)

only: toolchain
	@$(if $(ONLY),$(enter) python3 scripts/catalogue.py check '$(ONLY)')

lint doc: override IMPL := rust
lint doc bench profile: override DEBUG :=

lint: kernel ## check licences, format, Rust, C, patches, scripts: [ONLY="clippy sparse"]
	@scripts/lint $(ONLY)

soak: minutes kernel guest ## run the stress tests over and over: MINUTES=60 [SEED=1] [IMPL=c] [DEBUG=1]
	@$(enter) python3 scripts/run-tests $(guest) --soak $(MINUTES) $(SEED) -- build/guest.cpio

bench: tree guest ## count the instructions of filters and zcrx, C and Rust, in build/bench
	@scripts/kernel c
	@scripts/kernel rust
	@$(enter) python3 scripts/run-bench $(if $(TIMEOUT),--timeout $(TIMEOUT)) \
		--commit "$$(git describe --always --dirty 2>/dev/null || echo unknown)" build/guest.cpio

profile: tree guest ## count instructions by function, C and Rust: CASE="zcrx, NIC: buffer refilled"
	@test -n '$(CASE)' || { echo 'error: no case given; give CASE="tests family", or another that make bench shows' >&2; exit 1; }
	@scripts/kernel c
	@scripts/kernel rust
	@$(enter) python3 scripts/run-profile $(if $(TIMEOUT),--timeout $(TIMEOUT)) build/guest.cpio '$(CASE)'

bench-um: tree ## measure the nanoseconds of filters on this machine, without JIT and QEMU
	@DEBUG= scripts/kernel um
	@$(enter) python3 scripts/run-bench-um $(if $(TIMEOUT),--timeout $(TIMEOUT))

minutes:
	@case '$(MINUTES)' in *[!0-9]*|'') echo 'error: MINUTES is not a number; give MINUTES=60' >&2; exit 1;; esac

fuzz: toolchain ## run libFuzzer on filter programs and refill queues: [SECONDS=60] [KEEP=1]
	@case '$(SECONDS)' in *[!0-9]*|'') echo 'error: SECONDS is not a number; give SECONDS=60' >&2; exit 1;; esac
	@scripts/fuzz $(SECONDS) $(if $(KEEP),keep)

external: kernel ## run test programs built elsewhere: BIN="a b c" [IMPL=c] [SECONDS=60]
	@scripts/external build/external $(BIN)
	@scripts/tests build/external.cpio build/external
	@$(enter) python3 scripts/run-tests $(guest) build/external.cpio --external $(SECONDS) $(notdir $(BIN))

kernel: tree ## build build/kernel-rust (IMPL=rust) or build/kernel-c (IMPL=c)
	@scripts/kernel $(IMPL)

boot: ## boot a built kernel: INITRD=file [IMPL=c] [ICOUNT=1] [APPEND="…"]
	@test -n '$(INITRD)' || { echo 'error: no initramfs given; give INITRD=file' >&2; exit 1; }
	@test -e '$(INITRD)' || { echo 'error: there is no $(INITRD); give INITRD=file' >&2; exit 1; }
	@$(enter) -r '$(INITRD)' python3 scripts/boot $(guest) $(if $(ICOUNT),--icount) \
		--append '$(APPEND)' "$$(realpath '$(INITRD)')"

shell: kernel guest ## start an interactive shell in the guest
	@echo '        Ctrl-D ends the guest; so does Ctrl-A X at any time'
	@$(enter) python3 scripts/boot $(guest) --shell --append 'quiet kunit.enable=0 -- shell' \
		"$$PWD/build/guest-programs.cpio"

apply: ## add this project to a kernel tree of your own: LINUX=/path/to/linux
	@scripts/apply

unapply: ## remove it from that tree again: LINUX=/path/to/linux
	@scripts/apply --undo

series: tree ## write the patches for review to build/series: [SERIES=filters]
	@scripts/series

series-check: tree ## apply the patches one by one and build after each; takes long: [SERIES=filters]
	@scripts/series-check

series-cc: tree ## renew the lists of maintainers that the series go to: [SERIES=filters]
	@scripts/series --cc

kconfig-matrix: tree ## build io_uring with every combination of its options; takes long: [ONLY=surroundings]
	@scripts/kconfig-matrix $(ONLY)

doc: kernel ## build the documents and the pages of the Rust code, in build/doc/index.html
	@scripts/doc

deb: tree ## build Debian packages of a kernel with this project: [MODULES="ext4 virtio_blk"]
	@scripts/deb

toolchain: ## get compilers, QEMU and bindgen into build/
	@scripts/toolchain

tree: toolchain ## make Linux 7.3 with this project in build/linux
	@scripts/tree

guest: tree ## build the programs of tests/ and pack them into build/guest.cpio
	@scripts/tests "$$PWD/build/guest.cpio"

ringfence: toolchain ## build the program that confines rings, its manual pages and completions, in build/ringfence
	@scripts/ringfence

coverage: only tree guest ## find lines of our Rust that no test reaches: [ONLY="D10 D11"]
	@scripts/kernel coverage
	@scripts/coverage $(foreach word,$(ONLY),'$(word)')

mutants: tree guest ## make several hundred mutations; a test must notice each: [ONLY=zcrx/area]
	@$(if $(ONLY),:,scripts/mutants-host)
	@scripts/mutants $(ONLY)

host-tests: toolchain ## run the property tests, which need no kernel
	@scripts/host-tests $(if $(filter host%,$(ONLY)),'$(tests_here)')

clean: ## remove kernels, tree and packed programs; keep toolchain, base and cache
	@rm -rf build/kernel-* build/linux build/linux.* build/linux-* build/*.cpio build/external build/guest-programs build/ringfence \
		build/tests-target build/log build/kvm-probe build/series build/series-check build/kconfig-matrix build/bench build/coverage build/mutants build/mutants-host build/fuzz/target build/doc build/lint build/deb
