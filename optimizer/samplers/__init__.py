"""Samplers: each a plain ``optuna.samplers.BaseSampler``, usable on any Optuna study (``mergefront.optimizer``).

``registry`` lists them by name without importing any.
"""
