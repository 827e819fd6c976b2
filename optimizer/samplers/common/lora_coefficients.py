"""What the parameters of a search over a pool of LoRAs mean: ``density[NAME]``, ``weight[NAME]``, and others.

alpha, the densities: the share of a LoRA-A matrix's entries that is kept. beta, the weights: signed scales. A
coefficient may have finer names (``weight[NAME, block 2]``); it belongs to the LoRA that comes first inside the
brackets. Points are vectors of ``unit_cube.Encoder``, in [0, 1]^d.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from mergefront.optimizer.arrays import Array, Mask
from mergefront.optimizer.recipes.grouping import CoefficientName
from mergefront.optimizer.recipes.unit_cube import Encoder


@dataclass(frozen=True)
class Coefficients:
    """The columns of a numeric search space, by meaning (``d`` columns, one per parameter)."""

    encoder: Encoder
    density: Mask
    """Which columns are densities (``d``)."""
    weight: Mask
    """Which columns are weights (``d``)."""
    owners: tuple[str | None, ...]
    """The LoRA that each column belongs to (``d``); None for coefficients of the whole merge."""
    lows: Array
    """Lower ends of the ranges, in the coefficients' own unit (``d``)."""
    widths: Array
    """Lengths of the ranges (``d``); 1 for what is neither density nor weight, whose unit says nothing."""
    start: Array
    """Densities 1, weights 1 / N, lambda 1, the middle of other ranges; each as near as its range allows (``d``)."""

    @property
    def loras(self) -> tuple[str, ...]:
        """The LoRAs that have a weight of their own, in the space's order."""
        owners = [owner for owner, is_weight in zip(self.owners, self.weight, strict=True) if is_weight]
        return tuple(dict.fromkeys(owner for owner in owners if owner is not None))

    def of(self, loras: Collection[str]) -> Mask:
        """Which columns belong to one of ``loras`` or to none in particular (``d``)."""
        return np.array([owner is None or owner in loras for owner in self.owners], dtype=bool)

    def mix(self, weights: Mapping[str, float]) -> Array:
        """The merge of whole LoRAs with these weights, 0 for all others, as near as the ranges allow (``d``)."""
        point = self.start.copy()
        for column in np.flatnonzero(self.weight):
            owner = self.owners[column]
            value = weights.get(owner, 0.0) if owner is not None else 1.0
            point[column] = np.clip((value - self.lows[column]) / self.widths[column], 0.0, 1.0)
        return np.asarray(self.encoder.snap(point[None, :])[0])

    def magnitudes(self, points: Array, columns: Mask) -> Array:
        """mean |coefficient| over ``columns`` in the coefficients' own unit, of every point (``n x d``): ``n``."""
        if not columns.any():
            return np.zeros(len(points))
        values = self.lows[columns] + points[:, columns] * self.widths[columns]
        return np.asarray(np.abs(values).mean(axis=1))


def read_coefficients(space: Mapping[str, BaseDistribution]) -> Coefficients:
    """The meaning of a space of numeric parameters."""
    encoder = Encoder(space)
    density, weight, owners, start, lows, widths = [], [], [], {}, [], []
    names = {name: CoefficientName.guess(name) for name in space}
    for found in names.values():
        density.append(found.parameter == "density")
        weight.append(found.parameter == "weight")
        owners.append(found.expert if found.parameter in ("density", "weight") else None)
    count = len({owner for owner, is_weight in zip(owners, weight, strict=True) if is_weight and owner is not None})
    for column, (name, distribution) in enumerate(space.items()):
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        low, high = float(distribution.low), float(distribution.high)
        named = density[column] or weight[column]
        lows.append(low if named else 0.0)
        widths.append(high - low if named and not distribution.log else 1.0)
        if weight[column]:
            wanted = 1.0 / max(count, 1)
        elif density[column] or names[name].parameter == "lambda":
            wanted = 1.0
        else:
            wanted = 0.5 * (low + high)
        start[name] = min(max(wanted, low), high)
    return Coefficients(
        encoder,
        np.array(density, dtype=bool),
        np.array(weight, dtype=bool),
        tuple(owners),
        np.array(lows),
        np.array(widths),
        encoder.snap(encoder.encode(start)[None, :])[0],
    )
