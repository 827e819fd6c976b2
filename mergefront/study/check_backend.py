"""Preflight of a backend and its tasks (headers, tokenizers, data, servers), and what a definition keeps of them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mergefront.adapters.checkpoints.compatibility import compare_models, unknown_keys
from mergefront.adapters.checkpoints.dtypes import main_dtype
from mergefront.adapters.checkpoints.header import Checkpoint, CheckpointHeader, read_header, read_json
from mergefront.adapters.checkpoints.lora import read_lora
from mergefront.adapters.checkpoints.quantised import refuse_quantised
from mergefront.adapters.checkpoints.stacks import depths
from mergefront.adapters.hub.names import hub_name
from mergefront.adapters.hub.places import ModelPlaces, Preview
from mergefront.adapters.hub.snapshots import room_in_cache
from mergefront.adapters.local.loading import loading_findings, refuse_likelihoods_of
from mergefront.adapters.local.reading.findings import described, labels_of, pooling_findings
from mergefront.adapters.merging.modalities import Composition, Modalities, compose
from mergefront.adapters.merging.output.metadata import describe
from mergefront.adapters.merging.vocabulary import Alignment, TokenizerChoice, align
from mergefront.adapters.remote.backend_types import models_read_here, try_backend
from mergefront.adapters.remote.judge import judge_options, judge_problems, try_judge
from mergefront.adapters.remote.settings import BackendSection, split_settings
from mergefront.adapters.tasks.encoders.classify import ClassifyTask
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.jsonl import JsonlTask
from mergefront.adapters.tasks.prompt_findings import Reader, assembled, chat_refusals, traps
from mergefront.adapters.tasks.questions import Question
from mergefront.adapters.tasks.task import Task
from mergefront.adapters.tasks.task_types import (
    build_task,
    hub_references,
    idle_options_of,
    read_task,
    resolved_task,
)
from mergefront.formatting import size
from mergefront.optimizer.errors import StudyFileError, UserError, did_you_mean
from mergefront.optimizer.racing.race import FEWEST_TO_RACE
from mergefront.optimizer.recipes.grouping import Grouping, blocks_by_importance, split_at_layer
from mergefront.optimizer.recipes.mergekit_format import OF_MERGEKIT
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.recipes.stacks import texts_of
from mergefront.storage.database import Database
from mergefront.storage.responses import DatabaseResponses
from mergefront.study.content import data_paths, fingerprints
from mergefront.study.definition import EvaluatorDefinition
from mergefront.study.study_file import (
    ExternalBackendSection,
    FunctionBackendSection,
    LocalBackendSection,
    StudyFile,
)


@dataclass
class Findings:
    """A study file under preflight, the folder that it lies in, its models as far as they are looked at, and what was
    found."""

    file: StudyFile
    root: Path
    models: Preview
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What a run says as well."""
    modalities: Modalities = field(default_factory=Modalities)
    frame: Path | None = None
    """The model whose class and configuration the merges have, where that is not the base."""
    reader: Reader = field(default_factory=Reader)
    """How the backend reads the prompts of tasks."""

    @contextmanager
    def catch(self, where: str = "", hint: str = "") -> Iterator[None]:
        """A ``UserError`` becomes a problem, with ``where`` before what it says and ``hint`` behind it."""
        try:
            yield
        except StudyFileError as error:
            self.problems.extend(f"{where}{problem}{hint}" for problem in error.problems)
        except UserError as error:
            self.problems.append(f"{where}{error}{hint}")

    def hint_at(self, path: str) -> str:
        """What paths are relative to, where there is nothing at this one."""
        # pathlib raises where a name is too long to exist
        if os.path.exists(self.root / path) or path.startswith("hf:") or hub_name(path, self.root) is not None:
            return ""
        readme = self.root / "README.md"
        return " (paths are relative to the study file" + (f"; see {readme})" if readme.exists() else ")")


