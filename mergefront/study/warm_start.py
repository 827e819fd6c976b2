"""Beginning a study with what is known already: recipes from files, and earlier studies of the same models.

A recipe from a file is evaluated right after the anchors. Of an earlier study whose scores mean the same (same
models, same evaluator, everything asked for was reported) all evaluations are taken over: those in the new space are
told to the sampler, normalised by the new study's anchors like all else, and nothing is evaluated a second time. Of
an earlier study that was scored otherwise only the recipes of its front are evaluated anew, after the anchors.
Experts come and go: one that is new has weight 0 in earlier recipes, which leaves them the merges that they were; of
one that is gone the weight is left out, which makes another merge of a recipe unless it was 0.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import create_trial

from mergefront.adapters.remote.identity import are_same
from mergefront.optimizer.errors import EvaluationError, UserError, did_you_mean
from mergefront.optimizer.foreign_text import file_content
from mergefront.optimizer.recipes.grouping import CoefficientName
from mergefront.optimizer.recipes.methods import METHODS, ParameterValue
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.constraints import checked_violations
from mergefront.optimizer.scores.evaluation import Evaluation, checked_scores
from mergefront.optimizer.search.attributes import RECIPE, WARM_START, WARM_START_RECIPES
from mergefront.optimizer.search.loop import told_attributes
from mergefront.optimizer.search.warm_start_recipes import params_in
from mergefront.study.content import is_unchanged
from mergefront.study.definition import EvaluatorDefinition, StudyDefinition
from mergefront.study.stored_study import SPLITS, Study, load_study

MOST_SEEDS = 5
"""So many recipes of an earlier study that was scored otherwise are evaluated."""


@dataclass(frozen=True)
class WarmStart:
    """What a study begins with: ``seeds`` to evaluate after the anchors, ``known`` evaluations by their origin."""

    seeds: tuple[tuple[str, Recipe], ...] = ()
    known: tuple[tuple[str, Recipe, Evaluation], ...] = ()
    notes: tuple[str, ...] = ()


def entries(given: Sequence[object]) -> tuple[dict[str, str], ...]:
    """What a user wrote, as mappings: ``{"recipe": path}``, or ``{"study": name}`` with perhaps ``"storage"``.

    Raises ``UserError`` for anything else.
    """
    made = []
    for entry in given:
        if isinstance(entry, str | Path):
            made.append({"recipe": str(entry)})
        elif (
            isinstance(entry, Mapping)
            and set(entry) in ({"study"}, {"study", "storage"}, {"recipe"})
            and all(isinstance(value, str) for value in entry.values())
        ):
            made.append(dict(entry))
        else:
            raise UserError(f"warm_start: {entry!r} must be a recipe's path, or {{study: NAME, storage: URL}}")
    return tuple(made)


def read_warm_start(definition: StudyDefinition) -> WarmStart:
    """Everything that a definition's ``warm_start`` names; raises ``UserError`` when it does not fit the study."""
    seeds: list[tuple[str, Recipe]] = []
    known: list[tuple[str, Recipe, Evaluation]] = []
    notes: list[str] = []
    for entry in definition.warm_start:
        if "recipe" in entry:
            seeds.append((entry["recipe"], read_recipe(definition.space, definition.root / entry["recipe"])))
        else:
            found = _from_study(definition, entry["study"], entry.get("storage", definition.storage))
            seeds += found.seeds
            known += found.known
            notes += found.notes
    return WarmStart(tuple(seeds), tuple(known), tuple(notes))


def begin(study: Study, definition: StudyDefinition) -> None:
    """Take a warm start over into a new study; does nothing when that was done before.

    Interrupted, it goes on where it was: what was taken over is known by its recipe.
    """
    if not definition.warm_start or WARM_START_RECIPES in study.optuna.user_attrs:
        return
    found = read_warm_start(definition)
    told = {trial.user_attrs.get(RECIPE) for trial in study.trials()}
    for origin, recipe, evaluation in found.known:
        if study.ledger.find(recipe) is None:
            study.ledger.record(recipe, evaluation, "search")
        params = params_in(study.space, recipe)
        if params is not None and recipe.digest not in told:
            _tell(study, origin, recipe, evaluation, params)
            told.add(recipe.digest)
    seeds = [{"name": name, "recipe": recipe.to_json()} for name, recipe in found.seeds]
    study.optuna.set_user_attr(WARM_START_RECIPES, seeds)


