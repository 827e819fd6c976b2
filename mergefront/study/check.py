"""Preflight: everything that can be known to be wrong before anything is written or loaded.

Reads the study file, headers of checkpoints and data files; lists every problem at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mergefront.adapters.remote.http.section import Section
from mergefront.optimizer.errors import StudyFileError, UserError, did_you_mean
from mergefront.optimizer.racing.race import RacingSettings
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.samplers.registry import check_sampler, resolved_options
from mergefront.optimizer.scores.constraints import COSTS, Constraint, constraints_from
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.stopping import StopRule
from mergefront.study.check_backend import (
    check_checkpoints,
    check_server,
    check_tasks,
    local_definition,
    server_definition,
    starts_by_importance,
)
from mergefront.study.continuation import check_continues
from mergefront.study.definition import EvaluatorDefinition, StudyDefinition
from mergefront.study.method_files import load_method_files
from mergefront.study.rules import DEFAULT_EVALUATIONS, changes_since, sampler_version
from mergefront.study.study_file import FunctionBackendSection, ObjectiveSection, StudyFile, left_out, read_study_file
from mergefront.study.warm_start import entries, read_warm_start

if TYPE_CHECKING:
    from mergefront.storage.database import Database
    from mergefront.storage.studies import StudyRecord

Read = TypeVar("Read")
SPARSITY = "delta_l1"
"""The objective that every local backend measures by itself: the L1 norm of merged minus base weights."""


@dataclass(frozen=True)
class CheckReport:
    """What a preflight found: ``problems`` forbid a run, ``notes`` are worth knowing."""

    source: str
    problems: list[str]
    notes: list[str] = field(default_factory=list)
    definition: StudyDefinition | None = None
    database: Database | None = None
    """The study's database, open, where there is one already."""
    record: StudyRecord | None = None
    """The stored study that the file continues."""

    def definition_or_raise(self) -> StudyDefinition:
        """The definition; raises ``StudyFileError`` when there is any problem."""
        if self.problems or self.definition is None:
            raise StudyFileError(self.source, self.problems)
        return self.definition


def check_study(path: str | Path) -> CheckReport:
    """Check a study file and everything it names."""
    path = Path(path)
    try:
        file = read_study_file(path)
    except StudyFileError as error:
        return CheckReport(str(path), list(error.problems))
    problems: list[str] = []
    notes: list[str] = []
    root = path.resolve().parent
    method_files = _method_files(file, root, problems)
    directions: dict[str, str] | None = None
    layers: int | None = 0
    if isinstance(file.backend, FunctionBackendSection):
        _check_function(file, root, problems)
    elif isinstance(file.backend, Section):
        directions = dict(_check_server_tasks(file, root, problems, notes))
    else:
        layers = check_checkpoints(file, root, problems, notes)
        directions = {**check_tasks(file, root, problems, notes), SPARSITY: "minimize"}
    objectives = _objectives(file, directions, problems)
    constraints = _constraints(file, directions, problems)
    stop = _read(lambda: StopRule.read(file.stop), problems, StopRule())
    warm_start = _warm_start(file, root, problems)
    space = _space(file, layers, root, problems, notes)
    problems.extend(
        f"search: {problem}"
        for problem in check_sampler(
            file.search.sampler,
            file.search.options,
            len(file.objectives),
            constrained=bool(file.constraints),
            stops_by_improvement=file.stop.get("improvement") is not None,
        )
    )
    racing = _racing(file, problems)
    storage = _absolute_storage(file.storage, root, problems)
    if not problems and space is not None and isinstance(file.backend, Section):
        check_server(file, space, root, problems, notes)
    if problems or space is None:
        return CheckReport(str(path), problems, notes)
    evaluator, runtime = _evaluator(file, root)
    options = resolved_options(file.search.sampler, file.search.options)
    definition = StudyDefinition(
        name=file.study,
        space=space,
        objectives=tuple(objectives),
        evaluator=evaluator,
        sampler=file.search.sampler,
        sampler_options=options,
        sampler_version=sampler_version(file.search.sampler),
        seed=file.seed,
        evaluations=file.search.evaluations,
        storage=storage,
        root=root,
        runtime=runtime,
        constraints=constraints,
        stop=stop,
        warm_start=warm_start,
        racing=racing,
        method_files=method_files,
        left_out=left_out(file, evaluator, options),
    )
    database, record = _check_stored(definition, problems, notes)
    if not problems:
        _check_warm_start(definition, problems, notes)
    budget = definition.evaluations or (DEFAULT_EVALUATIONS if record is None else record.evaluations)
    notes.append(
        f"{space.dimension} coefficients are searched, {len(objectives)} objectives, "
        f"{budget} evaluations of {definition.sampler if record is None else record.definition['sampler']['name']}"
    )
    return CheckReport(str(path), problems, notes, None if problems else definition, database, record)


