"""Many objectives as one number: augmented Chebyshev scalarisation (Knowles, "ParEGO", IEEE TEVC 10(1), 2006)."""

from __future__ import annotations

import numpy as np

from mergefront.optimizer.arrays import Array

AUGMENTATION = 0.05
"""ParEGO's rho."""


def random_weights(objectives: int, rng: np.random.Generator) -> Array:
    """A point drawn uniformly from the simplex (``m``)."""
    exponential = rng.standard_exponential(objectives)
    return np.asarray(exponential / exponential.sum())


def chebyshev(values: Array, weights: Array) -> Array:
    """Normalised, maximised values (``n x m``) as ``n x 1``, larger is better; 1 is the ideal of every objective."""
    missing = weights * (1.0 - values)
    if not len(missing):
        return np.zeros((0, 1))
    return np.asarray(-(missing.max(axis=1) + AUGMENTATION * missing.sum(axis=1))[:, None])
