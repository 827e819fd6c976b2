"""MM-MO: multi-objective Bayesian search over merge coefficients."""
