"""Tasks: items, what is asked of a model about them, and how answers are scored.

No model library is imported here.
"""
