"""Samplers against each other on real merges of small trained experts: ``python -m benchmarks.search``."""
