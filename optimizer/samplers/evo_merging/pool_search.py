"""The default search over a pool of LoRAs: a surrogate in a trust region, weights first, densities where they pay.

Published Evo-Merging spends its first third on densities at equal weights 1 / N, where every LoRA does so little that
the loss hardly moves. Here the LoRAs' own scores, which are evaluated anyway, are the first data of a surrogate of the
loss in the weights; densities join once the weights have converged, starting with one probe per LoRA that has
come to matter, and the two take turns from then on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergefront.optimizer.arrays import Array, Mask
from mergefront.optimizer.samplers.common.initial_design import scrambled_sobol
from mergefront.optimizer.samplers.common.last_result import LastResult
from mergefront.optimizer.samplers.common.lora_coefficients import Coefficients
from mergefront.optimizer.samplers.evo_merging.pool_history import Penalties, PoolTrial
from mergefront.optimizer.samplers.evo_merging.trust_region import (
    Region,
    RegionRule,
    compress,
    fit_model,
    minimise,
    nearest,
    region_bounds,
)
from mergefront.optimizer.samplers.gaussian_process.fit import condition
from mergefront.optimizer.samplers.gaussian_process.posterior import GaussianProcess
from mergefront.optimizer.seeding import derive_seed

DESIGN, PROBE, WEIGHTS, EVERYTHING = "design", "probe", "weights", "everything"
PROBED_DENSITY = 0.5
"""A probe halves a whole LoRA's density. This and the next three constants were chosen by hand."""
PROBED_WEIGHT = 0.03
"""LoRAs of smaller weight are not worth a probe: their density changes nothing."""
EXPLORING = 1.0
"""Standard deviations that the expected loss is lowered by where a point is to teach the model something."""
OPTIMISM = (0.5, 2.0)
"""Range from which the weight of uncertainty is drawn while other trials are under way, so that workers spread."""


@dataclass(frozen=True)
class PoolState:
    """What a proposal rests on. ``trials`` are all earlier ones in order of number, inside the space."""

    coefficients: Coefficients
    trials: tuple[PoolTrial, ...]
    kept: tuple[str, ...]
    others_running: bool
    seed: int
    number: int

    @property
    def free(self) -> Mask:
        """Columns of the LoRAs that are searched, and of the whole merge (``d``)."""
        return self.coefficients.of(self.kept)

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, self.number, purpose))


