"""The Python API: search, continue and load studies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.racing.race import RacingSettings
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.constraints import Constraint, constraints_from
from mergefront.optimizer.scores.evaluation import Evaluator, FunctionEvaluator
from mergefront.optimizer.scores.objectives import Objective, objectives_from
from mergefront.optimizer.search.stopping import StopRule
from mergefront.running.worker import nothing, plan_of
from mergefront.study.definition import StudyDefinition
from mergefront.study.stored_study import DEFAULT_STORAGE, Study, load_study
from mergefront.study.warm_start import begin, entries, read_warm_start

if TYPE_CHECKING:
    from mergefront.optimizer.search.loop import TrialOutcome


def search(
    study: str | Path | None = None,
    *,
    space: MergeSpace | None = None,
    evaluate: Callable[[Recipe], Any] | Evaluator | None = None,
    objectives: Sequence[str | Objective | Mapping[str, Any]] | None = None,
    constraints: Sequence[str | Constraint | Mapping[str, Any]] = (),
    sampler: str = "mm-mo",
    sampler_options: Mapping[str, Any] | None = None,
    evaluations: int | None = None,
    seed: int = 0,
    storage: str = DEFAULT_STORAGE,
    name: str | None = None,
    racing: bool | Mapping[str, float] = False,
    stop: StopRule | Mapping[str, Any] | None = None,
    warm_start: Sequence[str | Path | Mapping[str, str]] = (),
    launcher: str | None = None,
    workers: int | None = None,
    observe: Callable[[TrialOutcome], None] = nothing,
) -> Study:
    """Search merges and return the study.

    Either everything comes from a study file (``search("study.yaml")``), or from arguments:
    ``space``, ``evaluate`` (a function ``Recipe -> {objective: number}``, or any ``Evaluator``),
    ``objectives`` (names, mappings as in a study file, or ``Objective``) and ``name``. ``constraints``, such as
    ``"forgetting <= 0.02"``, bound an objective or anything else that an evaluation reports.
    ``evaluations`` is the study's whole budget, anchors included: an existing study of the same
    definition is continued up to it (default 30). ``racing`` (True, or a mapping as in a study file) asks each
    candidate no more items than needed; the evaluator must score item by item. ``stop`` (``{"hours": 2}``, or
    ``{"improvement": 0.001, "asks": 5}``) ends the run before the budget is spent; ``Study.stopped`` then says why.
    ``warm_start`` names what is known already: paths of mergekit YAML, ``{"study": NAME, "storage": URL}``
    (see ``mergefront.study.warm_start``). ``observe`` is called after each trial.

    ``launcher="ray"`` searches with ``workers`` processes of a Ray cluster (by default one per GPU, else one per CPU;
    see ``mergefront.running.ray_launcher``) instead of in this process.

    Raises ``UserError`` for wrong input and ``SearchStoppedError`` when evaluations keep failing.
    """
    if study is not None:
        given = {
            "space": space,
            "evaluate": evaluate,
            "objectives": objectives,
            "name": name,
            "constraints": constraints or None,
        }
        extra = [key for key, value in given.items() if value is not None]
        if extra:
            raise UserError(f"search: {', '.join(extra)} cannot be combined with a study file; write it into the file")
        return run(study, evaluations=evaluations, launcher=launcher, workers=workers, observe=observe)
    missing = [
        key
        for key, value in {"space": space, "evaluate": evaluate, "objectives": objectives, "name": name}.items()
        if value is None
    ]
    if missing:
        raise UserError(
            f"search: {', '.join(missing)} missing; give a study file, or space, evaluate, objectives and name"
        )
    assert space is not None and evaluate is not None and objectives is not None and name is not None
    from mergefront.optimizer.samplers.registry import check_sampler

    wanted = objectives_from(objectives)
    options = dict(sampler_options or {})
    bounds, rule = constraints_from(constraints), StopRule.read(stop)
    problems = check_sampler(
        sampler, options, len(wanted), constrained=bool(bounds), stops_by_improvement=rule.improvement is not None
    )
    if problems:
        raise UserError("; ".join(problems))
    definition = StudyDefinition(
        name=name,
        space=space,
        objectives=wanted,
        constraints=bounds,
        stop=rule,
        warm_start=entries(warm_start),
        evaluator={"type": "python", "function": _function_name(evaluate)},
        sampler=sampler,
        sampler_options=options,
        seed=seed,
        storage=storage,
        evaluations=30 if evaluations is None else evaluations,
        racing=RacingSettings.read(racing),
    )
    check_launcher(launcher, workers)
    read_warm_start(definition)  # what does not fit is said before anything is written
    evaluator = FunctionEvaluator(evaluate) if not isinstance(evaluate, Evaluator) else evaluate
    begun = _begin(definition)
    if launcher is not None:
        return _launch(begun, evaluator, workers, observe, nothing)
    return _continue(begun, evaluator, definition.evaluations, observe, nothing)


def run(
    path: str | Path,
    *,
    evaluations: int | None = None,
    launcher: str | None = None,
    workers: int | None = None,
    observe: Callable[[TrialOutcome], None] = nothing,
    before: Callable[[int, str | None], None] = nothing,
) -> Study:
    """Run a study file up to its budget (``evaluations`` overrides it); continues an existing study.

    ``launcher`` and ``workers`` are those of ``search``.

    Raises ``StudyFileError`` with every problem of the file before anything is written.
    """
    from dataclasses import replace

    from mergefront.study.check import check_study
    from mergefront.study.evaluators import make_evaluator

    check_launcher(launcher, workers)
    report = check_study(path)
    definition = report.definition_or_raise()
    if evaluations is not None:
        definition = replace(definition, evaluations=_budget(evaluations))
    if launcher is not None:
        return _launch(_begin(definition), None, workers, observe, before)
    with make_evaluator(
        definition.evaluator, definition.space, definition.root, definition.runtime, definition.storage
    ) as evaluator:
        return _continue(_begin(definition), evaluator, definition.evaluations, observe, before)


def resume(
    study: str | Study,
    *,
    storage: str = DEFAULT_STORAGE,
    evaluations: int | None = None,
    launcher: str | None = None,
    workers: int | None = None,
    observe: Callable[[TrialOutcome], None] = nothing,
    before: Callable[[int, str | None], None] = nothing,
) -> Study:
    """Continue a stored study up to its budget, or up to ``evaluations``; needs only name and storage.

    A study that is loaded already may stand for both. ``launcher`` and ``workers`` are those of ``search``.
    """
    from mergefront.storage.studies import set_evaluations
    from mergefront.study.evaluators import make_evaluator

    check_launcher(launcher, workers)
    if isinstance(study, str):
        study = load_study(study, storage=storage)
    if evaluations is not None:
        set_evaluations(study.database, study.record.study_id, _budget(evaluations))
        study.refresh()
    budget = study.record.evaluations
    if study.finished_count() >= budget:
        return study
    stored = study.record.definition
    if launcher is not None:
        return _launch(study, None, workers, observe, before)
    with make_evaluator(
        stored["evaluator"], study.space, Path(study.record.root), stored["runtime"], study.database.url
    ) as made:
        return _continue(study, made, budget, observe, before)


def check_launcher(launcher: str | None, workers: int | None) -> None:
    """Raises ``UserError`` for an unknown launcher, one that is not installed, and a wrong number of workers."""
    if launcher not in (None, "ray"):
        raise UserError(f"launcher {launcher!r} is not known; there is 'ray', and without one this process searches")
    if workers is not None and launcher is None:
        raise UserError(
            f"workers={workers} needs a launcher, such as 'ray'; or start 'mergefront worker NAME' so many times"
        )
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise UserError(f"workers is {workers!r}; it must be a whole number of at least 1")
    if launcher is not None:
        from mergefront.running.ray_launcher import imported_ray

        imported_ray()


def _begin(definition: StudyDefinition) -> Study:
    """The stored study of this definition, made if there is none, with its budget and warm start."""
    from dataclasses import replace

    from mergefront.optimizer.search.attributes import write_search_space
    from mergefront.storage.database import Database
    from mergefront.storage.studies import create_or_load, set_evaluations, set_stop
    from mergefront.versions import versions

    budget = _budget(definition.evaluations)
    database = Database(definition.storage)
    record = create_or_load(
        database,
        definition.name,
        definition.to_json(),
        definition.objectives,
        root=str(definition.root.resolve()),
        evaluations=budget,
        versions=versions(),
    )
    if record.definition["stop"] != definition.stop.to_json():
        record = set_stop(database, record, definition.stop.to_json())
    study = Study(database, record)
    write_search_space(study.optuna, study.space.distributions())
    begin(study, definition)
    if record.evaluations != budget:
        set_evaluations(database, record.study_id, budget)
        study.record = replace(record, evaluations=budget)
    return study


def _launch(
    study: Study,
    evaluator: Evaluator | None,
    workers: int | None,
    observe: Callable[[TrialOutcome], None],
    before: Callable[[int, str | None], None],
) -> Study:
    from mergefront.running.ray_launcher import work_on_ray

    study.ledger.forgive()
    work_on_ray(study, evaluator, workers, observe, before)
    return study.refresh()


def _continue(
    study: Study,
    evaluator: Evaluator,
    budget: int,
    observe: Callable[[TrialOutcome], None],
    before: Callable[[int, str | None], None],
) -> Study:
    from mergefront.optimizer.search.loop import run_search

    study.ledger.forgive()
    run_search(plan_of(study, budget), study.optuna, study.ledger, evaluator, observe, before)
    return study.refresh()


def _budget(evaluations: object) -> int:
    if isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 1:
        raise UserError(f"evaluations is {evaluations!r}; it must be a whole number of at least 1")
    return evaluations


def _function_name(function: object) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', '?')}:{getattr(named, '__qualname__', '?')}"
