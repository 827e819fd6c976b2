"""What optuna-dashboard shows of a study beyond Optuna: our plots, notes and recipes.

Everything is computed when somebody looks at it and never stored: viewing does not change a database, and a user's
own note replaces ours.
"""

from __future__ import annotations

import copy
import io
import json
import time
from collections import Counter
from collections.abc import Container, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages._cached_storage import _CachedStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from mergefront import formatting
from mergefront.optimizer.errors import MergefrontError
from mergefront.optimizer.foreign_text import one_line
from mergefront.optimizer.search.attributes import ANCHOR, FAILURE, RECIPE, REUSED
from mergefront.results.suggestion import export_command, suggestion_lines
from mergefront.results.verdict_text import best_line
from mergefront.storage.database import Database
from mergefront.storage.studies import all_studies, study_of_recipe
from mergefront.study.stored_study import Study

if TYPE_CHECKING:
    from mergefront.optimizer.recipes.recipe import Recipe
    from mergefront.study.stored_study import Candidate

_FRESH_SECONDS = 5.0
_MOST_NOTES = 100
"""The dashboard looks through all notes for every trial; every trial's recipe is a file as well."""
_RACED = (
    "This study is raced: a trial's values are those of the moment when it ended. Front and hypervolume, here and "
    "in the plots, are estimated from everything that was answered by now. So are the scores in the trials' notes."
)


@dataclass
class _Shown:
    """The explanations of one study, and when they were computed."""

    at: float
    finished: int
    attributes: dict[str, Any]


class ExplainedStorage(_CachedStorage):
    """Optuna's storage of a database with mergefront's explanations among the attributes. Not for searching."""

    def __init__(self, database: Database) -> None:
        super().__init__(database.optuna_storage)
        self.database = database
        self._shown: dict[int, _Shown] = {}
        self._trials: dict[int, list[FrozenTrial]] = {}
        self._with_recipes: dict[int, FrozenTrial] = {}
        self.looked_at: ContextVar[int | None] = ContextVar("study that is looked at", default=None)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Stored attributes, and ours of the study that is looked at where nothing is stored."""
        ours = self._explained(study_id) if study_id == self.looked_at.get() else {}
        return ours | super().get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        """Every study, by id; only the one that is looked at is explained, since that costs a while."""
        studies = sorted(super().get_all_studies(), key=lambda study: study._study_id)
        for study in studies:
            if study._study_id == self.looked_at.get():
                self.get_all_trials(study._study_id, deepcopy=False)
                study.system_attrs = self._explained(study._study_id) | study.system_attrs
        return studies

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._with_recipe(super().get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Always the same list where all are asked for: optuna-dashboard keeps what it got for ten seconds."""
        trials = map(self._with_recipe, super().get_all_trials(study_id, deepcopy, states))
        if deepcopy or states is not None:
            return list(trials)
        every = self._trials.setdefault(study_id, [])
        every[:] = trials
        return every

    def state(self, study_id: int) -> tuple[Any, ...]:
        """All that a study's page depends on: equal states, equal pages. Raises ``KeyError`` for an unknown study."""
        trials = super().get_all_trials(study_id, deepcopy=False)
        unfinished = [trial for trial in trials if not trial.state.is_finished()]
        name, user = self._backend.get_study_name_from_id(study_id), self.get_study_user_attrs(study_id)
        return (name, user, self.get_study_system_attrs(study_id), len(trials), unfinished)

    def recipe(self, trial_id: int) -> Recipe | None:
        """The recipe of a trial; None for an unknown trial and before it is finished."""
        try:
            digest = str(super().get_trial(trial_id).user_attrs.get(RECIPE))
        except KeyError:
            return None
        record = study_of_recipe(self.database, digest)
        return None if record is None else Study(self.database, record).ledger.recipes(digest)[digest]

    def _with_recipe(self, trial: FrozenTrial) -> FrozenTrial:
        """A finished trial with its recipe as a file."""
        if RECIPE not in trial.user_attrs or not trial.state.is_finished():
            return trial
        known = self._with_recipes.get(trial._trial_id)
        if known is None:
            known = self._with_recipes[trial._trial_id] = copy.copy(trial)
            identifier = f"{_PREFIX}-{trial._trial_id}"
            about = {
                "artifact_id": identifier,
                "filename": f"trial-{trial.number}.yaml",
                "mimetype": "text/plain",
                "encoding": None,
            }
            known._system_attrs = {f"artifacts:{identifier}": json.dumps(about), **trial.system_attrs}
        return known

    def _explained(self, study_id: int) -> dict[str, Any]:
        known = self._shown.get(study_id)
        now = time.monotonic()
        if known is not None and now - known.at < _FRESH_SECONDS:
            return known.attributes
        trials = super().get_all_trials(study_id, deepcopy=False)
        finished = sum(trial.state.is_finished() for trial in trials)
        if known is not None and known.finished == finished:
            known.at = now
            return known.attributes
        record = next((record for record in all_studies(self.database) if record.study_id == study_id), None)
        if record is None:  # another program's study in the same database
            return {}
        study = Study(self.database, record)
        attributes = explanations(study, trials, study.ledger.recipes())
        self._shown[study_id] = _Shown(now, finished, attributes)
        return attributes


