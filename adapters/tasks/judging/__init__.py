"""Answers graded by another model: what it is asked, how its verdicts are read, what becomes of them as scores."""
