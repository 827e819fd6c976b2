"""Preflight: everything that can be known to be wrong before anything is written or loaded.

Reads the study file, headers of checkpoints and data files; lists every problem at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mergefront.adapters.hub.places import Preview
from mergefront.adapters.merging.output.metadata import write_metadata
from mergefront.adapters.remote.backend_types import answers_with_a_loss
from mergefront.adapters.remote.identity import are_same
from mergefront.adapters.remote.settings import BackendSection, ServerSection
from mergefront.adapters.starting.training_run import checkpoint_folders, trained_checkpoints
from mergefront.adapters.tasks.user_code import importable, user_function
from mergefront.optimizer.errors import StudyFileError, UserError, did_you_mean
from mergefront.optimizer.racing.race import RacingSettings
from mergefront.optimizer.recipes.anchors import anchors, one_of_each_method
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.samplers.registry import check_sampler, resolved_options
from mergefront.optimizer.scores.constraints import COSTS, Constraint, constraints_from
from mergefront.optimizer.scores.objectives import COMPUTED, DELTA_L1, PARAMETERS, Objective
from mergefront.storage.database import Database, NoStudiesError, normalised_url, sqlite_path
from mergefront.storage.studies import StudyRecord, check_free_of_others, check_name, find
from mergefront.study.continuation import check_continues
from mergefront.study.definition import StudyDefinition
from mergefront.study.evaluators import merge_plan
from mergefront.study.method_files import load_method_files
from mergefront.study.preflight.budget import checked_budget, checked_item_scores, connections
from mergefront.study.preflight.elsewhere import check_engine, check_external, check_judges, check_server
from mergefront.study.preflight.evaluator import evaluator_definition
from mergefront.study.preflight.findings import Findings
from mergefront.study.preflight.mixture import check_mixture
from mergefront.study.preflight.models import check_checkpoints, starts_by_importance
from mergefront.study.preflight.tasks import check_tasks
from mergefront.study.rules import DEFAULT_EVALUATIONS, changes_since, sampler_version
from mergefront.study.starting_points import ALIGNED, centred, centres_of, check_start_points, names_of, uncentred
from mergefront.study.study_file import (
    ExternalBackendSection,
    FunctionBackendSection,
    ObjectiveSection,
    TrainingRunSection,
    left_out,
    read_study_file,
)
from mergefront.study.warm_start import entries, read_warm_start


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
    warnings: list[str] = field(default_factory=list)
    """Of ``notes`` what a run says as well."""
    models: Preview | None = None
    """The models as they were looked at."""

    def definition_or_raise(self) -> StudyDefinition:
        """The definition; raises ``StudyFileError`` when there is any problem."""
        if self.problems or self.definition is None:
            raise StudyFileError(self.source, self.problems)
        return self.definition


def check_study(path: str | Path, evaluations: int | None = None) -> CheckReport:
    """Check a study file and everything it names; ``evaluations`` overrides its budget."""
    path = Path(path)
    try:
        file, unknown_keys = read_study_file(path)
    except StudyFileError as error:
        return CheckReport(str(path), list(error.problems))
    if file.merge.experts is not None and file.backend.type != "local":
        refusal = f"backend: {file.backend.type} cannot merge the experts of a mixture; use backend: {{type: local}}"
        return CheckReport(str(path), [*unknown_keys, refusal])
    root = path.resolve().parent
    found = Findings(file, root, Preview(root))
    problems, notes = found.problems, found.notes
    problems.extend(unknown_keys)
    if file.merge.training_run is not None:
        with found.catch("merge.training_run: "):
            notes.append(_trained(file.merge.training_run, root))
    method_files: dict[str, str] = {}
    with found.catch("merge.method_files: "):
        method_files = load_method_files(file.merge.method_files, root)
    with found.catch():
        check_name(file.study)
    storage = _absolute_storage(found, file.storage)
    database, record = _stored(found, storage)
    if record is not None:
        found.models.commits.update(record.definition["evaluator"].get("content", {}))
    directions: dict[str, str] | None = None
    layers: Mapping[str, int] | None = {}
    if isinstance(file.backend, FunctionBackendSection):
        _check_function(found, file.backend.call)
    elif isinstance(file.backend, ExternalBackendSection):
        layers = check_external(found)
    elif isinstance(file.backend, BackendSection):
        directions = _check_server_tasks(found, file.backend)
    else:
        layers = check_checkpoints(found)
        directions = {**check_tasks(found), DELTA_L1 if file.merge.experts is None else PARAMETERS: "minimize"}
        check_engine(found)
    check_mixture(found)
    if file.merge.allow and file.backend.type != "local":
        problems.append("merge.allow: only a local backend compares the models' configurations; remove it")
    if file.merge.tokenizer_source is not None and file.backend.type not in ("local", "external"):
        problems.append("merge.tokenizer_source: only a local backend aligns embeddings by token; remove it")
    if (file.merge.scope is not None or file.merge.carry) and file.backend.type != "local":
        problems.append("merge.scope: only a local backend tells text from towers; remove scope and carry")
    objectives = _objectives(found, directions)
    constraints = _constraints(found, directions)
    stop, racing = file.stop, RacingSettings.read(file.racing)
    warm_start = _warm_start(found)
    space = _space(found, layers)
    centres = centres_of(file.merge.space.parameters)
    learned = {} if record is None else record.definition.get("learned", {})
    if space is not None and centres.keys() and {one["around"] for one in centres.values()} <= learned.keys():
        space = centred(space, centres, learned)
    of_sampler = check_sampler(
        file.search.sampler,
        file.search.options,
        len(file.objectives),
        constrained=bool(file.constraints),
        stops_by_improvement=stop.improvement is not None,
        simplex=file.merge.space.simplex,
    )
    problems.extend(f"search: {problem}" for problem in (*file.search.misspelt.values(), *of_sampler))
    if racing is not None and not file.tasks and file.backend.type != "external":
        problems.append("racing: needs tasks, whose items it saves; remove 'racing', or score with tasks")
    served: Mapping[str, Mapping[str, Any]] = {}
    if not problems and space is not None and isinstance(file.backend, BackendSection):
        served = check_server(found, space)
    if space is not None:
        check_judges(found, [anchor.name for anchor in anchors(space)], database)
        problems.extend(check_start_points(found, space, centres))
    if problems or space is None:
        return CheckReport(str(path), problems, [*notes, *found.warnings])
    evaluator, runtime = evaluator_definition(found, space)
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
        evaluations=file.search.evaluations if evaluations is None else evaluations,
        storage=storage,
        root=root,
        runtime=runtime,
        constraints=constraints,
        stop=stop,
        warm_start=warm_start,
        racing=racing,
        method_files=method_files,
        allow=tuple(file.merge.allow),
        tokenizer_source=file.merge.tokenizer_source,
        modalities=found.modalities,
        served=served,
        anchors=tuple(file.search.anchors),
        aligned=file.search.aligned.model_dump() if ALIGNED in names_of(file.search.anchors, centres) else {},
        centres=centres,
        left_out=left_out(file, evaluator, options),
    )
    if evaluator.type == "local" and file.merge.experts is None:
        _check_writing(found, definition)
    if evaluator.type == "external":
        told = ", ".join(f"{objective.name} ({objective.direction})" for objective in objectives)
        notes.append(f"an outside harness reports: {told}")
        if space.grouping.stacks and not space.grouping.starts:
            notes.append("mergekit cannot say blocks per stack: take the recipe from 'mergefront ask --json'")
    if record is not None:
        with found.catch():
            notes.extend(check_continues(definition, record))
            notes.extend(changes_since(record.name, record.definition, found.root))
            if "served" in record.definition and not are_same(definition.served, record.definition["served"]):
                notes.append("the models at the server answer otherwise than when the study began")
    elif database is not None:
        with found.catch():
            check_free_of_others(database, file.study, objectives)
    if not problems and definition.warm_start:
        with found.catch():
            warm = read_warm_start(definition)
            notes.extend(warm.notes)
            notes.append(f"warm start: {len(warm.known)} evaluations are known, {len(warm.seeds)} recipes come first")
    budget = definition.evaluations
    if budget is None:
        budget = DEFAULT_EVALUATIONS if record is None else record.evaluations
    with found.catch():
        found.warnings.extend(checked_budget(definition, budget))
        found.warnings.extend(checked_item_scores(definition, budget, found.items))
    # After the anchors comes the metric-weighted average, or where there is none the sampler's first proposal.
    begun = len(anchors(space)) + len(definition.anchors)
    if len(definition.anchors) > 1 and budget < begun:
        found.warnings.append(f"search.evaluations: {budget} end before the last start point; {begun} reach it")
    if database is not None and (taken := connections(database)) is not None:
        notes.append(taken)
    notes.append(
        f"{space.dimension} coefficients are searched, {len(objectives)} objectives, "
        f"{budget} evaluations of {definition.sampler if record is None else record.definition['sampler']['name']}"
    )
    notes.extend(found.warnings)
    sound = None if problems else definition
    return CheckReport(str(path), problems, notes, sound, database, record, found.warnings, found.models)


def _check_writing(found: Findings, definition: StudyDefinition) -> None:
    """Plan what an export would write: a recipe of every method, and every anchor."""
    space = definition.space
    with found.catch("export: "), TemporaryDirectory() as folder:
        plan = merge_plan(definition, anchors(space)[0].recipe, definition.allow, found.models)
        write_metadata(plan.described, Path(folder), ())
        part = plan.parts[0]
        for recipe in (*(anchor.recipe for anchor in anchors(space)), *one_of_each_method(space)):
            replace(part, recipe=recipe)


def _trained(given: TrainingRunSection | str, root: Path) -> str:
    """The checkpoints of a training run, with the metric that they have."""
    run = TrainingRunSection.read(given) if isinstance(given, str) else given
    names = ", ".join(checkpoint_folders(root / run.folder))
    try:
        metric, checkpoints = trained_checkpoints(root / run.folder, run.metric, run.greater_is_better)
    except UserError:
        if run.metric is not None:
            raise
        return f"training run {run.folder}: {names}"  # whoever needs the metric said so
    return f"training run {run.folder}, {metric}: {', '.join(f'{one.name} {one.value:.4g}' for one in checkpoints)}"


def _check_server_tasks(found: Findings, backend: ServerSection) -> dict[str, str]:
    if not answers_with_a_loss(backend):
        return check_tasks(found)
    if found.file.tasks:
        found.problems.append("tasks: this service scores by itself; remove 'tasks' and name the objective loss")
    return {"loss": "minimize"}


def _check_function(found: Findings, call: str) -> None:
    if found.file.tasks:
        found.problems.append("tasks: a function scores by itself; remove 'tasks', or use backend: {type: local}")
    with found.catch(), importable(found.root):
        user_function(call, found.root)


def _space(found: Findings, layers: Mapping[str, int] | None) -> MergeSpace | None:
    file = found.file
    granularity = file.merge.space.grouping
    if found.expert_layers and granularity == "layers":
        granularity = {"starts": [0, *found.expert_layers[1:]]}
    if granularity != "global" and layers == {}:
        found.problems.append(
            f"merge.space.granularity is {granularity!r}; it needs a base model whose layers can be counted"
        )
        return None
    if isinstance(granularity, Mapping) and granularity.get("boundaries") == "importance":
        if found.problems:
            return None
        with found.catch("merge.space.granularity: "):
            granularity = starts_by_importance(found, granularity)
            found.notes.append(f"blocks by importance begin at layers {', '.join(map(str, granularity['starts']))}")
        if found.problems:
            return None
    with found.catch("merge."):
        space = MergeSpace(
            file.merge.models,
            method=file.merge.method,
            base_model=file.merge.base_model,
            parameters=uncentred(file.merge.space.parameters),
            granularity=granularity,
            split=file.merge.space.split,
            layers=layers or 0,
            seed=file.seed,
            simplex=file.merge.space.simplex,
        )
        anchors(space)  # what no recipe can be made of is said here, not by the run
        found.problems.extend(f"merge.{problem}" for problem in space.unlike())
        return space
    return None


def _objectives(found: Findings, directions: Mapping[str, str] | None) -> list[Objective]:
    """The objectives; ``directions`` holds the known ones and their directions (None: any name will do)."""
    made: list[Objective] = []
    for entry in found.file.objectives:
        section = entry if isinstance(entry, ObjectiveSection) else ObjectiveSection(name=entry)
        if directions is not None and section.name not in directions:
            found.problems.append(
                f"objectives: {section.name!r} names no task {did_you_mean(section.name, directions)}"
            )
        elif any(known.name == section.name for known in made):
            found.problems.append(f"objectives: {section.name!r} is named twice")
        else:
            natural = (directions or {}).get(section.name, "minimize" if section.name in COMPUTED else "maximize")
            with found.catch():
                made.append(Objective(section.name, section.direction or natural, section.range))  # type: ignore[arg-type]
    return made


def _constraints(found: Findings, directions: Mapping[str, str] | None) -> tuple[Constraint, ...]:
    """The constraints; ``directions`` holds the numbers that are reported beside costs (None: any name will do)."""
    made: tuple[Constraint, ...] = ()
    given = [one if isinstance(one, str) else one.model_dump(exclude_none=True) for one in found.file.constraints]
    with found.catch():
        made = constraints_from(given)
    known = {*(directions or {}), *COSTS}
    found.problems.extend(
        f"constraints: {constraint.name!r} is no number that is reported {did_you_mean(constraint.name, known)}"
        for constraint in made
        if directions is not None and constraint.name not in known
    )
    return made


def _warm_start(found: Findings) -> tuple[dict[str, str], ...]:
    made: tuple[dict[str, str], ...] = ()
    with found.catch():
        made = entries(found.file.warm_start)
    return tuple(
        {**entry, "storage": _absolute_storage(found, entry["storage"])} if "storage" in entry else entry
        for entry in made
    )


def _absolute_storage(found: Findings, given: str) -> str:
    """The storage URL with a relative SQLite path made absolute from the file's folder."""
    with found.catch():
        return normalised_url(given, found.root)
    return given


def _stored(found: Findings, storage: str) -> tuple[Database | None, StudyRecord | None]:
    """The database if there is one, and the study of this name in it."""
    path = sqlite_path(storage)
    try:
        if path is not None and not path.exists():
            if not path.parent.is_dir():
                found.problems.append(f"storage: the folder {path.parent} does not exist; create it first")
            return None, None
    except OSError as error:  # the name is too long
        found.problems.append(f"storage: {str(path)[:200]}: {error.strerror}")
        return None, None
    # An empty database on a server is sound: its tables are made with the study.
    with found.catch(), suppress(NoStudiesError):
        database = Database(storage, create=False)
        return database, find(database, found.file.study)
    return None, None
