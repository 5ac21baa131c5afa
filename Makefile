# The commands of this repository. The demo and the tests need root, since the lab makes network namespaces.

CARGO ?= cargo

.PHONY: help
help:
	@echo 'make demo          open one tunnel from end to end, show each stage, tear down (KEEP=1: leave it running)'
	@echo 'make test          formatting, lints, unit tests, and the tests on the real stack'
	@echo 'make bench         measure against what a person would do instead (BENCH=--help lists options)'
	@echo 'make simulate      lose servers of a fleet of a million devices, in virtual time (SIMULATE=--help)'
	@echo 'make faults        inject one fault after another and check that the promises hold; FAULTS="--list" names them'
	@echo 'make soak          random faults under load, for SOAK=30m or as long as you say, such as SOAK=8h'
	@echo 'make api-test      try the HTTP API against its own OpenAPI document, with schemathesis from PyPI'
	@echo 'make ansible-test  ansible, from PyPI, over the devices of a lab'
	@echo 'make metrics-test  the alerts by promtool, and each query of the dashboard in a Prometheus that reads a lab'
	@echo 'make operations-test  the files for running at scale: firewall, WireGuard, keepalived, fail2ban, DNS, ACME, recipes; PARTS="firewall"'
	@echo 'make recording     make the picture in the README from a real run'
	@echo 'make fuzz          feed each parser what breaks parsers, for FUZZ_SECONDS=60 each; needs nightly'
	@echo 'make deny          check what we depend on: licenses, sources, what is banned'
	@echo 'make build         build every program'
	@echo 'make docs          build docs/ as a book into target/book, and check its links'
	@echo 'make packages      build the .deb and .rpm packages into target/packages; PROFILE=dev is faster'
	@echo 'make package-check lintian, rpmlint and an install by rpm into an empty root'
	@echo 'make package-test  the packages in fresh Debian systems, booted with systemd, from apt to purge; SUITES="bookworm"'
	@echo 'make debian-packages  install the Debian packages that the demo and the tests need'

.PHONY: debian-packages
debian-packages:
	@packaging/install-debian-packages

.PHONY: build
build: debian-packages
	$(CARGO) build --locked --workspace --bins

.PHONY: demo
demo: build
	@$(CARGO) run --quiet --locked --package rssh-lab --bin rssh-lab -- demo $(if $(KEEP),--keep)

.PHONY: test
test: build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- --deny warnings
	$(CARGO) test --locked --workspace

# The agent that devices get is a build of its own.
.PHONY: bench
bench: debian-packages
	$(CARGO) build --locked --release --workspace --bins
	$(CARGO) build --locked --profile device --package rssh-agentd
	@# What is not there is reported as missing.
	-@packaging/install-cargo-tools bore-cli rathole
	@target/release/rssh-bench $(BENCH)

# A million devices, in virtual time; SIMULATE=--help lists options.
.PHONY: simulate
simulate:
	$(CARGO) build --locked --release --package rssh-lab --bin rssh-simulate
	@target/release/rssh-simulate $(SIMULATE)

.PHONY: faults
faults: build
	@target/debug/rssh-faults $(FAULTS)

SOAK ?= 30m
.PHONY: soak
soak: build
	@target/debug/rssh-faults soak --time $(SOAK)

.PHONY: api-test
api-test: build
	@tests/api-test

.PHONY: ansible-test
ansible-test: build
	@tests/ansible-test

.PHONY: metrics-test
metrics-test: build
	$(CARGO) test --locked --package rssh-lab --test stories -- metrics:: dashboard::

# Needs root, and installs what packaging/operations-packages.txt lists; Modbus comes from PyPI.
.PHONY: operations-test
operations-test: build
	@packaging/install-debian-packages operations-packages.txt
	@tests/operations/run $(PARTS)

.PHONY: recording
recording: build
	@target/debug/rssh-lab record docs/demo.svg

.PHONY: docs
docs:
	@packaging/install-cargo-tools mdbook
	@docs/build

# cargo's profile for the packages.
PROFILE ?= dist
.PHONY: packages
packages:
	@packaging/install-cargo-tools cargo-deb cargo-generate-rpm
	@PROFILE=$(PROFILE) packaging/build

.PHONY: package-check
package-check: packages
	@packaging/test/deb
	@packaging/test/rpm

# Needs root, debootstrap, systemd-container, nftables and dnsmasq-base; the Debian systems are kept in target/package-test.
SUITES ?= bookworm trixie
.PHONY: package-test
package-test:
	@packaging/install-cargo-tools cargo-deb
	@PROFILE=$(PROFILE) packaging/build deb
	@packaging/test/run $(SUITES)

# The advisories come from the network: DENY=advisories, or DENY= for all.
DENY ?= bans licenses sources
.PHONY: deny
deny:
	@packaging/install-cargo-tools cargo-deny
	@target/tools/bin/cargo-deny --locked --config packaging/deny.toml check $(DENY)

FUZZ_SECONDS ?= 60
FUZZ := envelope ids authorize name map config sanitize
.PHONY: fuzz
fuzz:
	@packaging/install-cargo-tools cargo-fuzz
	@# What is found on the way stays under target; the committed corpus is where each run begins.
	for name in $(FUZZ); do \
	    mkdir -p target/fuzz/$$name; \
	    PATH="$(CURDIR)/target/tools/bin:$$PATH" cargo +nightly fuzz run --fuzz-dir tests/fuzz \
	        --target-dir target/fuzz-build $$name target/fuzz/$$name tests/fuzz/corpus/$$name -- \
	        -max_total_time=$(FUZZ_SECONDS) -max_len=8192 || exit 1; \
	done