def check_checkpoints(found: Findings) -> dict[str, int] | None:
    """Compare base and experts by their headers; returns the layers of every stack, None where the base cannot be
    read."""
    file, problems = found.file, found.problems
    models = file.merge.models
    if not isinstance(models, Mapping):
        problems.append("merge.models: a local backend needs a path for each expert; write {name: path, ...}")
        models = {}
    if file.merge.base_model is None:
        problems.append("merge.base_model: this key is missing; a local backend needs the base model's folder")
        return None
    base, opened = None, dict[str, Checkpoint]()
    with found.catch("merge.base_model: ", found.hint_at(file.merge.base_model)):
        opened = {"": Checkpoint(found.models.folder(file.merge.base_model))}
        base = opened[""].header
        problems.extend(f"merge.base_model: {problem}" for problem in refuse_quantised(base, "the base model"))
    for name, path in models.items():
        with found.catch(f"merge.models.{name}: ", found.hint_at(path)):
            opened[name] = Checkpoint(found.models.folder(path))
    if base is None:
        return None
    composition = Composition(opened, base.path)
    if not problems:
        with found.catch("merge."):
            found.modalities = Modalities.read(file.merge.scope, file.merge.carry)
            composition = compose(opened, "", found.modalities)
            found.frame = composition.frame
        if problems:
            return depths(base)  # whatever else differs may be outside the scope
    opened = dict(composition.models)
    base = opened[""].header
    aligned: Mapping[str, Checkpoint] = opened
    alignment = None
    if not problems:
        with suppress(UserError):  # so that what differs beside the tokens is said as well
            aligned = align(opened, "", TokenizerChoice("base")).models
        with found.catch("merge: "):
            alignment = align(opened, "", TokenizerChoice.read(file.merge.tokenizer_source))
            aligned = alignment.models
    for name in (name for name in models if name in opened):
        expert = aligned[name].header
        with found.catch(f"merge.models.{name}: "):
            compared = compare_models(aligned[""].header, expert, name, file.merge.allow)
            found.warnings.extend(compared.notes)
            differences = [*compared.problems, *_no_factors(file, expert, aligned[""].header)]
            problems.extend(f"merge.models.{name}: {problem}" for problem in differences)
    if not problems and alignment is not None:
        _check_loading(found, base, composition, alignment)
    unknown = unknown_keys(file.merge.allow, [model.header for model in opened.values()])
    problems.extend(f"merge.{problem}" for problem in unknown)
    problems.extend(_repeated({name: model.path for name, model in opened.items() if name}))
    problems.extend(_idle_kinds(file.merge.space.split, base))
    found.notes.append(f"base model: {len(base.tensors)} tensors, {size(base.bytes)}; {len(models)} experts")
    _say_downloads(found)
    stacks = depths(base)
    if len(stacks) > 1:
        found.notes.append(f"stacks: {', '.join(f'{name} of {layers} layers' for name, layers in stacks.items())}")
    if base.carried is None:
        return stacks
    carried = [f"{tower} of {name}" for tower, name in found.modalities.carry.items()]
    found.notes.append(
        f"scope language: {len(base.tensors) - len(base.carried)} tensors are merged, {len(base.carried)} are kept as "
        f"they are ({', '.join(carried) or 'all of the base'}); merges are models like {composition.frame}"
    )
    return {name: stacks[name] for name in texts_of(stacks)}


def _say_downloads(found: Findings) -> None:
    """What a run will fetch from the Hub, and whether the disk has room for it."""
    sizes = found.models.to_fetch
    if not sizes:
        return
    cache, room = room_in_cache()
    total = sum(sizes.values())
    named = ", ".join(f"{name} ({size(count)})" for name, count in sizes.items())
    found.warnings.append(f"a run fetches {size(total)} from the Hub into {cache}: {named}")
    if room < total:
        found.problems.append(
            f"merge: the models take {total / 1e9:,.1f} GB more in {cache}, where {room / 1e9:,.1f} GB are free; make "
            "room, or set HF_HOME to a folder on another disk"
        )


