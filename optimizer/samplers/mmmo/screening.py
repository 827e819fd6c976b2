"""Fisher screening: how much a surrogate already knows about a point (arXiv 2407.00487, section 3.4)."""

from __future__ import annotations

import numpy as np

from mergefront.optimizer.arrays import Array, Integers
from mergefront.optimizer.samplers.options import FisherScreen


def fisher_information(variances: Array) -> Array:
    """Sum over objectives of 1 / posterior variance: ``n x m`` to ``n``. Low where the surrogate is uncertain."""
    return np.asarray((1.0 / variances).sum(axis=1))


def screen(information: Array, count: int, rule: FisherScreen) -> Integers:
    """Integers of the ``count`` candidates to evaluate: lowest information first ("low", as published), highest first
    ("high"), or in the given order ("off")."""
    if rule == "off":
        return np.arange(len(information))[:count]
    sign = 1.0 if rule == "low" else -1.0
    return np.argsort(sign * information, kind="stable")[:count]
