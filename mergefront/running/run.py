"""Searching: from arguments, from a study file, or on with a stored study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.racing.race import RacingSettings
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.samplers.registry import check_sampler, resolved_options
from mergefront.optimizer.scores.constraints import Constraint, constraints_from
from mergefront.optimizer.scores.evaluation import Evaluator, FunctionEvaluator
from mergefront.optimizer.scores.objectives import Objective, objectives_from
from mergefront.optimizer.search.loop import TrialOutcome, run_search
from mergefront.optimizer.search.stopping import StopRule
from mergefront.running.progress import where_it_is_watched
from mergefront.running.worker import OnTrialEnd, OnTrialStart, nothing
from mergefront.storage import DEFAULT_STORAGE
from mergefront.storage.database import Database, normalised_url
from mergefront.study.check import check_study
from mergefront.study.definition import EvaluatorDefinition, StudyDefinition
from mergefront.study.preflight.budget import checked_budget
from mergefront.study.ready import ReadyStudy, begin, ready_to_resume, ready_to_run, store
from mergefront.study.rules import sampler_version
from mergefront.study.stored_study import Study, as_study
from mergefront.study.study_file import left_out_of_search
from mergefront.study.warm_start import entries, read_warm_start
from mergefront.tracking.log_to import logged_to
from mergefront.tracking.trackers import checked_trackers


@dataclass(frozen=True)
class Launcher:
    """Where a search runs: in this process (``name`` None), or with ``workers`` processes of a launcher."""

    name: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.name not in (None, "ray"):
            raise UserError(
                f"launcher {self.name!r} is not known; there is 'ray', and without one this process searches"
            )
        count = self.workers
        if count is not None and self.name is None:
            raise UserError(
                f"workers={count} needs a launcher, such as 'ray'; or start 'mergefront worker NAME' so many times"
            )
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise UserError(f"workers is {count!r}; it must be a whole number of at least 1")
        if self.name is not None:
            from mergefront.running.ray_launcher import imported_ray

            imported_ray()


IN_THIS_PROCESS = Launcher()


def search_ready(
    ready: ReadyStudy,
    launcher: Launcher = IN_THIS_PROCESS,
    on_trial_end: OnTrialEnd = nothing,
    on_trial_start: OnTrialStart = nothing,
) -> Study:
    """Search until the budget is spent or the study's rule stops it; returns the study."""
    study = ready.study
    with study.database.checkpoint_at_end():
        if launcher.name is not None:
            from mergefront.running.ray_launcher import work_on_ray

            work_on_ray(study, ready.evaluator, launcher.workers, on_trial_end, on_trial_start)
        else:
            assert ready.evaluator is not None
            run_search(study.plan, study.optuna, study.ledger, ready.evaluator, on_trial_end, on_trial_start)
    return study.refresh()


def search(
    *,
    space: MergeSpace,
    evaluate: Callable[[Recipe], Any] | Evaluator,
    objectives: Sequence[str | Objective | Mapping[str, Any]],
    name: str,
    constraints: Sequence[str | Constraint | Mapping[str, Any]] = (),
    sampler: str = "mm-mo",
    sampler_options: Mapping[str, Any] | None = None,
    evaluations: int | None = None,
    seed: int = 0,
    storage: str = DEFAULT_STORAGE,
    racing: bool | Mapping[str, float] = False,
    stop: StopRule | Mapping[str, Any] | None = None,
    warm_start: Sequence[str | Path | Mapping[str, str]] = (),
    launcher: str | None = None,
    workers: int | None = None,
    log_to: str | Sequence[str] = (),
    progress: bool = True,
    on_trial_end: OnTrialEnd = nothing,
    on_trial_start: OnTrialStart = nothing,
) -> Study:
    """Search merges with a function of your own and return the study; ``run`` does it from a study file.

    ``evaluate`` is a function ``Recipe -> {objective: number}``, or any ``Evaluator``; ``objectives`` are names,
    mappings as in a study file, or ``Objective``. ``constraints``, such as ``"forgetting <= 0.02"``, bound an
    objective or anything else that an evaluation reports. ``evaluations`` is the study's whole budget, anchors
    included (default: 30, or what a stored study has): a stored study of the same definition is continued up to it.
    ``racing`` (True, or a mapping as in a study file) asks each candidate no more items than needed; the evaluator
    must score item by item. ``stop`` (``{"hours": 2}``, or ``{"improvement": 0.001, "asks": 5}``) ends the run before
    the budget is spent; ``Study.stopped`` then says why. ``warm_start`` names what is known already: paths of
    mergekit YAML, ``{"study": NAME, "storage": URL}`` (see ``mergefront.study.warm_start``).
    A terminal or a notebook shows a bar, unless ``progress`` is False. ``on_trial_start(number, anchor)`` and
    ``on_trial_end(outcome)`` are called around each trial.

    ``launcher="ray"`` searches with ``workers`` processes of a Ray cluster (by default one per GPU, else one per CPU;
    see ``mergefront.running.ray_launcher``) instead of in this process. ``log_to`` names experiment trackers ("mlflow",
    "wandb"), to which trials and the front are written as they come; a resumed search goes on with the same run.

    Raises ``UserError`` for wrong input and ``SearchStoppedError`` when evaluations keep failing.
    """
    wanted = objectives_from(objectives)
    given = dict(sampler_options or {})
    bounds, rule = constraints_from(constraints), StopRule.read(stop)
    problems = check_sampler(
        sampler,
        given,
        len(wanted),
        constrained=bool(bounds),
        stops_by_improvement=rule.improvement is not None,
        simplex=space.simplex,
    )
    problems += space.unlike()
    if problems:
        raise UserError("; ".join(problems))
    options = resolved_options(sampler, given)
    named = evaluate if hasattr(evaluate, "__qualname__") else type(evaluate)
    function_name = f"{getattr(named, '__module__', '?')}:{getattr(named, '__qualname__', '?')}"
    definition = StudyDefinition(
        name=name,
        space=space,
        objectives=wanted,
        constraints=bounds,
        stop=rule,
        warm_start=entries(warm_start),
        evaluator=EvaluatorDefinition("python", call=function_name),
        sampler=sampler,
        sampler_options=options,
        sampler_version=sampler_version(sampler),
        seed=seed,
        storage=normalised_url(storage),
        evaluations=evaluations,
        racing=RacingSettings.read(racing),
        left_out=left_out_of_search(options, given, RacingSettings.read(racing)),
    )
    where, trackers = Launcher(launcher, workers), checked_trackers(log_to)
    if evaluations is not None:
        checked_budget(definition, evaluations)
    read_warm_start(definition)  # what does not fit is said before anything is written
    evaluator = evaluate if isinstance(evaluate, Evaluator) else FunctionEvaluator(evaluate)
    ready = begin(definition, Database(definition.storage), evaluator)
    return _watched(ready, where, trackers, progress, on_trial_end, on_trial_start)


