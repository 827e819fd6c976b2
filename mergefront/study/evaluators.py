"""Evaluators from a study's definition, so that any process can make them again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mergefront.adapters.checkpoints.configurations import EVERYTHING
from mergefront.adapters.checkpoints.dtypes import one_dtype
from mergefront.adapters.checkpoints.header import read_header
from mergefront.adapters.checkpoints.stacks import text_stacks
from mergefront.adapters.evaluator import Before, LenientEvaluator, TaskEvaluator, nothing
from mergefront.adapters.hub.places import ModelPlaces, Preview
from mergefront.adapters.local.backend import LocalBackend, planned_pool
from mergefront.adapters.local.mixture.sections import as_file
from mergefront.adapters.merging.output.plan import MergePlan, plan_recipe
from mergefront.adapters.merging.output.references import mergekit_references, model_paths, tokenizer_keys
from mergefront.adapters.merging.vocabulary import TokenizerChoice
from mergefront.adapters.remote.backend_types import connected_evaluator, read_settings
from mergefront.adapters.remote.judge import connected_judges
from mergefront.adapters.remote.settings import JudgeSection, ServerSection, VllmEngineSection, joined_settings
from mergefront.adapters.tasks.task import Task
from mergefront.adapters.tasks.task_types import build_task
from mergefront.adapters.tasks.user_code import importable, user_function
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.anchors import anchors
from mergefront.optimizer.recipes.methods import MERGE_EXPERTS
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.constraints import COSTS
from mergefront.optimizer.scores.evaluation import Evaluator, FunctionEvaluator
from mergefront.storage.database import Database
from mergefront.storage.responses import DatabaseResponses
from mergefront.study.content import is_unchanged
from mergefront.study.definition import StudyDefinition
from mergefront.study.rules import dtype_and_compute

if TYPE_CHECKING:
    from mergefront.adapters.local.mixture.backend import MixtureBackend
    from mergefront.adapters.merging.tensor_pool import TensorPool

_log = logging.getLogger(__name__)


@contextmanager
def make_evaluator(definition: StudyDefinition, open_database: Callable[[], Database]) -> Iterator[Evaluator]:
    """The evaluator of a study, until the block ends; the database keeps what servers answer.

    Raises ``UserError`` when it cannot be made, and when a file that scores depend on has changed.
    """
    with _evaluator(definition, open_database) as made:
        yield LenientEvaluator(made) if definition.compares else made


@contextmanager
def _evaluator(definition: StudyDefinition, open_database: Callable[[], Database]) -> Iterator[Evaluator]:
    described = definition.evaluator
    refuse_external(definition)
    if described.type == "python":
        raise UserError(
            f"this study is scored by the Python function {described.call}; continue it from Python by "
            "calling search(...) again with the same arguments"
        )
    if not definition.root.is_dir():
        raise UserError(
            f"study {definition.name!r}: its files were in {definition.root}, which is no folder here; "
            "name the folder of its study file with --root DIR"
        )
    if described.type == "function":
        with importable(definition.root):
            yield FunctionEvaluator(user_function(described.call, definition.root))
        return
    refuse_changed(definition)
    with _judged_tasks(definition, open_database) as (tasks, before):
        # What is bounded has to be counted as if every answer were written.
        writes_all = bool({constraint.name for constraint in definition.constraints} & set(COSTS))
        if described.backend.get("engine") == "vllm":
            with _vllm_backend(definition) as engine:
                yield TaskEvaluator(engine, tasks, None, before, writes_all=writes_all)
            return
        if described.type == "local":
            from mergefront.adapters.merging.offload.memory import peak_memory  # brings torch, which servers do without

            if is_mixture(definition):
                yield TaskEvaluator(mixture_backend(definition), tasks, None, before, writes_all=writes_all)
                return
            backend = local_backend(definition)
            watch = partial(peak_memory, backend.engine.device) if definition.compares else None
            yield TaskEvaluator(backend, tasks, watch, before, writes_all=writes_all)
            return
        settings = server_settings(definition)
        space, places, served = definition.space, definition.places, definition.served
        cache = DatabaseResponses(open_database())
        with connected_evaluator(settings, tasks, space, places, cache, served, before) as evaluator:
            yield evaluator


def server_settings(definition: StudyDefinition) -> ServerSection:
    """The section of a study's backend over HTTP, and how it is reached."""
    runtime = {key: value for key, value in definition.runtime.items() if key != "judges"}
    return read_settings(joined_settings(dict(definition.evaluator.backend), runtime))


