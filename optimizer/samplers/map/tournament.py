"""Nested MAP (arXiv 2406.07529, section 3): many experts merged in pairs, so that every problem has two dimensions.

Round by round, two merges meet: a quadratic in their two scales is fitted to a handful of evaluations, and the mixture
it expects most of goes on to the next round. N experts take N - 1 matches, where a quadratic in all N weights has
(N + 1)(N + 2) / 2 coefficients. The matches follow from the evaluated points alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.samplers.common.lora_coefficients import Coefficients
from mergefront.optimizer.samplers.map.quadratic import fit_quadratic

SCALES = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.9, 0.6], [0.6, 0.9], [0.3, 0.3]])
"""Scales of the two sides that a match evaluates: as many as a quadratic in two variables has coefficients."""
_GRID = np.stack(np.meshgrid(np.linspace(0.0, 1.0, 21), np.linspace(0.0, 1.0, 21)), axis=-1).reshape(-1, 2)


def next_point(coefficients: Coefficients, observed: Mapping[bytes, Array], taken: set[bytes]) -> Array | None:
    """The next point (``d``) that a match needs; None when the tournament is over.

    ``observed`` maps the bytes of evaluated points to their values (``m``, all maximised in one unit); ``taken`` holds
    every point that was proposed, the failed and the unfinished included: a match does not wait for them.
    """
    sides = [{name: 1.0} for name in coefficients.loras]
    while len(sides) > 1:
        winners = []
        for left, right in zip(sides[::2], sides[1::2], strict=False):
            points = [coefficients.mix(_mixed(left, right, scales)) for scales in SCALES]
            for point in points:
                if point.tobytes() not in taken:
                    return point
            winners.append(_mixed(left, right, _best_scales(points, observed)))
        # An odd one out goes on without a match.
        sides = [*winners, *sides[2 * len(winners) :]]
    return None


def _mixed(left: Mapping[str, float], right: Mapping[str, float], scales: Array) -> dict[str, float]:
    """The merge of two disjoint merges at these scales (``2``)."""
    return {
        **{name: float(scales[0]) * weight for name, weight in left.items()},
        **{name: float(scales[1]) * weight for name, weight in right.items()},
    }


def _best_scales(points: list[Array], observed: Mapping[bytes, Array]) -> Array:
    """The scales (``2``) of largest expected sum of objectives; equal halves when next to nothing was observed."""
    rows = [i for i, point in enumerate(points) if point.tobytes() in observed]
    if len(rows) < 2:
        return np.array([0.5, 0.5])
    total = np.array([float(observed[points[i].tobytes()].sum()) for i in rows])
    expected, _ = fit_quadratic(SCALES[rows], total).predict(_GRID)
    return np.asarray(_GRID[int(np.argmax(expected))])
