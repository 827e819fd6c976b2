"""A surrogate of the items behind the scores: one process per component, and one for what they leave unexplained.

    f_j(x) = link_j(c_1(x), ..., c_r(x)) + d_j(x)

c_k and d_j are independent Gaussian processes; link_j is known (``item_components``). d_j is fitted to what the told
scores differ from their links. Beside it stands the plain process of the scores, and the two are mixed per objective
by how well each predicts the told scores it has not seen (pseudo-BMA on leave-one-out predictions, tempered: Yao,
Vehtari, Simpson, Gelman 2018, "Using Stacking to Average Bayesian Predictive Distributions"): items say much on some
merges and little on others. The posterior of f is summarised by its mean and variance per objective.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from mergefront.optimizer.samplers.item_components import ItemComponents, TaskLink
from mergefront.optimizer.samplers.surrogate import GaussianProcess, Surrogate, fit_gaussian_process, fit_surrogate

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreUnit:
    """normalised = (sign * score - low) / scale, for one objective."""

    sign: float
    low: float
    scale: float


TEMPER = 0.3
"""Leave-one-out predictions of one fit are no independent evidence; their log score counts for so much."""


@dataclass(frozen=True)
class _ItemModel:
    """A process per component, the links, and per objective with items the unexplained rest."""

    components: tuple[GaussianProcess, ...]
    links: Mapping[int, TaskLink]
    units: tuple[ScoreUnit, ...]
    rests: Mapping[int, GaussianProcess]

    def posterior(
        self, objective: int, components: tuple[Array, Array], rest: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        """Mean and variance (``q``) of an objective from the moments of the components (``q x r``) and its rest."""
        score, spread = self.links[objective].moments(*components)
        unit = self.units[objective]
        return rest[0] + (unit.sign * score - unit.low) / unit.scale, rest[1] + spread / unit.scale**2

    def with_pending(self, pending: Array) -> _ItemModel:
        return replace(
            self,
            components=tuple(process.with_pending(pending) for process in self.components),
            rests={j: process.with_pending(pending) for j, process in self.rests.items()},
        )


@dataclass(frozen=True)
class ItemSurrogate:
    """``plain`` processes of the scores, the model of the items, and the latter's share per objective (0 to 1)."""

    plain: Surrogate
    items: _ItemModel
    shares: Mapping[int, float]

    @property
    def x(self) -> Array:
        """The told points, ``n x d``."""
        return self.plain.x

    def posterior(self, points: Array) -> tuple[Array, Array]:
        """Means and variances of the normalised objectives at ``points`` (``q x d``), each ``q x m``."""
        mean, variance = self.plain.posterior(points)
        pairs = [process.posterior(points) for process in self.items.components]
        components = (np.stack([pair[0] for pair in pairs], axis=1), np.stack([pair[1] for pair in pairs], axis=1))
        for j, share in self.shares.items():
            item_mean, item_variance = self.items.posterior(j, components, self.items.rests[j].posterior(points))
            apart = share * (1.0 - share) * (item_mean - mean[:, j]) ** 2
            mean[:, j] += share * (item_mean - mean[:, j])
            variance[:, j] += share * (item_variance - variance[:, j]) + apart
        return mean, variance

    def with_pending(self, pending: Array) -> ItemSurrogate:
        """The surrogate whose variances already count the pending points (``p x d``)."""
        if not len(pending):
            return self
        return replace(self, plain=self.plain.with_pending(pending), items=self.items.with_pending(pending))


def fit_item_surrogate(
    x: Array, y: Array, noise_variance: Array, items: ItemComponents, units: tuple[ScoreUnit, ...]
) -> ItemSurrogate:
    """To ``n`` points with normalised values ``y`` (``n x m``) and the points' components.

    Raises ``numpy.linalg.LinAlgError`` when a process cannot be fitted.
    """
    unknown = np.full(len(x), np.nan)
    plain = fit_surrogate(x, y, noise_variance)
    processes = tuple(fit_gaussian_process(x, column, unknown) for column in items.components.T)
    rests = {}
    for j, link in items.links.items():
        score, _ = link.moments(items.components, np.zeros_like(items.components))
        explained = (units[j].sign * score - units[j].low) / units[j].scale
        # A collapsed merge's score may lie far below anything of interest.
        rests[j] = fit_gaussian_process(x, np.clip(y[:, j] - explained, -1.0, 1.0), noise_variance[:, j])
    model = _ItemModel(processes, items.links, units, rests)
    left_out = [process.leave_one_out() for process in processes]
    components = (np.stack([mean for mean, _ in left_out], axis=1), np.stack([v for _, v in left_out], axis=1))
    shares = {}
    for j in items.links:
        by_items = model.posterior(j, components, rests[j].leave_one_out())
        evidence = _log_score(y[:, j], *by_items) - _log_score(y[:, j], *plain.processes[j].leave_one_out())
        shares[j] = float(expit(TEMPER * evidence))
    return ItemSurrogate(plain, model, shares)


def _log_score(y: Array, mean: Array, variance: Array) -> float:
    """Sum of the log predictive densities, less a constant."""
    return float(-0.5 * (np.log(variance) + (y - mean) ** 2 / variance).sum())