@contextmanager
def _judged_tasks(
    definition: StudyDefinition, open_database: Callable[[], Database]
) -> Iterator[tuple[list[Task], Before]]:
    """The study's tasks, their judges connected while the block lasts, and what is done before a merge."""
    described, tasks = definition.evaluator, tasks_of(definition)
    if not described.judges:
        yield tasks, nothing
        return
    reached = definition.runtime.get("judges", {})
    judges = {
        name: JudgeSection.model_validate(joined_settings(dict(one), reached.get(name, {})))
        for name, one in described.judges.items()
    }
    decisive: dict[str, Any] = {"backend": described.backend, "content": described.content}
    decisive |= {key: definition.to_json().get(key) for key in ("space", "tokenizer_source", "scope")}
    source = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=dict).encode()).hexdigest()
    recipes = {anchor.name: anchor.recipe for anchor in anchors(definition.space)}
    cache, root, seed = DatabaseResponses(open_database()), definition.root, definition.seed
    with connected_judges(tasks, judges, recipes, root, cache, seed, source) as connected:
        yield connected


def tasks_of(definition: StudyDefinition) -> list[Task]:
    """The study's tasks, objectives or not; none where a function scores. Raises ``UserError`` for a file that is gone,
    and for a task that cannot be made."""
    described, places = definition.evaluator, definition.places
    models = {definition.space.base_model, *definition.space.models.values()}
    for path in described.content:
        if path not in models and places.commit(path) is None:
            refuse_gone(definition.root / path)
    return [build_task(name, task, places.root, described.seed, places) for name, task in described.tasks.items()]


def is_mixture(definition: StudyDefinition) -> bool:
    """Whether it searches how many experts one mixture keeps."""
    return definition.space.methods[0] is MERGE_EXPERTS


def merge_plan(
    definition: StudyDefinition, recipe: Recipe, allow: Collection[str], places: ModelPlaces | None = None
) -> MergePlan:
    """How a recipe of the study is written as a model: by the same models, in the same dtype as it is scored.

    Raises ``UserError`` where it cannot be; ``allow``: see ``compare_models``. ``places`` says where the models lie
    (default: the definition's).
    """
    base, backend = definition.space.base_model, definition.evaluator.backend
    folder = (places or definition.places).folder
    plan = plan_recipe(
        recipe,
        None if base is None else folder(base),
        {name: folder(reference) for name, reference in recipe.models.items()},
        compat=backend.get("compat") == "mergekit",
        allow=allow,
        tokenizer=TokenizerChoice.read(definition.tokenizer_source),
        modalities=definition.modalities,
    )
    dtype = backend.get("dtype", "auto")
    if dtype != "auto" and base is not None:
        dtype = one_dtype(plan.reference.header, [model.header for model in plan.parts[0].models.values()], dtype)
    return replace(plan, out_dtype=None if dtype == "auto" else dtype)