def read_recipe(space: MergeSpace, path: Path) -> Recipe:
    """A file that an export wrote, mergekit's YAML or recipe.json, as a recipe over the space's models; raises
    ``UserError`` where they differ."""
    try:
        text = file_content(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"warm_start: {path} cannot be read: {error}") from None
    try:
        if path.suffix == ".json":
            recipe = Recipe.from_json(json.loads(text))
        else:
            recipe = Recipe.from_mergekit(text, {reference: name for name, reference in space.models.items()})
    except (UserError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"warm_start: {path}: {error}") from None
    return over(space, recipe, str(path))


_WITHOUT_WEIGHT_0 = ("linear", "lora_cat", "lora_factor")
"""Methods beside the task-vector family whose merge does not depend on an expert of weight 0."""


def over(space: MergeSpace, recipe: Recipe, origin: str) -> Recipe:
    """The recipe over the space's experts: a new one has weight 0, one that is gone is left out.

    Raises ``UserError`` where no expert is in both, and where experts differ and the method says something else than
    weights, or depends on how many experts there are.
    """
    new = [name for name in space.models if name not in recipe.models]
    shared = [name for name in space.models if name in recipe.models]
    if not shared:
        raise UserError(
            f"warm_start: {origin} merges {', '.join(recipe.models)}, but this study {', '.join(space.models)}; "
            "name the models alike"
        )
    if new or len(shared) < len(recipe.models):
        method = METHODS[recipe.method]
        if method.consensus is None and method.name not in _WITHOUT_WEIGHT_0:
            raise UserError(
                f"warm_start: {origin} merges {', '.join(recipe.models)}, this study {', '.join(space.models)}, and a "
                f"merge by {method.name} is another one with an expert more or less, whatever its weight; leave it out"
            )
        if method.refuses(len(space.models)) is not None:
            raise UserError(f"warm_start: {origin}: {method.refuses(len(space.models))}")
    params: dict[str, ParameterValue] = {}
    for name, value in recipe.params.items():
        parsed = CoefficientName.parse(name, recipe.models, recipe.grouping.split)
        if parsed.expert is None or parsed.expert in shared:
            params[name] = value
        if parsed.expert == shared[0]:
            params |= {
                str(replace(parsed, expert=other)): 0.0 if parsed.parameter == "weight" else value for other in new
            }
    return space.make(recipe.method, params, recipe.grouping)


def _leaves_out(space: MergeSpace, recipe: Recipe) -> bool:
    """Whether an expert that is gone had a part in the merge."""
    parsed = {CoefficientName.parse(name, recipe.models, recipe.grouping.split): v for name, v in recipe.params.items()}
    return any(
        one.parameter == "weight" and one.expert is not None and one.expert not in space.models and value != 0
        for one, value in parsed.items()
    )


def _from_study(definition: StudyDefinition, name: str, storage: str) -> WarmStart:
    earlier = load_study(name, storage=storage)
    origin, space = f"study {name!r}", definition.space
    notes = _check_same_models(definition, earlier, origin)
    candidates = earlier.candidates()
    known, told = [], set()
    if _scored_alike(definition, earlier.definition) and not (notes and definition.tokenizer_source == "union"):
        for candidate in candidates:
            if _leaves_out(space, candidate.recipe):
                continue
            told.add(candidate.number)
            full = earlier.ledger.find(candidate.recipe)
            if full is not None and _reports_all(definition, full):
                known.append((f"{name}/{candidate.number}", over(space, candidate.recipe, origin), full))
        if len(told) == len(candidates):
            return WarmStart(known=tuple(known), notes=tuple(notes))
    front = [candidate for candidate in earlier.front() if candidate.anchor is None and candidate.number not in told]
    best = sorted(front, key=lambda candidate: -sum(earlier.normalised([candidate])[0]))[:MOST_SEEDS]
    seeds = [(f"{name}/{c.number}", over(space, c.recipe, origin)) for c in best]
    return WarmStart(tuple(seeds), tuple(known), tuple(notes))


