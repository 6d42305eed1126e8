.PHONY: chart-check

chart-check: ## Lint the charts and have a running API server take what they render (platform or your own cluster)
	@charts/check
