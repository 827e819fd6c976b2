"""Where the acquisition is largest: quasi-Newton from the best of many starting points, then discrete moves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from scipy.optimize import minimize

from mergefront.optimizer.arrays import Array, Mask
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.samplers.options import Budget


class Acquisition(Protocol):
    """What is maximised: values at ``b x d`` points, value and gradient at one; larger is better."""

    def values(self, points: Array) -> Array: ...

    def value_and_gradient(self, point: Array) -> tuple[float, Array]: ...


@dataclass(frozen=True)
class SearchBudget:
    """How much work one proposal may be."""

    samples: int
    """Samples of the uncertain front."""
    climbed_samples: int
    """So many of them are climbed on; only the end of the best climb sees all."""
    raw_points: int
    """Sobol points among which the optimiser's starting points are chosen."""
    restarts: int
    iterations: int
    engine: Literal["closed form", "botorch"] = "closed form"
    """Closed forms of our own (``acquisition``), or BoTorch's model and Monte Carlo (``botorch_engine``)."""


BUDGETS: dict[Budget, SearchBudget] = {
    "fast": SearchBudget(samples=8, climbed_samples=8, raw_points=256, restarts=6, iterations=30),
    "quality": SearchBudget(samples=32, climbed_samples=8, raw_points=1024, restarts=20, iterations=200),
    "botorch": SearchBudget(
        samples=128, climbed_samples=128, raw_points=512, restarts=10, iterations=100, engine="botorch"
    ),
}
"""Climbs and iterations of "fast" are measured in docs/benchmarks/search-pieces.md ("The maximizer"), where 32 samples
of the front were no better than 8; the others were chosen by hand."""

FAST_WITH_NOISE = replace(BUDGETS["fast"], samples=32, restarts=12)
"""With noise the front is uncertain, so that it takes more samples, but climbs on a part of them end as high
("The maximizer", docs/benchmarks/search-pieces.md)."""
FIRST_ITERATIONS, CLIMBED_ON, LAST_ITERATIONS = 4, 6, 8
"""On a part of the samples all climbs go on for so many iterations, then so many of the best to their end; the best
goes on for so many iterations with all samples ("The maximizer", docs/benchmarks/search-pieces.md)."""


def maximise(
    acquisition: Acquisition, starts: Array, encoder: Encoder, budget: SearchBudget, rough: Acquisition | None = None
) -> tuple[Array, Array]:
    """Local optima (``r x d``, best first) and their values (``r``), all on the grid of representable points.

    ``starts`` (``s x d``) are representable points; the best of them, some distance apart, are refined. Where there is
    a ``rough`` acquisition, the same at a lower cost, it chooses among starts and climbs, and is climbed on.
    """
    climbed = acquisition if rough is None else rough
    chosen = starts[_spread_best(starts, climbed.values(starts), budget.restarts)]
    if rough is None:
        optima = [_refine(acquisition, start, encoder, budget.iterations) for start in chosen]
    else:
        begun = np.stack([_refine(rough, start, encoder, FIRST_ITERATIONS) for start in chosen])
        best = begun[np.argsort(-rough.values(begun), kind="stable")[:CLIMBED_ON]]
        optima = [_refine(rough, point, encoder, budget.iterations) for point in best]
        highest = optima[int(np.argmax(acquisition.values(np.stack(optima))))]
        optima.append(_refine(acquisition, highest, encoder, LAST_ITERATIONS))
    found = np.concatenate([encoder.snap(np.stack(optima)), chosen])
    values = acquisition.values(found)
    order = np.argsort(-values, kind="stable")
    return found[order], values[order]


def _spread_best(starts: Array, values: Array, count: int) -> list[int]:
    """Integers of the best starts that are not next to a better one."""
    # A twentieth of the side of the cube in every direction; chosen by hand.
    apart = 0.05 * np.sqrt(starts.shape[1])
    chosen: list[int] = []
    for i in np.argsort(-values, kind="stable"):
        if all(np.linalg.norm(starts[i] - starts[j]) > apart for j in chosen):
            chosen.append(int(i))
        if len(chosen) == count:
            break
    return chosen


def _refine(acquisition: Acquisition, start: Array, encoder: Encoder, iterations: int) -> Array:
    """Climbs from one point: continuous columns by L-BFGS-B, then the best discrete neighbour, until neither helps."""
    point = _climb(acquisition, start, encoder.continuous, iterations)
    if encoder.continuous.all():
        return point
    value = acquisition.values(point[None, :])[0]
    # Each round moves one discrete parameter by one step or choice, so this many rounds cross a small space.
    for _ in range(2 * encoder.parameters):
        neighbours = encoder.neighbours(point)
        neighbour_values = acquisition.values(neighbours)
        best = int(np.argmax(neighbour_values))
        if neighbour_values[best] <= value:
            break
        point = _climb(acquisition, neighbours[best], encoder.continuous, iterations)
        value = max(float(neighbour_values[best]), float(acquisition.values(point[None, :])[0]))
    return point


def _climb(acquisition: Acquisition, start: Array, free: Mask, iterations: int) -> Array:
    if not free.any():
        return start

    def negative(coordinates: Array) -> tuple[float, Array]:
        point = start.copy()
        point[free] = coordinates
        value, gradient = acquisition.value_and_gradient(point)
        return -value, -gradient[free]

    bounds = [(0.0, 1.0)] * int(free.sum())
    found = minimize(negative, start[free], jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations})
    point = start.copy()
    point[free] = np.clip(found.x, 0.0, 1.0)
    return point
