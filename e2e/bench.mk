# What the data plane needs for an event. See docs/benchmarks.md.

.PHONY: bench

bench: ## Measure beside a bare handler and ClickHouse's Kafka engine (first build 20 minutes, then about 15; on an idle machine)
	@e2e/bench/run $(BENCH)