def _check_loading(found: Findings, base: CheckpointHeader, composition: Composition, alignment: Alignment) -> None:
    """Whether transformers can make a live model of the base's tensors, or of those of several models."""
    where, stored, described = "merge.base_model: ", base, None
    if composition.is_scoped:
        where, stored = "merge.carry: ", alignment.models[""].header
        with found.catch("merge."):
            folders = [model.path for model in composition.models.values()]
            described = describe(composition, alignment, stored.config, folders)
        if described is None:
            return
    with found.catch(where):
        kinds = {str(task.get("type")) for task in found.file.tasks.values()}
        for_text, headless = not kinds <= _LIVE_TYPES, kinds == {"embed"}
        loading = loading_findings(stored, alignment, described, for_text, headless)
        found.problems.extend(f"{where}{problem}" for problem in loading.problems)
        found.warnings.extend(loading.unread)
        found.reader = loading.reader


def _repeated(models: Mapping[str, Path]) -> Iterator[str]:
    """Experts that are one checkpoint under two names."""
    known: dict[str, str] = {}
    for name, path in models.items():
        other = known.setdefault(os.path.realpath(path), name)
        if other != name:
            yield f"merge.models.{name}: this is the same checkpoint as {other}; name it once"


def _idle_kinds(split: Sequence[str], base: CheckpointHeader) -> Iterator[str]:
    """Kinds of module that no tensor follows, so that their coefficients would change nothing."""
    grouping = Grouping(split=tuple(dict.fromkeys(split)))
    merged = [name for name in base.tensors if name not in (base.carried or ())]
    reached = {grouping.module_of(name) for name in merged}
    inside = {parts[2].split(".")[1]: None for name in merged if (parts := split_at_layer(name)) is not None}
    for kind in grouping.split:
        if kind not in reached:
            yield (
                f"merge.space.split: {kind!r} is in no tensor's name, or only where another kind comes first; the "
                f"modules of a layer are called {', '.join(inside)}"
            )


def evaluator_definition(found: Findings, space: MergeSpace) -> tuple[EvaluatorDefinition, dict[str, Any]]:
    """How a sound file's recipes are scored (backend, tasks, content of their files), and what of it may differ
    between runs."""
    file, root = found.file, found.root
    if isinstance(file.backend, FunctionBackendSection):
        return EvaluatorDefinition("function", call=file.backend.call), {}
    if isinstance(file.backend, ExternalBackendSection):
        return EvaluatorDefinition("external"), {}
    backend: dict[str, Any]
    runtime: dict[str, Any]
    kind: Literal["local", "server"]
    if isinstance(file.backend, BackendSection):
        kind, checkpoints = "server", models_read_here(file.backend, space)
        settings, runtime = split_settings(file.backend)
        backend = dict(settings)
    else:
        models = file.merge.models if isinstance(file.merge.models, Mapping) else {}
        kind, checkpoints = "local", [str(file.merge.base_model), *models.values()]
        backend, runtime = file.backend.model_dump(exclude={"type", "device"}), {"device": file.backend.device}
        if file.backend.dtype == "auto":
            backend["dtype"] = main_dtype(read_header(found.models.folder(str(file.merge.base_model))))
    tasks = {name: resolved_task(config) for name, config in file.tasks.items()}
    data = [reference for config in file.tasks.values() for reference in hub_references(config)]
    of_hub = {path: commit for path in [*checkpoints, *data] if (commit := found.models.commit(path)) is not None}
    local = [path for path in checkpoints if path not in of_hub]
    content = {**fingerprints([*local, *data_paths(file.tasks, root)], root), **of_hub}
    parts = {name: split_settings(section) for name, section in file.judges.items()}
    judges = {name: settings for name, (settings, _) in parts.items()}
    if judges:
        runtime["judges"] = {name: reached for name, (_, reached) in parts.items()}
    return EvaluatorDefinition(kind, "", backend, tasks, content, file.seed, judges), runtime