class RecipeFiles:
    """Recipes as the files that the dashboard offers for download (an Optuna ``ArtifactStore``)."""

    def __init__(self, storage: ExplainedStorage) -> None:
        self.storage = storage

    def open_reader(self, artifact_id: str) -> BinaryIO:
        prefix, _, trial_id = artifact_id.partition("-")
        recipe = self.storage.recipe(int(trial_id)) if prefix == _PREFIX and trial_id.isdecimal() else None
        if recipe is None:
            raise ArtifactNotFound("there is no such recipe")
        return io.BytesIO(yaml_of(recipe).encode())

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Nothing is kept here."""
        raise ArtifactNotFound("this dashboard keeps no files")

    def remove(self, artifact_id: str) -> None:
        """Nothing is kept here."""


_PREFIX = "0ec1be"


_RECIPE_ALONE = "# The recipe alone: 'mergefront export' writes the study's tokenizer, scope and dtype as well.\n"


def yaml_of(recipe: Recipe) -> str:
    """A recipe as mergekit YAML, or what keeps it from being one."""
    import yaml

    try:
        return _RECIPE_ALONE + yaml.safe_dump(recipe.to_mergekit(), sort_keys=False, allow_unicode=True)
    except MergefrontError as error:
        return f"# {one_line(str(error))}\n" + yaml.safe_dump(recipe.to_json(), sort_keys=False, allow_unicode=True)


def explanations(study: Study, trials: list[FrozenTrial], recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    """Study attributes, in optuna-dashboard's format: plots, notes of the study, its front, anchors, latest trials."""
    attributes = dict(_note(None, _study_note(study)))
    estimated = {one.number: one for one in study.candidates()} if study.racing is not None else {}
    named = {one.number for one in (*study.front(), *study.anchors())} | {one.number for one in trials[-_MOST_NOTES:]}
    for trial in trials:
        if trial.number not in named:
            continue
        recipe = recipes.get(trial.user_attrs.get(RECIPE, ""))
        attributes |= _note(trial._trial_id, trial_note(trial, recipe, estimated.get(trial.number)))
    for name, figure in plots(study).items():
        attributes[f"dashboard:plot_data:{name}:0"] = figure.to_json()
    return attributes


def plots(study: Study) -> dict[str, Any]:
    """Plotly figures by name: the front with its anchors and the hypervolume over the trials, or the best so far."""
    try:
        from mergefront.results.plots.html import figures, hypervolume_figure
    except ImportError:
        return {}
    from mergefront.results.plots.picture import picture

    try:
        shown = picture(study)
    except MergefrontError:  # nothing has finished yet
        return {}
    name = "best" if study.has_one_objective else "front"
    drawn = {f"{name}-{index + 1}": figure for index, figure in enumerate(figures(shown))}
    for figure in drawn.values():
        figure.update_layout(title=f"The {name} of {study.name} with its anchors"[:120], height=None, width=None)
    if study.has_one_objective:
        return drawn
    hypervolume = hypervolume_figure(study).update_layout(title=f"Hypervolume of {study.name} over its trials"[:120])
    return {**drawn, "hypervolume": hypervolume}


def _study_note(study: Study) -> str:
    failures = Counter(failure.reason for failure in study.failures())
    facts = [f"**{study.finished_count()} of {study.record.evaluations} evaluations**"]
    members = study.front()
    if members and not study.has_one_objective:
        facts += [f"hypervolume {formatting.hypervolume(study.measured_hypervolume())}", f"{len(members)} on the front"]
    lines = [f"{', '.join(facts)}.", ""]
    if members and study.has_one_objective:
        lines.append(_plain(best_line(study)))
    else:
        for one in members:
            scores = ", ".join(f"{name} {formatting.number(float(value))}" for name, value in one.scores.items())
            lines.append(f"- {_plain(f'{formatting.trial(one.number, one.anchor)}: {scores}')}")
    if members:
        suggested = study.suggested()
        lines += [f"\n{_plain(line)}" for line in suggestion_lines(study, suggested, None)]
        lines += [] if suggested is None else ["", f"    {export_command(study, suggested)}"]
    if study.racing is not None and study.candidates():
        lines += ["", _RACED]
    if failures:
        lines += ["", f"**Failed: {sum(failures.values())}**", ""]
        lines += [f"- {count} x {_plain(reason)}" for reason, count in failures.most_common(20)]
    return "\n".join(lines)


def trial_note(trial: FrozenTrial, recipe: Recipe | None, estimated: Candidate | None = None) -> str:
    """A trial's note in Markdown: what it is, why it failed, its recipe, and a raced one's scores as known now."""
    lines = []
    anchor = trial.user_attrs.get(ANCHOR)
    if anchor:
        lines.append(f"Anchor: **{_plain(str(anchor))}**")
    if trial.user_attrs.get(REUSED):
        lines.append("The same recipe had been evaluated before; its scores were taken over.")
    if trial.state == TrialState.FAIL:
        lines.append(f"**Failed:** {_plain(str(trial.user_attrs.get(FAILURE, 'no reason is known')))}")
    if estimated is not None:
        scores = ", ".join(
            f"{_plain(name)} {formatting.score(float(value), estimated.standard_errors.get(name))}"
            for name, value in estimated.scores.items()
        )
        lines.append(f"Scores as estimated from all answers by now: {scores}")
    if recipe is not None:
        lines += ["Recipe (mergekit):", "", "```yaml", yaml_of(recipe).rstrip().replace("```", "'''"), "```"]
    return "\n\n".join(lines[:-5]) + ("\n\n" if lines[:-5] else "") + "\n".join(lines[-5:])


def _plain(text: str) -> str:
    """Text from outside, without power over the page: Markdown and HTML are shown as they are written."""
    shortened = text if len(text) <= 1000 else f"{text[:997]}..."
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]()<>#+-!|&~" else sign for sign in one_line(shortened))


def _note(trial_id: int | None, body: str) -> dict[str, Any]:
    if not body:
        return {}
    where = "dashboard:" if trial_id is None else f"dashboard:{trial_id}:"
    return {f"{where}note_ver": 1, f"{where}note_str:0": body}
