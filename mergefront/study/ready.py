"""A study file or a stored study as a study that is ready to be searched: stored, with its evaluator made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.anchors import anchors
from mergefront.optimizer.scores.evaluation import Evaluator
from mergefront.optimizer.search.attributes import write_search_space
from mergefront.storage.database import Database
from mergefront.storage.studies import COMPARISON, create_or_load, find, update
from mergefront.study.check import CheckReport
from mergefront.study.continuation import check_continues, stored_root
from mergefront.study.definition import StudyDefinition
from mergefront.study.evaluators import make_evaluator, refuse_external
from mergefront.study.preflight.budget import checked_budget
from mergefront.study.rules import DEFAULT_EVALUATIONS, changes_since
from mergefront.study.starting_points import with_start_points
from mergefront.study.stored_study import Study, continued
from mergefront.study.warm_start import begin as begin_warm
from mergefront.study.warm_start import take_over
from mergefront.versions import versions


@dataclass(frozen=True)
class ReadyStudy:
    """A study that is stored, and its evaluator (None where workers elsewhere make their own).

    ``notes`` say what of the stored study differs from what the same file would begin today.
    """

    study: Study
    evaluator: Evaluator | None
    notes: tuple[str, ...] = ()


@contextmanager
def ready_to_run(report: CheckReport, *, with_evaluator: bool = True) -> Iterator[ReadyStudy]:
    """A checked study file as a search that is ready to start.

    Raises ``StudyFileError`` if it is not sound, ``UserError`` if nothing here can score its recipes.
    """
    definition = report.definition_or_raise()
    refuse_external(definition)

    @cache
    def open_database() -> Database:
        return report.database or Database(definition.storage)

    scored_by = definition if report.record is None else continued(definition, report.record)
    with make_evaluator(scored_by, open_database) if with_evaluator else nullcontext() as evaluator:
        ready = begin(definition, open_database(), evaluator)
        yield replace(ready, notes=(*report.warnings, *ready.notes))


def store(report: CheckReport) -> ReadyStudy:
    """A checked study file as a stored study, nothing evaluated. Raises ``StudyFileError`` if it is not sound."""
    definition = report.definition_or_raise()
    database = report.database or Database(definition.storage)
    with database.checkpoint_at_end():
        ready = begin(definition, database, None)
    return replace(ready, notes=(*report.warnings, *ready.notes))


@contextmanager
def ready_to_resume(
    study: Study, *, evaluations: int | None = None, with_evaluator: bool = True
) -> Iterator[ReadyStudy | None]:
    """A stored study as a search that is ready to start; None when its budget is spent.

    Raises ``UserError`` if nothing here can score its recipes, and for a budget that does not fit here.
    """
    refuse_external(study.definition)
    notes = changes_since(study.name, study.record.definition, study.root)
    if evaluations is not None:
        checked_budget(study.definition, evaluations)
        if study.definition.compares:
            raise UserError(
                f"study {study.name!r} compares given merges, so it has no budget to raise; 'mergefront compare' with "
                "more methods or subsets adds to them"
            )
        update(study.database, study.record, evaluations=evaluations)
        study.refresh()
    if study.finished_count() >= study.record.evaluations:
        yield None
        return
    notes.extend(checked_budget(study.definition, study.record.evaluations))
    with make_evaluator(study.definition, lambda: study.database) if with_evaluator else nullcontext() as evaluator:
        yield ReadyStudy(study, evaluator, tuple(notes))


def begin(definition: StudyDefinition, database: Database, evaluator: Evaluator | None) -> ReadyStudy:
    """The stored study of this definition, made if there is none, with its budget and warm start."""
    root = stored_root(definition.root, definition.storage)
    anchors(definition.space)  # a space that can express no recipe is refused before anything is written
    if find(database, definition.name) is None:
        definition = with_start_points(definition, evaluator)
    record = create_or_load(
        database,
        definition.name,
        definition.to_json(),
        definition.objectives,
        root=root,
        evaluations=DEFAULT_EVALUATIONS if definition.evaluations is None else definition.evaluations,
        versions=versions(),
    )
    notes = [*check_continues(definition, record), *changes_since(definition.name, record.definition, definition.root)]
    changed: dict[str, Any] = {} if record.root == root else {"root": root}
    latest = {"stop": definition.stop.model_dump(), "allow": list(definition.allow)}
    if any(record.definition.get(key, []) != value for key, value in latest.items()):
        changed["definition"] = {**record.definition, **latest}
    record = update(database, record, **changed)
    study = Study(database, record, definition.root)
    write_search_space(study.optuna, study.space.distributions())
    begin_warm(study, definition)
    for name in (f"{study.name}{COMPARISON}", study.name.removesuffix(COMPARISON)):
        other = find(database, name)
        if other is not None and other.study_id != record.study_id:
            take_over(study, Study(database, other, definition.root))
    if definition.evaluations is not None and record.evaluations != definition.evaluations:
        study.record = update(database, record, evaluations=definition.evaluations)
    return ReadyStudy(study, evaluator, tuple(notes))