def check_external(found: Findings) -> dict[str, int] | None:
    """What cannot be had of an outside harness, and what it may not be able to read; returns the layers of every stack
    of a base that is here."""
    file, problems = found.file, found.problems
    tells = "an outside harness scores, and tells it ('mergefront tell')"
    if file.tasks:
        problems.append(f"tasks: {tells}; remove 'tasks' and name objectives with their directions")
    if file.racing:
        problems.append(f"racing: {tells}, on the items that it chooses; remove 'racing'")
    if file.stop.model_fields_set:
        problems.append("stop: 'mergefront ask' ends with the budget (search.evaluations), by no rule; remove 'stop'")
    base, models = file.merge.base_model, file.merge.models
    named = {} if base is None else {"base_model": base}
    named |= {f"models.{name}": path for name, path in models.items()} if isinstance(models, Mapping) else {}
    here = {key: path for key, path in named.items() if os.path.exists(found.root / path)}
    for key, path in here.items():
        is_lora = os.path.exists(found.root / path / "adapter_config.json")
        if is_lora and base is None:
            problems.append(f"merge.{key}: this is a LoRA; name the model that it belongs to as base_model")
        elif is_lora and key == "base_model":
            problems.append("merge.base_model: this is a LoRA; name the model that it belongs to")
        if set("+@") & set(str((found.root / path).resolve())):
            found.notes.append(f"merge.{key}: mergekit takes a + in a path for a LoRA, and an @ for a revision")
    choice, donors = TokenizerChoice(), ("base", "union", *models)
    with found.catch("merge."):
        choice = TokenizerChoice.read(file.merge.tokenizer_source)
    if choice.model is not None and choice.model not in donors:
        hint = did_you_mean(choice.model, donors)
        problems.append(f"merge.tokenizer_source: {choice.model!r} is none of the models {hint}")
    elsewhere = [path for key, path in named.items() if key not in here]
    if elsewhere:
        found.notes.append(f"not in this folder, so 'mergefront ask' prints them as they are: {', '.join(elsewhere)}")
    methods = [file.merge.method] if isinstance(file.merge.method, str) else file.merge.method
    unknown = [name for name in methods if name in METHODS and name not in OF_MERGEKIT]
    unknown += ["transplants"] if choice.transplant is not None else []
    if unknown:
        found.notes.append(f"mergekit has no {', '.join(unknown)}; 'mergefront merge' reads what is asked")
    if file.merge.space.granularity == "global" or "base_model" not in here:
        return {}
    with found.catch("merge.base_model: "):
        return depths(read_header(found.root / str(base)))
    return None


def check_server(found: Findings, space: MergeSpace) -> Mapping[str, Mapping[str, Any]]:
    """Connect and ask what the tasks will need: before the search, and for a few short requests at most.

    Returns what a study keeps of the models there.
    """
    file, root = found.file, found.root
    assert isinstance(file.backend, BackendSection)
    tasks = {name: build_task(name, config, root, file.seed, found.models) for name, config in file.tasks.items()}
    read_here = models_read_here(file.backend, space)
    places = None
    with found.catch("merge.models: "):
        places = found.models.settled(read_here)
        # A canary asks the server with each LoRA, which it needs whole.
        for reference in read_here:
            places.folder(reference)
    if places is None:
        return {}
    found.models.commits.update(places.commits)
    verbs = sorted({task.verb for task in tasks.values()})

    def look(reader: Reader) -> None:
        show_prompts(found, tasks, reader)

    tried = try_backend(file.backend, space, places, verbs, look, counts_tokens=_counts_tokens(file))
    found.problems.extend(f"backend: {line}" for line in tried.problems)
    found.notes.append(f"backend {file.backend.type}: answers {' and '.join(verbs) or 'with a loss'}")
    return tried.served


def check_judges(found: Findings, anchors: Sequence[str], database: Database | None) -> None:
    """Whether tasks name judges and anchors that there are, and, where all else is sound, whether each judge gives
    verdicts: a few short requests, kept in the study's database if there is one."""
    file, problems = found.file, found.problems
    asked: dict[str, list[JsonlTask]] = {name: [] for name in file.judges}
    for name, config in file.tasks.items():
        if config.get("metric") != "judge" or any(one.startswith(f"tasks.{name}:") for one in problems):
            continue
        task = build_task(name, config, found.root, file.seed, found.models)
        options = judge_options(task)
        if options is None or not isinstance(task, JsonlTask):
            continue
        problems.extend(f"tasks.{name}: {line}" for line in judge_problems(options, file.judges, anchors))
        asked.setdefault(options.by, []).append(task)
    found.warnings.extend(f"judges.{name}: no task is judged by it" for name, tasks in asked.items() if not tasks)
    if problems:
        return
    cache = None if database is None else DatabaseResponses(database)
    for name, tasks in asked.items():
        with found.catch(f"judges.{name}: "):
            found.notes += [try_judge(file.judges[name], tasks, found.root, cache, file.seed)] if tasks else []


