# The local platform: a real cluster on this machine. See docs/how-to/local-platform.md.

.PHONY: platform platform-down platform-bin

# The program that does the work; it compiles in about a minute.
platform-bin:
	@cargo build --release --quiet -p penstock-platform

platform: platform-bin ## A real single-node cluster with Kafka and ClickHouse (first time 15 minutes, later under one)
	@target/release/platform up

platform-down: platform-bin ## Stop it and keep its data; DATA=wipe removes that too
	@target/release/platform down $(if $(filter wipe,$(DATA)),--wipe-data,--keep-data)
