"""Studies, claims, evaluations and item scores in one SQL database, beside Optuna's tables.

Evaluates nothing and proposes nothing.
"""