def _counts_tokens(file: StudyFile) -> bool:
    """Whether scores or constraints need the number of tokens that a server writes."""
    bounded = (one if isinstance(one, str) else one.name for one in file.constraints)
    metrics = (task.get("metric") for task in file.tasks.values())
    return "output_tokens" in metrics or any("generated_tokens" in one for one in bounded)


def starts_by_importance(found: Findings, granularity: Mapping[str, Any]) -> dict[str, list[int]]:
    """``{blocks: N, boundaries: importance}`` as first layers; reads every expert's tensors once, and so fetches them.

    Raises ``UserError``.
    """
    from mergefront.adapters.merging.importance import layer_importance

    file, places = found.file, ModelPlaces(found.root, found.models.commits)
    blocks = granularity.get("blocks")
    if set(granularity) != {"blocks", "boundaries"} or type(blocks) is not int:
        raise UserError(f"{dict(granularity)!r} must be written as {{blocks: N, boundaries: importance}}")
    if file.merge.base_model is None or not isinstance(file.merge.models, Mapping):
        raise UserError("boundaries: importance needs the folder of the base model and of each expert")
    opened = {"": Checkpoint(places.folder(file.merge.base_model))}
    opened |= {name: Checkpoint(places.folder(path)) for name, path in file.merge.models.items()}
    composed = compose(opened, "", Modalities.read(file.merge.scope, file.merge.carry)).models
    aligned = align(composed, "", TokenizerChoice.read(file.merge.tokenizer_source)).models
    importance = layer_importance(aligned[""], {name: aligned[name] for name in file.merge.models})
    return {"starts": list(blocks_by_importance(importance, blocks))}


def check_tasks(found: Findings) -> dict[str, str]:
    """Read every task's files; returns the direction of each task that is sound."""
    file, root, problems = found.file, found.root, found.problems
    directions: dict[str, str] = {}
    sound: dict[str, Task] = {}
    too_few: list[str] = []
    drawn: list[str] = []
    for name, config in file.tasks.items():
        task, faults = read_task(name, config, root, file.seed, found.models)
        problems.extend(f"tasks.{name}: {fault}" for fault in faults)
        if faults or task is None:
            directions[name] = "maximize"  # its objective is then no second problem
            continue
        sound[name] = task
        directions[name] = task.direction
        if task.verb == "generate":
            problems.extend(f"tasks.{name}: {fault}" for fault in _endless(task, config, found))
        idle = idle_options_of(config)
        if idle:
            found.warnings.append(f"task {name}: metric {config['metric']} has no use for {', '.join(idle)}")
        found.notes.extend(text for key in ("remark", "announcement") if (text := getattr(task, key, None)) is not None)
        if task.verb in _LIVE_TYPES:
            problems.extend(f"tasks.{name}: {fault}" for fault in _needs_live_model(file, task))
        if task.verb == "python":
            continue
        if task.verb in _LIVE_TYPES:
            with found.catch(f"tasks.{name}: "):
                _check_reading(found, task)
        else:
            problems.extend(f"tasks.{name}: {fault}" for fault in _silent(found))
        if task.verb == "loglikelihood" and isinstance(file.backend, LocalBackendSection) and not problems:
            with found.catch(f"tasks.{name}: "):
                refuse_likelihoods_of(found.frame or found.models.folder(str(file.merge.base_model)))
        if any(item.image for split in ("search", "report") for item in _items(task, split)):
            problems.extend(f"tasks.{name}: {fault}" for fault in _blind(found))
        if config.get("temperature") and task.verb == "generate":
            drawn.append(name)
        search, report = (len(_items(task, split)) for split in ("search", "report"))
        found.notes.append(f"task {name}: {search} search items, {report} report items")
        for reference in hub_references(config):
            found.notes.append(f"task {name}: {reference} is at commit {found.models.commit(reference)}, fetched")
        if search < FEWEST_TO_RACE:
            too_few.append(f"{name} ({search})")
    if file.racing and too_few:
        found.warnings.append(
            f"racing: every candidate is asked all search items of {', '.join(too_few)}, since fewer than "
            f"{FEWEST_TO_RACE} items are too few to race"
        )
    if drawn and file.racing:
        found.warnings.append(
            f"racing: answers of {', '.join(drawn)} are drawn, and what is drawn is noise that a race takes for exact "
            "once all items are asked; more samples make it smaller"
        )
    if drawn and file.backend.type in ("openai", "ensemble"):
        found.notes.append(
            f"answers of {', '.join(drawn)} are drawn by the endpoint, which gets a seed and may ignore it; they are "
            "kept, so that a resumed study has the same"
        )
    if not file.tasks:
        problems.append("tasks: a local backend needs at least one task")
    problems.extend(_leaks(sound))
    if not problems and not isinstance(file.backend, BackendSection):
        show_prompts(found, sound, found.reader)
    return directions