def take_over(study: Study, earlier: Study) -> None:
    """Keep the evaluations of an earlier study of the same models and scoring as what is known of their recipes.

    Between a study and its comparison: they become no trials, so that they cost no budget and normalise nothing; a
    trial whose recipe is among them is told without an evaluation. Anchors are known by their names, since the two
    spaces write them by different methods. Nothing is taken over of or into a raced study, nor where anything that
    scores depend on differs.
    """
    definition, theirs = study.definition, earlier.definition
    wanted = study.plan.requested
    is_pair = definition.compares != theirs.compares and not (study.racing or earlier.racing)
    ours, others = ((one.space.models, one.space.base_model) for one in (definition, theirs))
    if not is_pair or ours != others or not _scored_alike(definition, theirs, wanted):
        return
    named = {anchor.name: anchor.recipe for anchor in study.plan.anchors}
    for split in SPLITS:
        known = study.ledger.evaluations(split)
        for candidate in earlier.candidates():
            recipe = named.get(candidate.anchor or "", candidate.recipe)
            found = earlier.ledger.find(candidate.recipe, split) if recipe.digest not in known else None
            if found is not None and _reports_all(definition, found) and set(wanted) <= set(found.scores):
                study.ledger.record(recipe, found, split)
                known[recipe.digest] = found


def _scored_alike(definition: StudyDefinition, theirs: StudyDefinition, wanted: Collection[str] = ()) -> bool:
    """Whether equal recipes have equal scores in both: the objectives, what constraints bound, and ``wanted``."""
    names = {*wanted, *(one.name for one in definition.objectives), *(one.name for one in definition.constraints)}
    same_scoring = _scoring(names, definition.evaluator) == _scoring(names, theirs.evaluator)
    # Two outside harnesses may score under the same names and otherwise differ.
    same_scoring = same_scoring and theirs.evaluator.type != "external"
    same_merges = all(
        getattr(definition, key) == getattr(theirs, key) for key in ("scoring", "tokenizer_source", "modalities")
    )
    return same_merges and same_scoring and are_same(definition.served, theirs.served)


def _check_same_models(definition: StudyDefinition, earlier: Study, origin: str) -> list[str]:
    """What experts are new and gone, a line each. Raises ``UserError`` where none is in both, and for one that was
    another checkpoint."""
    space, other = definition.space, earlier.space
    if not set(space.models) & set(other.models):
        unknown = next(iter(other.models))
        raise UserError(
            f"warm_start: {origin} has the models {', '.join(other.models)}, this one {', '.join(space.models)}: "
            f"none is in both {did_you_mean(unknown, space.models)}"
        )
    new, old = definition.evaluator.content, earlier.definition.evaluator.content
    for name, reference in space.models.items():
        theirs = old.get(other.models.get(name, ""))
        if theirs in (None, new.get(reference, theirs)):
            continue
        if not is_unchanged(reference, definition.root, theirs):
            raise UserError(
                f"warm_start: {origin} merged another checkpoint as {name!r} (its content differs); "
                "leave that study out, or use the same checkpoint"
            )
    added = [name for name in space.models if name not in other.models]
    gone = [name for name in other.models if name not in space.models]
    return [
        *([f"warm start: {origin} has no expert {', '.join(added)}: weight 0 in its recipes"] if added else []),
        *([f"warm start: {', '.join(gone)} of {origin} is no expert here and is left out"] if gone else []),
    ]


def _scoring(wanted: Collection[str], evaluator: EvaluatorDefinition) -> dict[str, Any]:
    """The part of an evaluator's description on which the numbers asked for depend."""
    tasks = {name: task for name, task in evaluator.tasks.items() if name in wanted}
    files = {task[key] for task in tasks.values() for key in ("path", "report") if key in task}
    content = {path: digest for path, digest in evaluator.content.items() if path in files}
    return replace(evaluator, tasks=tasks, content=content).to_json()


def _reports_all(definition: StudyDefinition, evaluation: Evaluation) -> bool:
    try:
        checked_scores(evaluation, [objective.name for objective in definition.objectives])
        checked_violations(evaluation, definition.constraints)
    except EvaluationError:
        return False
    return True


def _tell(
    study: Study, origin: str, recipe: Recipe, evaluation: Evaluation, params: Mapping[str, ParameterValue]
) -> None:
    attributes, _ = told_attributes(study.objectives, study.constraints, evaluation)
    study.optuna.add_trial(
        create_trial(
            params=dict(params),
            distributions=study.space.distributions(),
            values=[evaluation.scores[objective.name] for objective in study.objectives],
            user_attrs={WARM_START: origin, RECIPE: recipe.digest, **attributes.user},
            system_attrs=dict(attributes.system),
        )
    )
