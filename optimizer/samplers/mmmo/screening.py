"""Fisher screening: how much a surrogate already knows about a point (arXiv 2407.00487, section 3.4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mergefront.optimizer.samplers.options import FisherScreen


def fisher_information(variances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over objectives of 1 / posterior variance: ``n x m`` to ``n``. Low where the surrogate is uncertain."""
    return np.asarray((1.0 / variances).sum(axis=1))


def screen(information: NDArray[np.float64], count: int, rule: FisherScreen) -> NDArray[np.int_]:
    """Indexes of the ``count`` candidates to evaluate: lowest information first ("low", as published), highest first
    ("high"), or in the given order ("off")."""
    if rule == "off":
        return np.arange(len(information))[:count]
    sign = 1.0 if rule == "low" else -1.0
    return np.argsort(sign * information, kind="stable")[:count]
