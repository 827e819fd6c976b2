"""What was measured of merges, by the digest of their recipes: so that a run is repeated without a model, and several
samplers share the points that they have in common.

``evaluations/`` holds what is committed; what is measured here goes to a file of lines at once, and ``record`` packs
both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RECORDED = Path(__file__).parent / "evaluations"


@dataclass(frozen=True)
class Reading:
    """Of every item a margin (above 0: exact match) and the mean negative log-likelihood of its answer's tokens, both
    float16, as they are recorded."""

    margins: NDArray[np.float16]
    losses: NDArray[np.float16]


class Measured:
    """Readings of the merges of one set of experts, by its ``name``; ``read`` measures what is not there."""

    def __init__(self, name: str, local: Path) -> None:
        self.local, self.recorded = local / f"{name}.jsonl", RECORDED / f"{name}.npz"
        self.found: dict[str, Reading] = {}
        if self.recorded.exists():
            with np.load(self.recorded, allow_pickle=False) as stored:
                for digest, margins, losses in zip(stored["digests"], stored["margins"], stored["losses"], strict=True):
                    self.found[str(digest)] = Reading(margins, losses)
        if self.local.exists():
            for line in self.local.read_text().splitlines():
                self._add(json.loads(line))

    def read(self, digest: str, measure: Callable[[], tuple[Sequence[float], Sequence[float]]]) -> Reading:
        if digest not in self.found:
            margins, losses = (np.asarray(values, dtype=np.float16).tolist() for values in measure())
            line = {"digest": digest, "margins": margins, "losses": losses}
            self._add(line)
            self.local.parent.mkdir(parents=True, exist_ok=True)
            with self.local.open("a") as file:
                file.write(json.dumps(line) + "\n")
        return self.found[digest]

    def record(self) -> None:
        """Everything in the file that is committed."""
        self.recorded.parent.mkdir(exist_ok=True)
        digests = sorted(self.found)
        np.savez_compressed(
            self.recorded,
            digests=np.array(digests),
            margins=np.array([self.found[digest].margins for digest in digests]),
            losses=np.array([self.found[digest].losses for digest in digests]),
        )

    def _add(self, line: Mapping[str, object]) -> None:
        self.found[str(line["digest"])] = Reading(
            np.array(line["margins"], dtype=np.float16), np.array(line["losses"], dtype=np.float16)
        )
