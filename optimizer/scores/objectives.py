"""Objectives, and the one unit system in which they are compared.

Scores are normalised by the anchors (base model, each expert, uniform average, ...), which are
evaluated first: 0 is the worst anchor of an objective and 1 the best, both after turning
minimised objectives round. Surrogate, reference point and hypervolume all live in that system.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.foreign_text import LONGEST_NAME, NAMES, is_name

DELTA_L1 = "delta_l1"
"""The objective that no task scores: the L1 norm of merged minus base weights, from the merge itself."""
PARAMETERS = "parameters"
"""Another one: how many numbers a merge has, where merges differ in that."""
COMPUTED = (DELTA_L1, PARAMETERS)
"""What is known of a merge exactly, without any task."""
REFERENCE = -0.1
"""The reference point's coordinate in every normalised objective: a tenth of the anchors' range
below the worst anchor, so that a candidate as bad as that anchor in one objective still counts."""


@dataclass(frozen=True)
class Objective:
    """A named number with a direction.

    ``range`` (worst, best) fixes the normalisation in the objective's own unit; without it the
    anchors decide.
    """

    name: str
    direction: Literal["maximize", "minimize"] = "maximize"
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.direction not in ("maximize", "minimize"):
            raise UserError(f"objective {self.name!r}: direction {self.direction!r} must be 'maximize' or 'minimize'")
        if not is_name(self.name):
            raise UserError(f"objective {self.name[:LONGEST_NAME]!r}: {NAMES}")
        if self.range is not None and not all(map(math.isfinite, self.range)):
            raise UserError(f"objective {self.name!r}: range {list(self.range)} must be of finite numbers")
        if self.range is not None and self.range[0] == self.range[1]:
            raise UserError(
                f"objective {self.name!r}: range {list(self.range)} is empty; give the worst and the best value"
            )

    @property
    def sign(self) -> float:
        """+1 when larger is better, -1 when smaller is."""
        return 1.0 if self.direction == "maximize" else -1.0


@dataclass(frozen=True)
class Normaliser:
    """Maps raw objective values to the common unit: normalised = (sign * value - low) / scale.

    ``signs``, ``lows`` and ``scales`` have one entry per objective; normalised values are maximised.
    """

    signs: tuple[float, ...]
    lows: tuple[float, ...]
    scales: tuple[float, ...]

    @classmethod
    def from_anchors(
        cls, objectives: Sequence[Objective], anchors: Sequence[Sequence[float]], agree: float = 1e-6
    ) -> Normaliser:
        """From the anchors' raw values (``n x m``), or from an objective's own ``range`` where given.

        An objective in which all anchors agree, or without any anchor, is scaled by its magnitude
        (at least 1), so that the map is always defined. They agree when they spread over no more than ``agree`` of
        their size: anchors that are one model differ by rounding, and that is no unit to measure in.
        """
        lows, scales = [], []
        for column, objective in enumerate(objectives):
            if objective.range is not None:
                worst, best = (objective.sign * value for value in objective.range)
                values = [worst, best]
            else:
                values = [objective.sign * row[column] for row in anchors] or [0.0]
            low, high = min(values), max(values)
            spread = high - low
            if spread <= agree * max(abs(low), abs(high)):
                spread = max(abs(low), 1.0) if not anchors or low == 0 else abs(low)
            lows.append(low)
            scales.append(spread)
        return cls(tuple(objective.sign for objective in objectives), tuple(lows), tuple(scales))

    def normalise(self, values: Sequence[float]) -> list[float]:
        """Raw values (``m``) in the common unit; larger is better, 0 worst anchor, 1 best anchor."""
        return [
            (sign * value - low) / scale
            for value, sign, low, scale in zip(values, self.signs, self.lows, self.scales, strict=True)
        ]

    @property
    def reference_point(self) -> list[float]:
        """The fixed reference point (``m``) in the common unit."""
        return [REFERENCE] * len(self.signs)


def objectives_from(given: Sequence[str | Objective | Mapping[str, object]]) -> tuple[Objective, ...]:
    """Objectives from names, mappings as in a study file, or ``Objective`` itself."""
    made = []
    for entry in given:
        if isinstance(entry, Objective):
            made.append(entry)
        elif isinstance(entry, str):
            made.append(Objective(entry))
        else:
            made.append(Objective(**entry))  # type: ignore[arg-type]
    names = [objective.name for objective in made]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"objective {', '.join(sorted(twice))} is named twice")
    if not made:
        raise UserError("a search needs at least one objective")
    return tuple(made)