def _evaluator(file: StudyFile, root: Path) -> tuple[EvaluatorDefinition, dict[str, Any]]:
    """How a sound file's recipes are scored, and what of it may differ between runs."""
    if isinstance(file.backend, FunctionBackendSection):
        return EvaluatorDefinition("function", call=file.backend.call), {}
    if isinstance(file.backend, Section):
        return server_definition(file, root)
    return local_definition(file, root), {"device": file.backend.device}


def _read(read: Callable[[], Read], problems: list[str], otherwise: Read) -> Read:
    try:
        return read()
    except UserError as error:
        problems.append(str(error))
        return otherwise


def _method_files(file: StudyFile, root: Path, problems: list[str]) -> dict[str, str]:
    try:
        return load_method_files(file.merge.method_files, root)
    except UserError as error:
        problems.append(f"merge.method_files: {error}")
        return {}


def _check_server_tasks(file: StudyFile, root: Path, problems: list[str], notes: list[str]) -> dict[str, str]:
    from mergefront.adapters.remote.backend_types import answers_with_a_loss

    assert isinstance(file.backend, Section)
    if not answers_with_a_loss(file.backend):
        return check_tasks(file, root, problems, notes)
    if file.tasks:
        problems.append("tasks: this service scores by itself; remove 'tasks' and name the objective loss")
    return {"loss": "minimize"}


def _check_function(file: StudyFile, root: Path, problems: list[str]) -> None:
    from mergefront.adapters.tasks.user_code import user_function

    assert isinstance(file.backend, FunctionBackendSection)
    if file.tasks:
        problems.append("tasks: a function scores by itself; remove 'tasks', or use backend: {type: local}")
    try:
        user_function(file.backend.call, root)
    except UserError as error:
        problems.append(str(error))


def _space(file: StudyFile, layers: int | None, root: Path, problems: list[str], notes: list[str]) -> MergeSpace | None:
    parameters = dict(file.merge.space)
    granularity = parameters.pop("granularity", "global")
    split = parameters.pop("split", ())
    if not isinstance(split, (list, tuple)) or not all(isinstance(part, str) for part in split):
        problems.append(f"merge.space.split is {split!r}; write a list of words such as [self_attn, mlp]")
        return None
    if granularity != "global" and layers == 0:
        problems.append(
            f"merge.space.granularity is {granularity!r}; it needs a base model whose layers can be counted"
        )
        return None
    if isinstance(granularity, Mapping) and granularity.get("boundaries") == "importance":
        if problems:
            return None
        try:
            granularity = starts_by_importance(file, granularity, root)
        except UserError as error:
            problems.append(f"merge.space.granularity: {error}")
            return None
        notes.append(f"blocks by importance begin at layers {', '.join(map(str, granularity['starts']))}")
    try:
        return MergeSpace(
            file.merge.models,
            method=file.merge.method,
            base_model=file.merge.base_model,
            parameters=parameters,
            granularity=granularity,
            split=split,
            layers=layers or 0,
            seed=file.seed,
        )
    except StudyFileError as error:
        problems.extend(f"merge.{problem}" for problem in error.problems)
    return None