def mergekit_config(definition: StudyDefinition, recipe: Recipe, out_dtype: str | None) -> dict[str, Any]:
    """A recipe of the study as ``mergefront merge`` reads it, and mergekit where it has words for it.

    Paths hold anywhere on this machine. ``out_dtype``: see ``written_dtype``. Raises ``UserError`` for a LoRA without a
    base model.
    """
    references = mergekit_references(recipe, definition.space.base_model, definition.places)
    if recipe.method == MERGE_EXPERTS.name:
        prompts = (definition.root / definition.evaluator.backend["prompts"]).resolve()
        return as_file(recipe, references[""], str(prompts))
    scope, carry = definition.modalities.scope, definition.modalities.carry
    has_words = scope is None and _has_layer_ranges(definition, recipe)
    config = recipe.to_mergekit(references) if has_words else recipe.in_full(references)
    if scope is not None:
        config |= {"scope": scope, "carry": {tower: references.get(owner, owner) for tower, owner in carry.items()}}
    if definition.evaluator.backend.get("compat") is not None:
        config["compat"] = "mergekit"
    if definition.tokenizer_source is not None:
        config |= tokenizer_keys(definition.tokenizer_source, references)
    return config if out_dtype is None else {**config, "out_dtype": out_dtype}


def _has_layer_ranges(definition: StudyDefinition, recipe: Recipe) -> bool:
    """Whether blocks can be written as ranges of layers: not of an encoder and a decoder, where the models are read."""
    base = definition.space.base_model
    if base is None or definition.evaluator.type != "local" or not recipe.grouping.starts:
        return True
    folder = definition.places.folder(base)
    return not folder.is_dir() or len(text_stacks(read_header(folder))) == 1


def written_dtype(definition: StudyDefinition, recipe: Recipe) -> str | None:
    """The dtype of every tensor of the study's merges, one for all its recipes.

    None where tensors keep their own, where the merges are made elsewhere, and where the models are not here.
    """
    if definition.evaluator.type != "local" or is_mixture(definition):
        return None
    looked_at = Preview(definition.root, definition.places.commits)
    paths = model_paths(recipe, definition.space.base_model, looked_at).values()
    if not all(map(os.path.exists, paths)):
        return None
    return merge_plan(definition, recipe, (EVERYTHING,), looked_at).out_dtype


def missing_weights(definition: StudyDefinition, recipe: Recipe) -> list[str]:
    """The models of a recipe that are names alone here; names on the Hub are fetched if need be."""
    paths = model_paths(recipe, definition.space.base_model, definition.places)
    return [name or "base_model" for name, path in paths.items() if not os.path.exists(path)]


def refuse_external(definition: StudyDefinition) -> None:
    """Raises ``UserError`` for a study whose scores are told: nothing here can score its recipes."""
    if definition.evaluator.type == "external":
        name = shlex.quote(definition.name)
        raise UserError(
            f"study {definition.name!r} is scored by an outside harness (backend: external): 'mergefront ask {name}' "
            f"hands out a recipe, 'mergefront tell {name} TRIAL OBJECTIVE=NUMBER' takes its scores"
        )


def refuse_gone(here: Path) -> None:
    """Raises ``UserError`` for a file or folder of a study that is not there."""
    if not here.exists():
        raise UserError(
            f"{here}: it is gone, and the study needs it; put it back, or name the folder that holds it with --root"
        )


def refuse_changed(definition: StudyDefinition, *, models_only: bool = False) -> None:
    """Raises ``UserError`` when a checkpoint or data file is no longer what the study was begun with."""
    models = {definition.space.base_model, *definition.space.models.values()}
    for path, known in definition.evaluator.content.items():
        if definition.places.commit(path) is not None or (models_only and path not in models):
            continue  # a commit's content does not change
        here = definition.root / path
        refuse_gone(here)
        if not is_unchanged(path, definition.root, known):
            raise UserError(
                f"{here}: its content has changed since the study was begun, so new scores could not be "
                "compared with the old; put the old content back, or begin a study of another name"
            )


def local_backend(definition: StudyDefinition) -> LocalBackend:
    """The backend of a local study, by the rules that it was begun with; of another study whose models are here, with
    every default. Raises ``UserError``."""
    base, experts, settings = _local_settings(definition, definition.places)
    return LocalBackend.from_checkpoints(base, experts, **settings)


