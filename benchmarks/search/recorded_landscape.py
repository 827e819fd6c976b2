"""A landscape that was measured at the nodes of a regular grid: one margin an item at every node, in one small file.

Between the nodes a margin is interpolated linearly along each coordinate; a score is the share of items whose margin
is above 0, so that at a node it is the measured one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RecordedLandscape:
    """``margins`` is ``nodes of the first axis x ... x nodes of the last axis x items``; above 0 an item is right.

    ``axes`` are the coordinates of the nodes, by name and ascending; ``items`` the ids of each skill's items, in the
    order of the margins; ``header`` says what was measured, how, when and with what. ``losses``, of the same shape, are
    the mean negative log-likelihoods of the answers' tokens, where they were measured.
    """

    axes: Mapping[str, tuple[float, ...]]
    items: Mapping[str, tuple[str, ...]]
    margins: NDArray[np.floating]
    header: Mapping[str, Any]
    losses: NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        shape = (*map(len, self.axes.values()), sum(map(len, self.items.values())))
        if self.margins.shape != shape:
            raise ValueError(f"margins are {self.margins.shape}; axes and items make {shape}")

    @cached_property
    def _exact(self) -> NDArray[np.float64]:
        return self.margins.astype(float)

    @cached_property
    def _exact_losses(self) -> NDArray[np.float64]:
        if self.losses is None:
            raise ValueError("no losses were recorded")
        return self.losses.astype(float)

    def at(self, point: Mapping[str, float]) -> dict[str, NDArray[np.float64]]:
        """Margins of each skill's items. Raises ``ValueError`` outside the grid: nothing was measured there."""
        return self._between(self._exact, point)

    def losses_at(self, point: Mapping[str, float]) -> dict[str, NDArray[np.float64]]:
        """As ``at``, the losses of each skill's items. Raises ``ValueError`` where none were recorded."""
        return self._between(self._exact_losses, point)

    def _between(self, values: NDArray[np.float64], point: Mapping[str, float]) -> dict[str, NDArray[np.float64]]:
        below: list[int] = []
        parts: list[float] = []
        for name, nodes in self.axes.items():
            place = float(point[name])
            if not nodes[0] <= place <= nodes[-1]:
                raise ValueError(f"{name} is {place}; the landscape was recorded from {nodes[0]} to {nodes[-1]}")
            left = min(int(np.searchsorted(nodes, place, side="right")) - 1, len(nodes) - 2)
            below.append(left)
            parts.append((place - nodes[left]) / (nodes[left + 1] - nodes[left]))
        found = np.zeros(values.shape[-1])
        for corner in product((0, 1), repeat=len(parts)):
            share = float(np.prod([part if up else 1.0 - part for up, part in zip(corner, parts, strict=True)]))
            if share > 0:
                found += share * values[tuple(left + up for left, up in zip(below, corner, strict=True))]
        ends = np.cumsum([len(ids) for ids in self.items.values()])[:-1]
        return dict(zip(self.items, np.split(found, ends), strict=True))

    def scores(self, point: Mapping[str, float]) -> dict[str, float]:
        """The share of each skill's items that are right."""
        return {skill: float((margins > 0).mean()) for skill, margins in self.at(point).items()}

    def save(self, path: Path) -> None:
        """Margins as float16, compressed. A margin that rounds to 0 counts as wrong; the sign of all others stays."""
        about = {"header": self.header, "axes": self.axes, "items": self.items}
        partial = path.with_suffix(".partial.npz")
        losses = {} if self.losses is None else {"losses": self.losses.astype(np.float16)}
        np.savez_compressed(
            partial, about=np.array(json.dumps(about)), margins=self.margins.astype(np.float16), **losses
        )
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> RecordedLandscape:
        with np.load(path, allow_pickle=False) as stored:
            about, margins = json.loads(str(stored["about"])), stored["margins"]
            losses = stored.get("losses")
        return cls(_tuples(about["axes"]), _tuples(about["items"]), margins, about["header"], losses)


def _tuples(lists: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(values) for name, values in lists.items()}
