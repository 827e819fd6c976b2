"""Studies, claims, evaluations and item scores in one SQL database, beside Optuna's tables.

Evaluates nothing and proposes nothing.
"""

DEFAULT_STORAGE = "sqlite:///mergefront.db"
"""The database of whoever names none: a file in the current folder."""
