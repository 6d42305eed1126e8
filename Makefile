# Penstock. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

.PHONY: help quickstart test test-unit lint generate build install-operator

help: ## This list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: ## From nothing to events in ClickHouse (first run about 25 minutes, later runs under 2)
	@e2e/quickstart

test: ## All tests: static checks, unit, real Kafka, ClickHouse and API server, end to end
	@e2e/test

test-unit: ## Tests that need nothing but Rust
	cargo test --release --workspace

lint: ## Formatting and lints, warnings denied
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings

generate: ## Write generated files anew: CRD YAML, field reference, chart schema
	cargo run --release --quiet -p penstock-crds --bin crdgen

build: ## Build all binaries
	cargo build --release --workspace --bins

install-operator: ## Images and charts of this clone, onto the running platform
	@e2e/install-operator

include e2e/bench.mk
include e2e/chaos.mk
include e2e/platform.mk
include charts/charts.mk
