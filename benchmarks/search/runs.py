"""One run: a sampler on a problem with a seed, trial by trial, as one line of a results file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial

from benchmarks.search.problems import Problem
from mergefront.optimizer.anchors import expert_anchor, metric_weighted
from mergefront.optimizer.samplers.trial_attributes import ANCHOR, OUTSIDE_SPACE, STANDARD_ERRORS, write_search_space

HORIZONS = (15, 30, 60, 120)


@dataclass(frozen=True)
class Run:
    """``hypervolumes`` after every evaluation, anchors included; ``ask_seconds`` of processor time a proposal."""

    problem: str
    sampler: str
    seed: int
    hypervolumes: list[float]
    ask_seconds: list[float]
    distinct: int


def run(
    problem: Problem, sampler: BaseSampler, label: str, seed: int, evaluations: int, with_anchors: bool = True
) -> Run:
    """The anchors, then the sampler's proposals, until ``evaluations`` were made."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=[o.direction for o in problem.objectives], sampler=sampler)
    distributions = problem.space.distributions()
    write_search_space(study, distributions)
    true: list[tuple[float, ...]] = []
    asked: list[float] = []
    digests: set[str] = set()
    hypervolumes: list[float] = []
    anchors = list(problem.anchors) if with_anchors else []
    while len(true) < evaluations:
        number = len(true)
        if anchors and number == len(problem.anchors):
            anchors += _metric_weighted(problem, true)
        if number < len(anchors):
            anchor = anchors[number]
            attributes: dict[str, object] = {ANCHOR: anchor.name}
            if anchor.outside_space:
                attributes[OUTSIDE_SPACE] = True
            # Optuna's own samplers learn from every trial that has parameters: only points of the space get them.
            inside = {} if anchor.outside_space else dict(anchor.params)
            recipe = anchor.recipe
            scored = problem.evaluate(recipe, seed, number)
            errors = [scored.told.standard_errors.get(o.name) for o in problem.objectives]
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    params=inside,
                    distributions={name: distributions[name] for name in inside},
                    values=[scored.told.scores[o.name] for o in problem.objectives],
                    user_attrs=attributes | {STANDARD_ERRORS: errors},
                )
            )
        else:
            started = time.process_time()
            trial = study.ask(distributions)
            asked.append(time.process_time() - started)
            recipe = problem.space.recipe(trial.params)
            scored = problem.evaluate(recipe, seed, number)
            errors = [scored.told.standard_errors.get(o.name) for o in problem.objectives]
            trial.set_user_attr(STANDARD_ERRORS, errors)
            study.tell(trial, [scored.told.scores[o.name] for o in problem.objectives])
        digests.add(recipe.digest)
        true.append(scored.true)
        hypervolumes.append(problem.hypervolume(true))
    return Run(problem.name, label, seed, hypervolumes, asked, len(digests))


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
    line = json.dumps(
        {
            **asdict(finished),
            "hypervolumes": [round(v, 5) for v in finished.hypervolumes],
            "ask_seconds": [round(s, 4) for s in finished.ask_seconds],
        }
    )
    with path.open("a") as file:
        file.write(line + "\n")


def read(path: Path) -> Iterator[Run]:
    if path.exists():
        for line in path.read_text().splitlines():
            yield Run(**json.loads(line))
