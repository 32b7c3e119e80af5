# `make demo`: a cluster on this machine. `make test`: everything that must hold. Both set up what they need.

# What the demo understands: make demo N=5 SSL_ENABLED=true RESTART_AFTER=30 DEMO_DIR=/somewhere FRESH=1
N ?= 3
SSL_ENABLED ?= false
RESTART_AFTER ?= 3
DEMO_DIR ?= demo-data
FRESH ?=

# How many random runs of the simulated cluster `make test` makes.
SEEDS ?= 10000

export PATH := $(PATH):$(HOME)/.cargo/bin

# What runs is the release build: the footprint that is promised is this one's. The tests use the development profile.
BIN := target/release

.PHONY: help demo test test-agent test-containers bench fix setup build

help:
	@echo 'make demo    a 3-node cluster on this machine, with things to try (N=5, SSL_ENABLED=true, RESTART_AFTER=30, FRESH=1)'
	@echo 'make test    format, lints, all tests, documentation: the gate'
	@echo 'make test-containers   the image and the compose file, every case (make test runs the quick ones)'
	@echo 'make test-agent        agent mode beside stock Patroni, and tools of Patroni on a cluster, every case'
	@echo 'make bench   outage and lost writes per kind of failure, start-up time, footprint'
	@echo 'make fix     formats the code and applies the lints that can be applied by a machine'

setup:
	@scripts/setup.sh

build: setup
	cargo build --workspace --release --locked

demo: build
	@$(BIN)/pgherd demo --nodes $(N) --ssl $(SSL_ENABLED) --restart-after $(RESTART_AFTER) --dir $(DEMO_DIR) $(if $(FRESH),--fresh)

test:
	@scripts/setup.sh test
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo build --workspace --locked
	SEEDS=$(SEEDS) cargo test --workspace --locked
	@# Private items are documented too, so a link to one is no mistake.
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --workspace --locked --no-deps --document-private-items
	@# One TLS provider: aws-lc-rs. An inverse tree with a line in it names who brought the other one back.
	@tree=$$(cargo tree --workspace --locked --target all -i ring 2>/dev/null || true); \
	    [ -z "$$tree" ] || { echo "ring is back in the dependency tree:"; echo "$$tree"; exit 1; }
	@echo 'all good'

# `make test` runs the quick half of these, where a Docker engine answers.
test-containers:
	@scripts/setup.sh test
	cargo build --workspace --locked
	CONTAINERS=all cargo test --locked --test containers -- --nocapture

# Agent mode beside stock Patroni, and what its tools do to a cluster; `make test` leaves the longest cases out.
test-agent:
	@scripts/setup.sh test
	cargo build --workspace --locked
	AGENT=all cargo test --locked --test agent
	AGENT=all cargo test --locked --test cluster -- patronictl:: clients::

bench: setup
	cargo build --workspace --release --locked
	cargo bench --bench failover --locked

fix: setup
	cargo clippy --fix --allow-dirty --allow-staged --workspace --all-targets
	cargo fmt --all
