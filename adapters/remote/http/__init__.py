"""One HTTP client for every server: retries, breaker, budget, cache. It knows no server by name."""
