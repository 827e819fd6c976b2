"""Talking to the merges of a study: which one answers, what was said before, how an answer is written."""
