"""Metrics: from a model's answers to a score per item."""
