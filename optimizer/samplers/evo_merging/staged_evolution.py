"""CMA-ES over a pool of LoRAs, in stages: Evo-Merging as published (arXiv 2509.12951), and its relatives as data.

    denoise   densities searched from 1, weights held at 1 / N;  l1 mean|density|
    scale     best densities of the first stage held, weights searched from 1 / N;  l2 mean|weight|
    joint     both at once

A stage is left when its trials are spent, or after ``patience`` generations that did not pay. Every trial says
which stage it belongs to, so that the whole state follows from the observed trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergefront.optimizer.arrays import Array, Mask
from mergefront.optimizer.samplers.common.evolution import SEPARABLE_ABOVE, Evolution, Member
from mergefront.optimizer.samplers.common.last_result import LastResult
from mergefront.optimizer.samplers.common.lora_coefficients import Coefficients
from mergefront.optimizer.samplers.evo_merging.pool_history import Penalties, PoolTrial

PAYS = 0.01
"""A generation pays when it lowers the penalised loss by this share of the best loss's magnitude. Chosen by hand."""


@dataclass(frozen=True)
class Stage:
    """What one stage searches and what it penalises; ``last`` stages have no end."""

    name: str
    densities: bool
    weights: bool
    last: bool = False


STAGES: dict[str, tuple[Stage, ...]] = {
    "paper": (Stage("denoise", True, False), Stage("scale", False, True, last=True)),
    "lorahub": (Stage("scale", False, True, last=True),),
    "joint": (Stage("joint", True, True, last=True),),
}


@dataclass(frozen=True)
class EvolutionOptions:
    """Sizes of the staged search; ``separable`` None decides by dimension."""

    population: int
    sigma: float
    first_stage: int
    patience: int
    separable: bool | None


class StagedEvolution:
    """Proposals of a staged CMA-ES; remembers replayed generations, and computes the same without the memory."""

    def __init__(self, stages: Sequence[Stage], options: EvolutionOptions, penalties: Penalties) -> None:
        self._stages = tuple(stages)
        self._options = options
        self._penalties = penalties
        self._evolution = LastResult[Evolution]()

    def propose(
        self, coefficients: Coefficients, kept: Sequence[str], own: Sequence[PoolTrial], seed: int
    ) -> tuple[str, Array]:
        """(stage, point) of the next trial, after the sampler's ``own`` earlier trials in order."""
        stages = [stage for stage in self._stages if self._free(coefficients, stage, kept).any()]
        position = 0
        while position < len(stages) - 1 and self._over(coefficients, stages[position], own):
            position += 1
        stage = stages[position]
        mine = [trial for trial in own if trial.stage == stage.name]
        free = self._free(coefficients, stage, kept)
        centre = self._centre(coefficients, stage, kept, own, mine)
        widths, separable = coefficients.widths[free], self._options.separable
        evolution = self._evolution.of(
            (stage.name, centre.tobytes(), free.tobytes()),
            lambda: Evolution(
                _padded(centre[free] * widths, 0.5),
                self._options.sigma,
                _padded(widths, 1.0),
                self._options.population,
                len(widths) > SEPARABLE_ABOVE if separable is None else separable,
            ),
        )
        evolution.replay(self._generations(coefficients, stage, free, mine))
        point = centre.copy()
        point[free] = np.clip(evolution.sample(seed)[: len(widths)] / widths, 0.0, 1.0)
        return stage.name, np.asarray(coefficients.encoder.snap(point[None, :])[0])

    def _free(self, coefficients: Coefficients, stage: Stage, kept: Sequence[str]) -> Mask:
        columns = np.zeros(len(coefficients.widths), dtype=bool)
        if stage.densities:
            columns |= coefficients.density
        if stage.weights:
            columns |= ~coefficients.density
        return np.asarray(columns & coefficients.of(kept))

    def _over(self, coefficients: Coefficients, stage: Stage, own: Sequence[PoolTrial]) -> bool:
        mine = [trial for trial in own if trial.stage == stage.name]
        if any(trial.stage not in (None, stage.name) for trial in own) or len(mine) >= self._options.first_stage:
            return True
        patience = self._options.patience
        if not patience:
            return False
        generations = self._closed(mine)
        if len(generations) <= patience:
            return False
        best = [self._best_of(coefficients, stage, [t for g in generations[:n] for t in g]) for n in (-patience, None)]
        before, now = (
            math.inf if trial is None else float(self._penalised(coefficients, stage, [trial])[0]) for trial in best
        )
        return before - now < PAYS * abs(now)

    def _centre(
        self,
        coefficients: Coefficients,
        stage: Stage,
        kept: Sequence[str],
        own: Sequence[PoolTrial],
        mine: Sequence[PoolTrial],
    ) -> Array:
        """Where a stage starts: equal weights, densities 1, or what the stage before found for what is held."""
        centre = coefficients.mix({name: 1.0 / max(len(kept), 1) for name in kept})
        if stage.densities:
            return centre
        if mine:
            # The stage's first proposal shows what is held: results that came in since must not change it.
            centre[coefficients.density] = mine[0].point[coefficients.density]
            return centre
        for earlier in self._stages:
            best = self._best_of(coefficients, earlier, [trial for trial in own if trial.stage == earlier.name])
            if earlier.densities and best is not None:
                centre[coefficients.density] = best.point[coefficients.density]
        return centre

    def _best_of(self, coefficients: Coefficients, stage: Stage, trials: Sequence[PoolTrial]) -> PoolTrial | None:
        observed = [trial for trial in trials if trial.observed]
        return observed[int(np.argmin(self._penalised(coefficients, stage, observed)))] if observed else None

    def _penalised(self, coefficients: Coefficients, stage: Stage, trials: Sequence[PoolTrial]) -> Array:
        """Losses plus the stage's own penalties (``n``), NaN for trials that were not observed."""
        active = Penalties(
            self._penalties.density if stage.densities else 0.0, self._penalties.weight if stage.weights else 0.0
        )
        losses = np.array([trial.loss if trial.observed else math.nan for trial in trials])
        return np.asarray(losses + active.of(coefficients, np.stack([trial.point for trial in trials])))

    def _closed(self, mine: Sequence[PoolTrial]) -> list[Sequence[PoolTrial]]:
        """The generations that are complete, up to the first that is not.

        A member still out when a whole further generation has been proposed counts as failed.
        """
        size = self._options.population
        closed: list[Sequence[PoolTrial]] = []
        for start in range(0, len(mine) - size + 1, size):
            generation = mine[start : start + size]
            overdue = len(mine) >= start + 2 * size
            if not overdue and not all(trial.finished for trial in generation):
                break
            closed.append(generation)
        return closed

    def _generations(
        self, coefficients: Coefficients, stage: Stage, free: Mask, mine: Sequence[PoolTrial]
    ) -> list[list[Member]]:
        closed = self._closed(mine)
        if not closed:
            return []
        members = [trial for generation in closed for trial in generation]
        losses = self._penalised(coefficients, stage, members)
        points = [_padded(trial.point[free] * coefficients.widths[free], 0.5) for trial in members]
        size = self._options.population
        paired = list(zip(points, losses.tolist(), strict=True))
        return [paired[start : start + size] for start in range(0, len(paired), size)]


def _padded(values: Array, filler: float) -> Array:
    """A single coordinate gets an idle companion: CMA-ES is defined from two dimensions on."""
    return values if len(values) > 1 else np.append(values, filler)
