"""The procedures that are compared, each a run of its own search code on one pool with one seed.

The samplers' own proposals are used without Optuna around them (its bookkeeping would take longer than an evaluation
here); seeds are derived as the samplers derive them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution

from benchmarks.lora_pool.merged_model import Operator
from mergefront.optimizer.samplers.common.lora_coefficients import Coefficients, read_coefficients
from mergefront.optimizer.samplers.evo_merging.pool_history import Penalties, PoolTrial, prefilter
from mergefront.optimizer.samplers.evo_merging.pool_search import PoolSearch, PoolState
from mergefront.optimizer.samplers.evo_merging.staged_evolution import STAGES, EvolutionOptions, Stage, StagedEvolution
from mergefront.optimizer.seeding import derive_seed

Array = NDArray[np.float64]
Propose = Callable[[Coefficients, list[PoolTrial], int, int], tuple[str, Array]]

PAPER = Penalties(0.05, 0.05)


class Merges(Protocol):
    """A pool's merges: the mean loss on a split's items at one density and one weight a LoRA (``n`` numbers each)."""

    @property
    def names(self) -> Sequence[str]: ...

    def loss(self, alpha: Array, beta: Array, split: str = "search") -> float: ...


@dataclass(frozen=True)
class Procedure:
    """A row of the table: what proposes, with which operator, for how many evaluations, and the least weight."""

    name: str
    operator: Operator
    evaluations: int
    make: Callable[[], Propose]
    lowest: float = -1.5


@dataclass(frozen=True)
class Run:
    """One finished run: the lowest search loss after every evaluation, and the best merge's loss on report items."""

    procedure: str
    seed: int
    best: list[float]
    report: float
    seconds_per_ask: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evolution(stages: Sequence[Stage], first_stage: int = 400) -> Callable[[], Propose]:
    """The published settings of CMA-ES on these stages."""

    def make() -> Propose:
        options = EvolutionOptions(population=20, sigma=0.05, first_stage=first_stage, patience=0, separable=False)
        search = StagedEvolution(stages, options, PAPER)
        return lambda coefficients, trials, seed, number: search.propose(
            coefficients, coefficients.loras, trials, derive_seed(seed, number, "evolution")
        )

    return make


def default(densities: bool = True, top: int | None = None) -> Callable[[], Propose]:
    """Our default search, with weights alone or on the ``top`` LoRAs by their own loss."""

    def make() -> Propose:
        search = PoolSearch(Penalties(0.0, 0.0), densities=densities)

        def propose(coefficients: Coefficients, trials: list[PoolTrial], seed: int, number: int) -> tuple[str, Array]:
            # The LoRAs' own losses come first, whatever is kept.
            kept = prefilter(coefficients, trials, None if number <= len(coefficients.loras) else top)
            return search.propose(PoolState(coefficients, tuple(trials), kept, False, seed, number))

        return propose

    return make


OURS = "evo-merging (default)"
RELEASED = "released two stages"
PROCEDURES = (
    Procedure(OURS, "cat", 300, default()),
    Procedure(RELEASED, "cat", 1200, evolution(STAGES["paper"])),
    Procedure("joint CMA-ES", "cat", 1200, evolution(STAGES["joint"])),
    Procedure("LoRAHub's setting", "cat", 1200, evolution(STAGES["lorahub"])),
    Procedure("LoRAHub's setting, factor", "factor", 40, evolution(STAGES["lorahub"])),
    Procedure("released two stages, factor", "factor", 1200, evolution(STAGES["paper"])),
)


def run(procedure: Procedure, model: Merges, seed: int) -> Run:
    """One search of ``procedure.evaluations`` evaluations on the model's pool."""
    densities = {f"density[{name}]": FloatDistribution(0.0, 1.0) for name in model.names}
    weights = {f"weight[{name}]": FloatDistribution(procedure.lowest, 1.5) for name in model.names}
    coefficients = read_coefficients({**densities, **weights})
    propose = procedure.make()
    count = len(model.names)
    trials: list[PoolTrial] = []
    best: list[float] = []
    answer = coefficients.start
    asking = 0.0
    for number in range(procedure.evaluations):
        started = time.perf_counter()
        stage, point = propose(coefficients, trials, seed, number)
        asking += time.perf_counter() - started
        values = coefficients.lows + point * coefficients.widths
        loss = model.loss(values[:count], values[count:])
        if not best or loss < best[-1]:
            answer = values
        best.append(min(loss, best[-1]) if best else loss)
        trials.append(PoolTrial(number, point, loss, True, stage))
    report = model.loss(answer[:count], answer[count:], "report")
    return Run(procedure.name, seed, best, report, asking / procedure.evaluations)