def _objectives(file: StudyFile, directions: Mapping[str, str] | None, problems: list[str]) -> list[Objective]:
    """The objectives; ``directions`` holds the known ones and their directions (None: any name will do)."""
    made: list[Objective] = []
    for entry in file.objectives:
        section = entry if isinstance(entry, ObjectiveSection) else ObjectiveSection(name=entry)
        if directions is not None and section.name not in directions:
            problems.append(f"objectives: {section.name!r} names no task {did_you_mean(section.name, directions)}")
            continue
        if any(known.name == section.name for known in made):
            problems.append(f"objectives: {section.name!r} is named twice")
            continue
        natural = (directions or {}).get(section.name, "minimize" if section.name == SPARSITY else "maximize")
        try:
            made.append(Objective(section.name, section.direction or natural, section.range))  # type: ignore[arg-type]
        except UserError as error:
            problems.append(str(error))
    return made


def _constraints(file: StudyFile, directions: Mapping[str, str] | None, problems: list[str]) -> tuple[Constraint, ...]:
    """The constraints; ``directions`` holds the numbers that are reported beside costs (None: any name will do)."""
    given = [entry if isinstance(entry, str) else entry.model_dump(exclude_none=True) for entry in file.constraints]
    try:
        made = constraints_from(given)
    except UserError as error:
        problems.append(str(error))
        return ()
    known = None if directions is None else {*directions, *COSTS}
    for constraint in made:
        if known is not None and constraint.name not in known:
            problems.append(
                f"constraints: {constraint.name!r} is no number that is reported {did_you_mean(constraint.name, known)}"
            )
    return made


def _warm_start(file: StudyFile, root: Path, problems: list[str]) -> tuple[dict[str, str], ...]:
    nothing: tuple[dict[str, str], ...] = ()
    made = _read(lambda: entries(file.warm_start), problems, nothing)
    return tuple(
        {**entry, "storage": _absolute_storage(entry["storage"], root, problems)} if "storage" in entry else entry
        for entry in made
    )


def _check_warm_start(definition: StudyDefinition, problems: list[str], notes: list[str]) -> None:
    if not definition.warm_start:
        return
    try:
        found = read_warm_start(definition)
    except UserError as error:
        problems.append(str(error))
        return
    notes.append(f"warm start: {len(found.known)} evaluations are known, {len(found.seeds)} recipes come first")


def _racing(file: StudyFile, problems: list[str]) -> RacingSettings | None:
    racing = _read(lambda: RacingSettings.read(file.racing), problems, None)
    if racing is not None and not file.tasks:
        problems.append("racing: needs tasks, whose items it saves; remove 'racing', or score with tasks")
    return racing


def _absolute_storage(given: str, root: Path, problems: list[str]) -> str:
    """The storage URL with a relative SQLite path made absolute from the file's folder."""
    from mergefront.storage.database import normalised_url, sqlite_path

    try:
        url = normalised_url(given)
    except UserError as error:
        problems.append(str(error))
        return given
    relative = sqlite_path(url)
    return url if relative is None or relative.is_absolute() else f"sqlite:///{root / relative}"


def _check_stored(
    definition: StudyDefinition, problems: list[str], notes: list[str]
) -> tuple[Database | None, StudyRecord | None]:
    """The database if there is one, and the study that the file continues; another study of this name is a problem."""
    from mergefront.storage.database import Database, NoStudiesError, sqlite_path
    from mergefront.storage.studies import find

    path = sqlite_path(definition.storage)
    if path is not None and not path.exists():
        if not path.parent.is_dir():
            problems.append(f"storage: the folder {path.parent} does not exist; create it first")
        return None, None
    try:
        database = Database(definition.storage, create=False)
        record = find(database, definition.name)
        if record is not None:
            notes.extend(check_continues(definition, record))
            notes.extend(changes_since(record.name, record.definition))
        return database, record
    except NoStudiesError:
        return None, None  # an empty database on a server: its tables are made with the study
    except UserError as error:
        problems.append(str(error))
        return None, None