class PoolSearch:
    """Proposals of the trust-region search; remembers the last fit, and computes the same without the memory."""

    def __init__(self, penalties: Penalties, rule: RegionRule | None = None, densities: bool = True) -> None:
        self._penalties = penalties
        self._rule = rule or RegionRule()
        self._densities = densities
        self._fitted = LastResult[GaussianProcess]()

    def propose(self, state: PoolState) -> tuple[str, Array]:
        """(stage, point) of the next trial."""
        taken = {trial.point.tobytes() for trial in state.trials}
        for point in design(state):
            if point.tobytes() not in taken:
                return DESIGN, point
        data = self._data(state)
        if not any(trial.observed for trial in data):
            return DESIGN, self._unlike(state, state.coefficients.start, self._rule.initial, taken)
        best, region, since = self._walk(state, data)
        weights_only = state.free & ~state.coefficients.density
        joint = bool(self._densities and (state.free & state.coefficients.density).any())
        if joint and (region.turns % 2 == 1 or not weights_only.any()):
            if region.turns == 1 and (probe := self._probe(state, best, since)) is not None:
                return PROBE, probe
            return EVERYTHING, self._step(state, data, best, region, state.free, taken)
        return WEIGHTS, self._step(state, data, best, region, weights_only, taken)

    def _data(self, state: PoolState) -> list[PoolTrial]:
        """Finished trials in which the LoRAs that are not searched have no part."""
        idle = state.coefficients.weight & ~state.free
        off = state.coefficients.mix({})
        return [trial for trial in state.trials if trial.finished and np.array_equal(trial.point[idle], off[idle])]

    def _losses(self, coefficients: Coefficients, data: Sequence[PoolTrial]) -> Array:
        """Penalised losses (``n``); a failed trial counts as the worst of those observed."""
        losses = np.array([trial.loss if trial.observed else math.nan for trial in data])
        losses += self._penalties.of(coefficients, np.stack([trial.point for trial in data]))
        return np.where(np.isnan(losses), np.nanmax(losses), losses)

    def _walk(self, state: PoolState, data: Sequence[PoolTrial]) -> tuple[PoolTrial, Region, int]:
        """The best trial, the region after the observed trials, and the number of the trial that last ended a turn."""
        losses = self._losses(state.coefficients, data)
        before = [i for i, trial in enumerate(data) if trial.stage not in (WEIGHTS, EVERYTHING)]
        region, since = Region(self._rule.initial, float(losses[before].min() if before else losses[0])), -1
        begun = region.best_at_restart
        for i, trial in enumerate(data):
            if trial.stage not in (WEIGHTS, EVERYTHING) or i == 0:
                continue
            best = float(losses[:i].min())
            spread, progress = float(np.median(losses[:i])) - best, max(begun - best, 0.0)
            moved = region.after(self._rule, float(losses[i]), best, spread, progress)
            if moved.turns > region.turns:
                since = trial.number
            region = moved
        return data[int(np.argmin(losses))], region, since

    def _probe(self, state: PoolState, best: PoolTrial, since: int) -> Array | None:
        """The best point with the density of the next LoRA that matters halved; None when all were probed."""
        coefficients = state.coefficients
        probed = sum(1 for trial in state.trials if trial.stage == PROBE and trial.number > since)
        values = coefficients.lows + best.point * coefficients.widths
        owners = np.array([owner or "" for owner in coefficients.owners])
        matter = [
            name
            for name in state.kept
            if (coefficients.density & (owners == name)).any()
            and np.abs(values[coefficients.weight & (owners == name)]).max(initial=0.0) >= PROBED_WEIGHT
        ]
        for name in matter[probed:]:
            point = best.point.copy()
            columns = coefficients.density & (owners == name)
            point[columns] = np.clip(
                (PROBED_DENSITY - coefficients.lows[columns]) / coefficients.widths[columns], 0.0, 1.0
            )
            snapped = np.asarray(coefficients.encoder.snap(point[None, :])[0])
            if not any(np.array_equal(snapped, trial.point) for trial in state.trials):
                return snapped
        return None

    def _step(
        self,
        state: PoolState,
        data: Sequence[PoolTrial],
        best: PoolTrial,
        region: Region,
        free: Mask,
        taken: set[bytes],
    ) -> Array:
        """The least expected loss inside the region, in the ``free`` columns."""
        coefficients = state.coefficients
        try:
            model, columns = self._model(state, data, best, free)
        except np.linalg.LinAlgError:
            return self._unlike(state, best.point, region.half, taken, free)
        inside = free[columns]
        bounds = region_bounds(model, best.point[columns], region.half, inside)
        rng = state.rng("trust region")
        optimism = EXPLORING if region.explore else 0.0
        if state.others_running:
            pending = [trial.point[columns] for trial in state.trials if not trial.finished]
            model = model.with_pending(np.array(pending).reshape(-1, int(columns.sum())))
            optimism = float(rng.uniform(*OPTIMISM))
        # Models are fitted to losses without penalties, which are state exactly and are not smooth.
        slopes, zeros = self._penalties.slopes(coefficients)
        found = minimise(model, bounds, best.point[columns], optimism, (slopes[columns], zeros[columns]), rng)
        point = best.point.copy()
        point[columns] = found
        snapped = np.asarray(coefficients.encoder.snap(point[None, :])[0])
        return self._unlike(state, best.point, region.half, taken, free) if snapped.tobytes() in taken else snapped

    def _model(
        self, state: PoolState, data: Sequence[PoolTrial], best: PoolTrial, free: Mask
    ) -> tuple[GaussianProcess, Mask]:
        """The model of the losses and the columns it knows: those that are free or have varied.

        Its kernel is fitted to the first trials, every few trials anew, and conditioned on all.
        """
        points = np.stack([trial.point for trial in data])
        raw = np.array([trial.loss if trial.observed else math.nan for trial in data])
        losses = np.where(np.isnan(raw), np.nanmax(raw), raw)
        columns = free | (state.free & (np.ptp(points, axis=0) > 0.0))
        points = points[:, columns]
        first = _refit_at(len(data))
        early = nearest(points[:first], points[int(np.argmin(losses[:first]))])
        fitted = self._fitted.of(
            (points[early].tobytes(), losses[early].tobytes()),
            lambda: fit_model(points[early], compress(losses[early])),
        )
        near = nearest(points, best.point[columns])
        return condition(fitted, points[near], compress(losses[near])), columns

    def _unlike(
        self, state: PoolState, centre: Array, half: float, taken: set[bytes], free: Mask | None = None
    ) -> Array:
        """A random point near ``centre`` that was not proposed before, in the ``free`` columns."""
        rng = state.rng("near the best")
        columns = state.free if free is None else free
        point = centre
        for _ in range(50):
            point = centre.copy()
            point[columns] = np.clip(centre[columns] + rng.uniform(-half, half, int(columns.sum())), 0.0, 1.0)
            point = np.asarray(state.coefficients.encoder.snap(point[None, :])[0])
            if point.tobytes() not in taken:
                break
        return point


def design(state: PoolState) -> list[Array]:
    """Points evaluated before there is a model, of which a study's anchors are most: no LoRA, each alone, equal
    weights over the kept ones. A space without weights gets the start and a few Sobol points."""
    coefficients = state.coefficients
    loras = coefficients.loras
    if loras:
        share = 1.0 / len(state.kept)
        points = [coefficients.mix({}), *(coefficients.mix({name: 1.0}) for name in loras)]
        return [*points, coefficients.mix(dict.fromkeys(state.kept, share))]
    dimension = coefficients.encoder.dimension
    engine = scrambled_sobol(dimension, derive_seed(state.seed, "design"))
    drawn = coefficients.encoder.from_uniform(engine.random_base2(4)[: min(dimension + 1, 12)])
    return [coefficients.start, *drawn]


def _refit_at(count: int) -> int:
    """How many of ``count`` trials the kernel is fitted to: all of them at first, later in growing steps."""
    every = 1 if count < 40 else 5 if count < 200 else 20
    return count - count % every