def _watched(
    ready: ReadyStudy,
    launcher: Launcher,
    trackers: Sequence[str],
    progress: bool,
    on_trial_end: OnTrialEnd,
    on_trial_start: OnTrialStart,
) -> Study:
    """Search, with progress for whoever watches and for trackers."""

    def start(number: int, anchor: str | None) -> None:
        show_start(number, anchor)
        on_trial_start(number, anchor)

    def end(outcome: TrialOutcome) -> None:
        show_end(outcome)
        log_trials(outcome)
        on_trial_end(outcome)

    watched = where_it_is_watched(ready.study, progress)
    with logged_to(ready.study, trackers) as log_trials, watched as (show_end, show_start):
        return search_ready(ready, launcher, end, start)


def run(
    path: str | Path,
    *,
    evaluations: int | None = None,
    launcher: str | None = None,
    workers: int | None = None,
    log_to: str | Sequence[str] = (),
    progress: bool = True,
    on_trial_end: OnTrialEnd = nothing,
    on_trial_start: OnTrialStart = nothing,
) -> Study:
    """Run a study file up to its budget (``evaluations`` overrides it); continues an existing study.

    Everything else is in the file. ``launcher``, ``workers``, ``log_to``, ``progress`` and the callbacks are those of
    ``search``.

    Raises ``StudyFileError`` with every problem of the file before anything is written.
    """
    where, trackers = Launcher(launcher, workers), checked_trackers(log_to)
    with ready_to_run(check_study(path, evaluations), with_evaluator=launcher is None) as ready:
        return _watched(ready, where, trackers, progress, on_trial_end, on_trial_start)


def create(path: str | Path, *, evaluations: int | None = None) -> Study:
    """Store the study of a study file, up to ``evaluations`` if they are given, and evaluate nothing.

    For outside harnesses (``Study.ask``, ``Study.tell``) and for workers that begin together. A stored study of the
    same definition is returned as it is. Raises ``StudyFileError`` with every problem of the file before anything is
    written.
    """
    return store(check_study(path, evaluations)).study


def resume(
    study: str | Study,
    *,
    storage: str = DEFAULT_STORAGE,
    root: str | Path | None = None,
    evaluations: int | None = None,
    launcher: str | None = None,
    workers: int | None = None,
    log_to: str | Sequence[str] = (),
    progress: bool = True,
    on_trial_end: OnTrialEnd = nothing,
    on_trial_start: OnTrialStart = nothing,
) -> Study:
    """Continue a stored study up to its budget, or up to ``evaluations``; needs only name and storage.

    A study that is loaded already may stand for both. ``root`` is the folder of its files where that is not the one
    that the database knows. ``launcher``, ``workers``, ``log_to``, ``progress`` and the callbacks are those of
    ``search``; trackers are told what they lack of a study whose budget is spent, too.
    """
    where, trackers = Launcher(launcher, workers), checked_trackers(log_to)
    study = as_study(study, storage=storage, root=root)
    with ready_to_resume(study, evaluations=evaluations, with_evaluator=launcher is None) as ready:
        if ready is None:
            with logged_to(study, trackers):
                return study
        return _watched(ready, where, trackers, progress, on_trial_end, on_trial_start)
