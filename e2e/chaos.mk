# The long run under fire. See docs/how-to/prove-delivery.md.

.PHONY: test-chaos

test-chaos: ## Two million events while a seeded list of faults strikes (about 25 minutes; CHAOS="--seed 7 --minutes 5" repeats or shortens)
	@e2e/chaos $(CHAOS)
