# The commands of this repository. The demo and the tests need root, since the lab makes network namespaces.

CARGO ?= cargo

.PHONY: help
help:
	@echo 'make demo          open one tunnel from end to end, show each stage, tear down (KEEP=1: leave it running)'
	@echo 'make test          formatting, lints, unit tests, and the tests on the real stack'
	@echo 'make bench         measure against what a person would do instead (BENCH=--help lists options)'
	@echo 'make faults        inject one fault after another and check that the promises hold; FAULTS="--list" names them'
	@echo 'make soak          random faults under load, for SOAK=30m or as long as you say, such as SOAK=8h'
	@echo 'make build         build every program'
	@echo 'make packages      install the Debian packages that the demo and the tests need'

.PHONY: packages
packages:
	@packaging/install-debian-packages

.PHONY: build
build: packages
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
bench: packages
	$(CARGO) build --locked --release --workspace --bins
	$(CARGO) build --locked --profile dist --package rssh-agentd
	@target/release/rssh-bench $(BENCH)

.PHONY: faults
faults: build
	@target/debug/rssh-faults $(FAULTS)

SOAK ?= 30m
.PHONY: soak
soak: build
	@target/debug/rssh-faults soak --time $(SOAK)