def live_backend(definition: StudyDefinition) -> LocalBackend | MixtureBackend:
    """The backend of a local study whatever it merges: several models, or the experts of one."""
    return mixture_backend(definition) if is_mixture(definition) else local_backend(definition)


def mixture_backend(definition: StudyDefinition) -> MixtureBackend:
    """The backend of a study of one mixture's experts. Raises ``UserError``."""
    from mergefront.adapters.local.mixture.backend import MixtureBackend  # brings torch

    assert definition.space.base_model is not None
    prompts = definition.root / definition.evaluator.backend["prompts"]
    base = definition.places.folder(definition.space.base_model)
    return MixtureBackend(base, prompts, device=definition.runtime.get("device", "auto"))


@contextmanager
def _vllm_backend(definition: StudyDefinition) -> Iterator[Any]:
    """The vLLM that computes a local study's merges, while the block lasts; one that is started here ends with it."""
    from mergefront.adapters.merging.checkpoint_merges import MergedModels
    from mergefront.adapters.merging.output.directory import write_merge
    from mergefront.adapters.remote.vllm.whole_merges import VllmMerges

    base, experts, told = _local_settings(definition, definition.places)
    merged = MergedModels(
        str(base.resolve()),
        {name: str(Path(folder).resolve()) for name, folder in experts.items()},
        told["dtype"],
        told["compat_mergekit"],
        told["task_vectors"],
        tuple(definition.allow),
        definition.tokenizer_source,
        definition.modalities.scope,
        dict(definition.modalities.carry) or None,
    )
    as_base, single, *_ = (anchor.recipe for anchor in anchors(definition.space))
    section = VllmEngineSection.model_validate(definition.runtime.get("vllm", {})).at(definition.root)
    with TemporaryDirectory() as folder:
        frame = base.resolve()
        if definition.tokenizer_source is not None or definition.modalities.scope is not None:
            # No model of the study has the tokens, or the towers, that merges have.
            frame = Path(folder)
            write_merge(merge_plan(definition, as_base, definition.allow), frame)
        own = bool(definition.method_files)
        with closing(VllmMerges(merged, frame, single, section, told["dtype"], merges_here=own)) as engine:
            _log.info("%s", engine.proof)
            yield engine


def local_pool(definition: StudyDefinition, places: ModelPlaces) -> tuple[TensorPool, dict[str, int]]:
    """The tensors of a local study before anything is loaded, and the bytes of its live model (see ``planned_pool``);
    ``places`` says where the models lie."""
    base, experts, settings = _local_settings(definition, places)
    return planned_pool(base, experts, **settings)


def _local_settings(
    definition: StudyDefinition, places: ModelPlaces
) -> tuple[Path, dict[str, str | PathLike[str]], dict[str, Any]]:
    """The base, the experts, and what a local backend is told about them."""
    space, settings, runtime = definition.space, definition.evaluator.backend, definition.runtime
    assert space.base_model is not None
    device = runtime.get("device", "auto")
    dtype, compute = dtype_and_compute(definition.scoring, settings.get("dtype", "auto"), device)
    verbs = {task.verb for task in tasks_of(definition)}
    told = {
        "device": device,
        "device_map": runtime.get("device_map"),
        "max_memory": runtime.get("max_memory"),
        "dtype": dtype,
        "compute": compute,
        "compat_mergekit": settings.get("compat") == "mergekit",
        "task_vectors": settings.get("task_vectors", "exact"),
        "allow": definition.allow,
        "tokenizer_source": definition.tokenizer_source,
        "scope": definition.modalities.scope,
        "carry": definition.modalities.carry,
        "for_text": not verbs or bool(verbs & {"generate", "loglikelihood"}),
        "headless": verbs == {"embed"},
    }
    return places.folder(space.base_model), {name: places.folder(path) for name, path in space.models.items()}, told