def show_prompts(found: Findings, tasks: Mapping[str, Task], reader: Reader) -> None:
    """Note one assembled prompt and answer of each task, and warn of what is likely to be a mistake in them."""
    questions: dict[str, list[Question]] = {}
    for name, task in tasks.items():
        items = [item for split in ("search", "report") for item in _items(task, split)]
        asked: Sequence[Question] = ()
        with found.catch(f"tasks.{name}: "):
            asked = task.questions(items[:_MOST_LOOKED_AT])
        refusals = chat_refusals(asked, reader)
        found.problems.extend(f"tasks.{name}: {why}" for why in refusals)
        if asked and not refusals:
            questions[name] = asked
            found.notes.append(f"task {name} asks {assembled(asked[0], reader)}")
    found.warnings.extend(traps(questions, reader))


_MOST_LOOKED_AT = 1000
"""Items of a task whose prompts are looked at, in their seeded order: a few-shot prompt takes a millisecond to make."""


_LIVE_TYPES = {"python", "classify", "embed"}
"""Types of tasks, and what they ask, that need the live model of a local backend."""


def _needs_live_model(file: StudyFile, task: Task) -> list[str]:
    """What of a study is not for tasks that ask the live model, and score all their items together."""
    problems = []
    if isinstance(file.backend, BackendSection):
        asks = f"type {task.verb} asks the live model"
        problems.append(f"{asks}, which backend {file.backend.type} has not; use local")
    whole = getattr(task, "whole", "")
    if file.racing and whole:
        problems.append(f"{whole}, and racing asks them in parts; remove 'racing'")
    types = {str(config.get("type")) for config in file.tasks.values()}
    if task.verb == "embed" and types - {"embed", "python"}:
        others = ", ".join(sorted(map(str, types - {"embed", "python"})))
        problems.append(f"type embed reads models without their heads, which type {others} needs; make two studies")
    return problems


def _check_reading(found: Findings, task: Task) -> None:
    """Whether merges have the classes, or make the vectors, that a task asks for. Raises ``UserError``."""
    if not isinstance(found.file.backend, LocalBackendSection) or not isinstance(found.file.merge.models, Mapping):
        return
    config = _configuration(found)
    if not config:
        return  # its loader says what is wrong with it
    if isinstance(task, ClassifyTask):
        found.problems.extend(f"tasks.{task.name}: {line}" for line in task.unknown_labels(labels_of(config)))
        return
    folder = found.frame or found.models.folder(str(found.file.merge.base_model))
    experts = {name: found.models.folder(path) for name, path in found.file.merge.models.items()}
    pipeline, warnings = pooling_findings(folder, config, experts)
    found.notes.append(
        f"task {task.name}: texts are pooled by {described(pipeline)}, likeness is {pipeline.similarity}"
    )
    found.warnings.extend(line for line in warnings if line not in found.warnings)


def _silent(found: Findings) -> list[str]:
    """Why a task that asks for text cannot ask this study's merges."""
    read = _configuration(found)
    architecture = str((read.get("architectures") or [""])[0])
    if isinstance(found.file.backend, BackendSection) or not architecture or architecture.endswith(_USUAL_ENDS):
        return []
    from mergefront.adapters.local.asked import continues_text

    if continues_text(str(read.get("model_type")), architecture):
        return []
    return [
        f"the base model ({architecture}) continues no text; score it with a task of type classify, embed or python"
    ]


