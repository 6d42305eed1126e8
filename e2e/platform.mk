# The local platform: a real cluster on this machine. See docs/how-to/local-platform.md.

.PHONY: platform platform-down platform-bin

# The program that does the work; it compiles in about a minute.
platform-bin:
	@cargo build --release --quiet -p penstock-platform

## platform: a real single-node cluster with Kafka and ClickHouse (15 minutes the first time, then under one)
platform: platform-bin
	@target/release/platform up

## platform-down: stop it and keep the data; DATA=wipe removes the data too
platform-down: platform-bin
	@target/release/platform down $(if $(filter wipe,$(DATA)),--wipe-data,--keep-data)
