"""Samplers to compare with: CMA-ES, Sobol and Optuna's own, made repeatable."""
