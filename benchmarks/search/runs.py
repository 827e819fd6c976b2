"""One run: a sampler on a problem with a seed, trial by trial, as one line of a results file."""

from __future__ import annotations

import gzip
import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from benchmarks.search.problem import Problem, Scored
from mergefront.optimizer.recipes.anchors import Anchor, GivenRecipe, expert_anchor, metric_weighted
from mergefront.optimizer.search.attributes import (
    ANCHOR,
    MARGINS,
    OUTSIDE_SPACE,
    SEED,
    STANDARD_ERRORS,
    write_search_space,
)
from mergefront.optimizer.search.item_margins import kept_margins

HORIZONS = (15, 30, 60, 120)
RECORDED = Path(__file__).with_name("recorded.jsonl.gz")


@dataclass(frozen=True)
class Run:
    """``hypervolumes`` after every evaluation, anchors included; ``ask_seconds`` of processor time a proposal, on that
    ``machine``."""

    problem: str
    sampler: str
    seed: int
    hypervolumes: list[float]
    ask_seconds: list[float]
    distinct: int
    machine: str


def this_machine() -> str:
    """The processor's name, family and model, as Linux tells them; what ``platform`` knows elsewhere."""
    place = Path("/proc/cpuinfo")
    if not place.exists():
        return platform.processor() or platform.machine()
    told = dict(line.split(":", 1) for line in place.read_text().splitlines() if ":" in line)
    known = {name.strip(): value.strip() for name, value in told.items()}
    if "model name" not in known:
        return platform.machine()
    return f"{known['model name']} family {known.get('cpu family', '?')} model {known.get('model', '?')}"


def run(
    problem: Problem,
    sampler: BaseSampler,
    label: str,
    seed: int,
    evaluations: int,
    *,
    anchors: bool = True,
    workers: int = 1,
    constraints: bool = True,
) -> Run:
    """The anchors, then the sampler's proposals, until ``evaluations`` were made.

    With several ``workers`` so many trials are under way whenever one is proposed, and they finish in order.
    ``constraints`` False keeps the problem's constraints from the sampler.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=[o.direction for o in problem.objectives], sampler=sampler)
    distributions = problem.space.distributions()
    write_search_space(study, distributions)
    true: list[tuple[float, ...]] = []
    feasible: list[tuple[float, ...]] = []
    asked: list[float] = []
    digests: set[str] = set()
    hypervolumes: list[float] = []
    waiting: list[tuple[Trial, Scored]] = []
    given = list(problem.anchors) if anchors else []
    while len(true) < evaluations:
        number = len(true)
        if given and number == len(problem.anchors):
            given += _metric_weighted(problem, true)
        if number < len(given):
            recipe = given[number].recipe
            scored = problem.evaluate(recipe, seed, number)
            study.add_trial(_anchor_trial(problem, given[number], scored, constraints))
        else:
            started = time.process_time()
            trial = study.ask(distributions)
            asked.append(time.process_time() - started)
            recipe = problem.space.recipe(trial.params)
            scored = problem.evaluate(recipe, seed, number)
            waiting.append((trial, scored))
            if len(waiting) == workers:
                _tell(study, problem, *waiting.pop(0), constraints)
        digests.add(recipe.digest)
        true.append(scored.true)
        if not any(violation > 0 for violation in _violations(problem, scored).values()):
            feasible.append(scored.true)
        hypervolumes.append(problem.hypervolume(feasible) if feasible else 0.0)
    return Run(problem.name, label, seed, hypervolumes, asked, len(digests), this_machine())


def _violations(problem: Problem, scored: Scored) -> dict[str, float]:
    return {name: least - scored.told.scores[name] for name, least in problem.least.items()}


def _errors(problem: Problem, scored: Scored) -> list[float | None]:
    return [scored.told.standard_errors.get(objective.name) for objective in problem.objectives]


def _margins(problem: Problem, scored: Scored) -> dict[str, object]:
    kept = kept_margins([objective.name for objective in problem.objectives], scored.told)
    return {} if kept is None else {MARGINS: kept}


def _anchor_trial(problem: Problem, anchor: GivenRecipe, scored: Scored, constraints: bool) -> FrozenTrial:
    kind = ANCHOR if isinstance(anchor, Anchor) else SEED
    attributes: dict[str, object] = {kind: anchor.name, STANDARD_ERRORS: _errors(problem, scored)}
    if anchor.outside_space:
        attributes[OUTSIDE_SPACE] = True
    # Optuna's own samplers learn from every trial that has parameters: only points of the space get them.
    inside = {} if anchor.outside_space else dict(anchor.params)
    distributions = problem.space.distributions()
    return create_trial(
        state=TrialState.COMPLETE,
        params=inside,
        distributions={name: distributions[name] for name in inside},
        values=[scored.told.scores[o.name] for o in problem.objectives],
        user_attrs=attributes,
        system_attrs=_margins(problem, scored),
        constraints=_violations(problem, scored) if constraints else None,
    )


def _tell(study: optuna.Study, problem: Problem, trial: Trial, scored: Scored, constraints: bool) -> None:
    trial.set_user_attr(STANDARD_ERRORS, _errors(problem, scored))
    for key, value in _margins(problem, scored).items():
        study._storage.set_trial_system_attr(trial._trial_id, key, value)
    for name, violation in _violations(problem, scored).items() if constraints else ():
        trial.set_constraint(name, violation)
    study.tell(trial, [scored.told.scores[objective.name] for objective in problem.objectives])


def _metric_weighted(problem: Problem, true: Sequence[Sequence[float]]) -> list:
    """As the search does: when every expert has an objective of its own."""
    experts = list(problem.space.models)
    if len(experts) != len(problem.objectives):
        return []
    place = {anchor.name: i for i, anchor in enumerate(problem.anchors)}
    own = {expert: true[place[expert_anchor(expert)]][j] for j, expert in enumerate(experts)}
    anchor = metric_weighted(problem.space, own)
    return [] if anchor is None else [anchor]


def append(path: Path, finished: Run) -> None:
    with path.open("a") as file:
        file.write(_line(finished) + "\n")


def read(path: Path) -> Iterator[Run]:
    if path.exists():
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        for line in text.splitlines():
            yield Run(**json.loads(line))


def read_all(local: Path, recorded: Path = RECORDED) -> list[Run]:
    """Local and recorded runs, of every problem, sampler and seed one: the longest local one, or else the recorded."""
    found: dict[tuple[str, str, int], Run] = {}
    for finished in read(local):
        key = (finished.problem, finished.sampler, finished.seed)
        if key not in found or len(found[key].hypervolumes) < len(finished.hypervolumes):
            found[key] = finished
    for finished in read(recorded):
        found.setdefault((finished.problem, finished.sampler, finished.seed), finished)
    return list(found.values())


def record(runs: Sequence[Run], path: Path = RECORDED) -> None:
    """All runs in one compressed file, of the seconds only their median: what the tables need, to be committed."""
    ordered = sorted(runs, key=lambda run: (run.problem, run.sampler, run.seed))
    lines = [_line(replace(run, ask_seconds=[median(run.ask_seconds)]), digits=4) for run in ordered]
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode(), 9, mtime=0))


def _line(finished: Run, digits: int = 5) -> str:
    return json.dumps(
        {
            **asdict(finished),
            "hypervolumes": [round(v, digits) for v in finished.hypervolumes],
            "ask_seconds": [round(s, 4) for s in finished.ask_seconds],
        }
    )
