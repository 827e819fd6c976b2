"""The one unit system of surrogate, reference point and hypervolume.

Objectives are maximised and normalised so that 0 is the worst anchor and 1 the best
(``mergefront.optimizer.scores.objectives.Normaliser``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from optuna.trial import FrozenTrial

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.scores.evaluation import LARGEST
from mergefront.optimizer.scores.objectives import Normaliser, Objective

TAIL = 0.5
"""Below the reference point, differences beyond this size are compressed logarithmically. Chosen by hand."""
FLOOR = -3.0
"""No value counts as worse than this: three times the anchors' range below the worst anchor. Chosen by hand."""


def values_of(trials: Sequence[FrozenTrial], objectives: int) -> Array:
    """The raw values of finished trials, ``n x m``, clipped so that their squares and differences stay finite."""
    values = np.array([trial.values for trial in trials], dtype=float).reshape(-1, objectives)
    return np.asarray(np.clip(values, -LARGEST, LARGEST))


def normaliser_for(
    maximise: Sequence[bool], anchors: Array, ranges: Sequence[tuple[float, float] | None] | None = None
) -> Normaliser:
    """From the anchors' raw values (``n x m``), except where ``ranges`` gives an objective's (worst, best)."""
    objectives = [
        Objective(str(j), "maximize" if up else "minimize", None if ranges is None else ranges[j])
        for j, up in enumerate(maximise)
    ]
    return Normaliser.from_anchors(objectives, anchors.tolist())


def normalise(normaliser: Normaliser, values: Array) -> Array:
    """Raw values (``n x m``) in the common unit."""
    return np.asarray((np.array(normaliser.signs) * values - np.array(normaliser.lows)) / np.array(normaliser.scales))


def compress_tail(values: Array, reference: Array) -> Array:
    """Normalised values (``n x m``) with the part below the reference point (``m``) squeezed.

    A collapsed merge can be any number of units below the reference point, where it adds no hypervolume however
    far it is; left as it is, it would make up most of the variance and flatten the region of interest. The map is
    the identity above the reference point, and increasing and smooth below it, down to ``FLOOR``.
    """
    depth = np.maximum(reference - values, 0.0)
    squeezed = reference - TAIL * np.log1p(depth / TAIL)
    return np.where(depth > 0.0, np.maximum(squeezed, np.minimum(FLOOR, reference)), values)


def compressed_slope(values: Array, reference: Array) -> Array:
    """Of ``compress_tail`` at normalised values (``n x m``), above its floor."""
    return np.asarray(1.0 / (1.0 + np.maximum(reference - values, 0.0) / TAIL))