_USUAL_ENDS = ("ForCausalLM", "LMHeadModel")
"""Ends of the names of classes that need no look at transformers' tables, which take a second or two to import."""


def _blind(found: Findings) -> list[str]:
    """Why items with an image cannot be put to this study's merges."""
    backend = found.file.backend
    if isinstance(backend, BackendSection):
        return [f"some items have an image, which backend {backend.type} does not send; use backend local"]
    if importlib.util.find_spec("PIL") is None:
        return ["some items have an image, which needs Pillow; install it with: pip install pillow"]
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    kind = _configuration(found).get("model_type")
    if kind is None or kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return []
    return [f"some items have an image, and the base model ({kind}) reads none; drop the key 'image' from the items"]


def _configuration(found: Findings) -> Mapping[str, Any]:
    """The configuration that merges have, the base's or a frame's; nothing where its loader will say what is wrong."""
    base = found.file.merge.base_model
    if base is None:
        return {}
    try:
        # What a server calls its base is no model to look at.
        of_server = not isinstance(found.file.backend, LocalBackendSection)
        folder = found.frame or (found.root / base if of_server else found.models.folder(base))
        described = folder / "config.json"
        # os.path answers where a name is too long to exist, pathlib raises.
        return read_json(described) if os.path.isfile(described) else {}
    except UserError:
        return {}


def _endless(task: Task, config: Mapping[str, Any], found: Findings) -> list[str]:
    """Why no merge could write as much as a task lets it: the base model reads and writes fewer tokens in all."""
    resolved = resolved_task(config)
    thoughts = resolved["max_thinking_tokens"] if resolved.get("thinking") else 0
    wanted = getattr(task, "longest_answer", resolved.get("max_new_tokens", 0)) + thoughts
    read = _configuration(found)
    longest = next((read[key] for key in _LONGEST if isinstance(read.get(key), int)), None)
    if longest is None or wanted < longest:
        return []
    key = "max_gen_toks (gen_kwargs)" if config["type"] == "lm_eval" else "max_new_tokens"
    what = f"{key} and max_thinking_tokens are" if thoughts else f"{key} is"
    return [f"{what} {wanted}, but the base model takes {longest} tokens at most, the prompt included"]


_LONGEST = ("n_positions", "max_position_embeddings", "n_ctx")
"""Where a model's configuration says how many tokens it takes."""


def _leaks(tasks: Mapping[str, Task]) -> list[str]:
    """Report items of one task that the search optimises on in another: their report would be no report."""

    def contents(task: Task, split: str) -> set[str]:
        # What several tasks of a group ask has the name of the task behind its hash.
        return {item.id.partition(":")[0] for item in _items(task, split)}

    search = {name: contents(task, "search") for name, task in tasks.items()}
    found = []
    for name, task in tasks.items():
        report = contents(task, "report")
        for other, ids in search.items():
            shared = len(report & ids) if other != name else 0
            if shared:
                found.append(
                    f"tasks.{name}: the search optimises on {shared} of its report items, as search items of task "
                    f"{other}; give both tasks the same files and report_fraction, or remove the items from one"
                )
    return found


def _no_factors(file: StudyFile, expert: CheckpointHeader, base: CheckpointHeader) -> list[str]:
    """Why an expert cannot be merged by the file's methods, if that is because they merge the factors of LoRAs."""
    methods = [file.merge.method] if isinstance(file.merge.method, str) else file.merge.method
    of_loras = [name for name in methods if name in METHODS and METHODS[name].lora is not None]
    if not of_loras:
        return []
    if expert.kind == "lora":
        stacked = read_lora(expert, base).stacked
        return [
            f"{of_loras[0]} merges the factors of matrices, and this LoRA adapts {tensor}, which holds all experts; "
            "use task_arithmetic"
            for tensor in list(stacked)[:1]
        ]
    return [
        f"{of_loras[0]} merges LoRAs, and this is a whole checkpoint; use task_arithmetic, or give the LoRA's folder"
    ]


def _items(task: Task, split: str) -> Sequence[Item]:
    try:
        return task.items(split)
    except UserError:
        return ()
