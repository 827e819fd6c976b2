"""A task of the LM evaluation harness (lm-eval 0.4.13), by name or from a YAML file of one's own.

The harness knows the items, the prompts and how answers are scored; the model that it asks is the
merge that is in memory, or the server. Item by item, so that splits, racing and paired comparisons work
as for any other task: a metric must therefore be a mean over items.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mergefront.adapters.language_model import LanguageModel, Verb
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.lm_eval.examples import draws_from, other_examples
from mergefront.adapters.tasks.options import (
    DEFAULT_MAX_UNANSWERED,
    DEFAULT_REPORT_FRACTION,
    FileBySplit,
    PathText,
    SplitOptions,
    Text,
)
from mergefront.adapters.tasks.questions import Question
from mergefront.adapters.tasks.task import (
    Splits,
    items_of,
    limited,
    seeded_order,
    split_items,
)
from mergefront.adapters.tasks.user_code import described
from mergefront.optimizer.errors import EvaluationError, UserError, did_you_mean
from mergefront.optimizer.scores.evaluation import ItemScores
from mergefront.optimizer.scores.outcomes import UNANSWERED
from mergefront.optimizer.sections import read_section
from mergefront.optimizer.seeding import derive_seed

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.tasks import TaskManager

EXTRA = 'tasks of the LM evaluation harness need the extra: pip install "mergefront[lm-eval]"'


class LmEvalOptions(SplitOptions):
    """A task of the LM evaluation harness."""

    task: Text = Field(description="a name of the harness, or a YAML file of your own")
    metric: Text | None = Field(None, description="a metric of the task that is a mean over items (its first)")
    filter: Text | None = Field(None, description="a filter of the task (its first)")
    include_path: PathText | None = Field(None, description="a folder of more tasks")
    data_files: FileBySplit | None = Field(None, description="files in the place of the task's data set, by split")
    num_fewshot: int | None = Field(None, ge=0, description="examples in a prompt (as the task says)")


@dataclass
class LmEvalTask:
    """One task of the harness with one of its metrics.

    Search items are the task's validation items and report items its test items where it has both;
    otherwise the one set that there is, is split by seed (``report_fraction``). ``announcement`` says, for a
    published benchmark, whose items the search then optimises on. Requests are built once and reused
    for every merge.
    """

    name: str
    harness: Any
    metric: str
    filter: str | None
    direction: Literal["maximize", "minimize"]
    splits: Splits = field(repr=False)
    documents: Mapping[str, Any] = field(repr=False)
    few_shot: int = 0
    seed: int = 0
    announcement: str | None = None
    max_unanswered: float = DEFAULT_MAX_UNANSWERED
    _requests: dict[str, list[Instance]] = field(default_factory=dict, repr=False)

    @property
    def verb(self) -> Verb:
        return "generate" if self.harness.OUTPUT_TYPE == "generate_until" else "loglikelihood"

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer, where the task asks for answers."""
        from mergefront.adapters.tasks.lm_eval.model import stop_strings

        return stop_strings(self.harness.config.generation_kwargs or {}) if self.verb == "generate" else ()

    def items(self, split: str) -> Sequence[Item]:
        return items_of(self.name, self.splits, split, "a 'report_fraction' above 0")

    def questions(self, items: Sequence[Item]) -> list[Question]:
        return [_loaded(partial(self._question, item), self.name) for item in items]

    @property
    def may_show_items(self) -> bool:
        """Whether the harness would draw an item as an example for its own prompt."""
        return self.few_shot > 0 and draws_from(self.harness, lambda one: _digest(one) in self.documents)

    def _question(self, item: Item) -> Question:
        from mergefront.adapters.tasks.lm_eval.model import longest_answer, stop_strings

        requests = self._request(item)
        prompt, second = requests[0].args[:2]
        if self.verb == "loglikelihood":
            return Question(prompt, tuple(request.args[1] for request in requests))
        target = self.harness.doc_to_target(self.documents[item.id])
        several = target if isinstance(target, list) else [target]
        answers = tuple(text for text in several if isinstance(text, str) and text)
        return Question(prompt, answers, longest_answer(second), stop_strings(second))

    def score(self, model: LanguageModel, items: Sequence[Item]) -> ItemScores:
        """Ask the model what the harness would ask it about the items, and score its answers as the harness does.

        An item without a usable answer is wrong (0); where less is better, it raises ``EvaluationError``.
        """
        from mergefront.adapters.tasks.lm_eval.model import HarnessModel

        asked = [[replace(one, resps=[], filtered_resps={}) for one in self._request(item)] for item in items]
        flat = [instance for several in asked for instance in several]
        is_whole_text = self.harness.OUTPUT_TYPE == "loglikelihood" and self.metric == "acc"
        harness_model = HarnessModel(model, needs_greedy=is_whole_text or self.metric == "exact_match")
        for kind in dict.fromkeys(instance.request_type for instance in flat):
            of_kind = [instance for instance in flat if instance.request_type == kind]
            for instance, answer in zip(of_kind, getattr(harness_model, kind)(of_kind), strict=True):
                instance.resps.append(answer)
        self.harness._instances = flat
        self.harness.apply_filters()
        chosen = self.filter or next(iter(flat[0].filtered_resps))
        scores = []
        for item, several in zip(items, asked, strict=True):
            missing = next(filter(None, (harness_model.unanswered.get(id(one)) for one in several)), None)
            if missing is not None and self.direction == "minimize":
                raise EvaluationError(
                    f"no usable answer to item {item.id} ({missing}), and {self.metric} has no score for that",
                    kind=UNANSWERED,
                )
            if missing is not None:
                scores.append(0.0)
                continue
            answers = [instance.filtered_resps[chosen] for instance in several]
            found = self.harness.process_results(self.documents[item.id], answers)
            scores.append(float(found[self.metric]))
        return ItemScores(tuple(item.id for item in items), tuple(scores))

    def _request(self, item: Item) -> list[Instance]:
        """The harness' requests about one item; its examples are drawn for the item, whatever was asked before."""
        if item.id not in self._requests:
            document = self.documents[item.id]
            self.harness.set_fewshot_seed(derive_seed(self.seed, "examples", item.id) % 2**32)
            with _quiet():
                prefix = self.harness.doc_to_prefix(document)
                with other_examples(self.harness, document):
                    context = self.harness.fewshot_context(document, num_fewshot=self.few_shot, gen_prefix=prefix)
                made = self.harness.construct_requests(doc=document, ctx=context, metadata=(self.name, 0, 1))
            self._requests[item.id] = made if isinstance(made, list) else [made]
        return self._requests[item.id]


def read_lm_eval_task(
    name: str, config: Mapping[str, Any], folder: Path, seed: int
) -> tuple[LmEvalTask | None, list[str]]:
    """The task of one study file entry, and everything that is wrong with its options."""
    options, problems = read_section(LmEvalOptions, config)
    if problems or options is None:
        return None, problems
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        return None, [EXTRA]
    try:
        harness, published = _load(options, folder)
        metric, direction = _metric(harness, options.task, options.metric)
        chosen = _filter(harness, options.task, options.filter)
    except UserError as error:
        return None, [str(error)]
    if harness.OUTPUT_TYPE == "loglikelihood_rolling":
        return None, [f"task {options.task!r} scores whole texts together; use type: jsonl with metric: loss instead"]
    found = {split: list(_documents(harness, split)) for split in ("validation", "test")}
    documents = {item.id: document for split in found.values() for item, document in split}
    try:
        problems += _loaded(partial(_unfit, harness, documents), options.task)
    except UserError as error:
        return None, [str(error)]
    both = bool(found["validation"]) and bool(found["test"])
    if both and options.report_fraction is None:
        report = seeded_order([item for item, _ in found["test"]], seed)
        known = {item.id for item in report}
        search = seeded_order([item for item, _ in found["validation"] if item.id not in known], seed)
        optimised_on = "validation"
    else:
        only = found["test"] or found["validation"]
        optimised_on = "test" if found["test"] else "validation"
        fraction = DEFAULT_REPORT_FRACTION if options.report_fraction is None else options.report_fraction
        search, report = split_items([item for item, _ in only], fraction, seed)
    splits, too_few = limited({"search": search, "report": report}, options)
    problems += too_few
    if not search:
        problems.append(f"task {options.task!r} has {len(documents)} items, too few to search on")
    announcement = None
    if published and optimised_on == "test":
        announcement = _announcement(name, options.task, own_files=options.data_files is not None)
    return (
        LmEvalTask(
            name,
            harness,
            metric,
            chosen,
            direction,
            splits,
            documents,
            int(harness.config.num_fewshot or 0) if options.num_fewshot is None else options.num_fewshot,
            seed,
            announcement,
            options.max_unanswered,
        ),
        problems,
    )


def _unfit(harness: Any, documents: Mapping[str, Any]) -> list[str]:
    """Why a task of the harness cannot be searched on: it samples, or has answers of no text, whose log-likelihood is
    0 and beats every other."""
    if harness.OUTPUT_TYPE == "generate_until":
        settings = harness.config.generation_kwargs or {}
        temperature = float(settings.get("temperature") or 0.0)
        if temperature > 0 and settings.get("do_sample") is not False:
            return [f"the task samples (temperature {temperature:g}), and only greedy answers are compared; {_GREEDY}"]
        return []
    texts_of = harness.doc_to_choice if harness.OUTPUT_TYPE == "multiple_choice" else harness.doc_to_target
    empty = [
        document for document in documents.values() if any(not text.strip() for text in _texts(texts_of(document)))
    ]
    if not empty:
        return []
    return [
        f"{len(empty)} of {len(documents)} items have an empty choice, which no model can be asked about, such as "
        f"{empty[0]!s:.200}; leave them out (process_docs in a YAML file of your own, or data_files)"
    ]


_GREEDY = "copy it into a YAML file of your own with do_sample: false"


def _texts(value: Any) -> list[str]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


def _announcement(name: str, benchmark: str, *, own_files: bool) -> str:
    if own_files:
        return (
            f"Task {name} asks the published benchmark {benchmark} on files of its own. If they hold the benchmark's "
            "test items, the search optimised on them, and its merges must not be compared with others by that "
            "benchmark."
        )
    return (
        f"Task {name} optimises on test items of the published benchmark {benchmark}. The merges found here must not "
        "be compared with others by that benchmark; the report items are other items of it."
    )


def _load(options: LmEvalOptions, folder: Path) -> tuple[Any, bool]:
    """The harness' task, and whether it is one of its own (a published benchmark). Raises ``UserError``."""
    task, include_path, files = options.task, options.include_path, options.data_files
    if task.endswith((".yaml", ".yml")):
        path = folder / task
        if not os.path.isfile(path):
            raise UserError(f"task {task!r}: there is no file {path}")
        if files is not None:
            raise UserError(f"data_files belongs to a task by name; {task} names its own under dataset_kwargs")
        return _from_file(path), False
    manager = _manager(None if include_path is None else folder / include_path)
    known = manager.all_subtasks
    if task not in known:
        if task in manager.all_tasks:
            raise UserError(f"task {task!r} is a group of tasks; name its tasks one by one")
        raise UserError(f"unknown task {task!r} of the LM evaluation harness {did_you_mean(task, known)}")
    own = include_path is not None and task in _manager(folder / include_path, defaults=False).all_subtasks
    if files is None:
        return _loaded(lambda: next(iter(manager.load([task])["tasks"].values())), task), not own
    config = _configuration(manager.task_index[task].yaml_path, task)
    local = _local_data(task, config, files, folder, options.num_fewshot)
    return _configured({**config, **local}, task), not own


def _configuration(path: Path | None, task: str) -> dict[str, Any]:
    """What the harness' YAML file of a task says. Raises ``UserError`` for a task that is a program."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = {} if path is None else dict(load_yaml(path, resolve_func=True))
    if not config or "class" in config:
        raise UserError(f"data_files: task {task!r} is a program, which reads its data itself")
    return config


def _configured(config: Mapping[str, Any], label: str) -> Any:
    from lm_eval.api.task import ConfigurableTask

    own = {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}
    return _loaded(lambda: ConfigurableTask(config=own), label)


def _local_data(
    task: str, config: Mapping[str, Any], files: Mapping[str, Any], folder: Path, num_fewshot: int | None
) -> dict[str, Any]:
    """What puts local ``files`` (by split) in the place of a task's data set. Raises ``UserError``."""
    splits = {kind: config.get(f"{kind}_split") for kind in ("training", "validation", "test", "fewshot")}
    used = [str(split) for split in splits.values() if split is not None]
    for split, name in files.items():
        if used and split not in used:
            raise UserError(f"data_files: task {task!r} has no split {split!r} {did_you_mean(split, used)}")
        if not os.path.isfile(folder / name):
            raise UserError(f"data_files: there is no file {folder / name}")
    examples = num_fewshot if num_fewshot is not None else int(config.get("num_fewshot") or 0)
    drawn_from = splits["fewshot"] or splits["training"] or splits["validation"] or splits["test"]
    if examples and drawn_from is not None and drawn_from not in files:
        raise UserError(
            f"data_files: task {task!r} draws {examples} examples from the split {drawn_from!r}; give a file for it, "
            "or set num_fewshot: 0"
        )
    kinds = {_FORMATS.get(Path(name).suffix) for name in files.values()}
    if len(kinds) != 1 or None in kinds:
        raise UserError(f"data_files must be files of one kind: {', '.join(_FORMATS)}")
    return {
        "dataset_path": kinds.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(folder / name) for split, name in files.items()}},
        **{f"{kind}_split": None for kind, split in splits.items() if split is not None and split not in files},
    }


_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""The data library's reader by file suffix."""


def _from_file(path: Path) -> Any:
    """The task that a YAML file defines; its data files are relative to it."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = _loaded(lambda: dict(load_yaml(path, resolve_func=True)), str(path))
    arguments = config.get("dataset_kwargs") or {}
    if "data_files" in arguments:
        config["dataset_kwargs"] = {**arguments, "data_files": _beside(arguments["data_files"], path.parent)}
    return _configured(config, str(path))


def _beside(files: Any, folder: Path) -> Any:
    if isinstance(files, dict):
        return {split: _beside(names, folder) for split, names in files.items()}
    if isinstance(files, list):
        return [_beside(name, folder) for name in files]
    return str(folder / files) if isinstance(files, str) and "://" not in files else files


def _loaded(build: Callable[[], Any], label: str) -> Any:
    """What ``build`` makes. Whatever a benchmark's own code or data raises becomes ``UserError``."""
    try:
        with _quiet():
            return build()
    except (Exception, SystemExit) as error:
        raise UserError(f"task {label!r}: the harness could not load it ({described(error):.300})") from None


def _metric(harness: Any, task: str, wanted: str | None) -> tuple[str, Literal["maximize", "minimize"]]:
    """The metric and its direction; by default the task's first that is a mean over items."""
    means = {name: aggregate for name, aggregate in harness.aggregation().items() if _is_mean(aggregate)}
    if wanted is None and not means:
        raise UserError(f"task {task!r} has no metric that is a mean over its items; such a task cannot be searched on")
    metric = wanted or next(iter(means))
    if metric not in means:
        if metric in harness.aggregation():
            raise UserError(
                f"metric {metric!r} of task {task!r} is no mean over its items; there are: {', '.join(means)}"
            )
        raise UserError(f"task {task!r} has no metric {metric!r} {did_you_mean(metric, means)}")
    return metric, "maximize" if harness.higher_is_better().get(metric, True) else "minimize"


def _is_mean(aggregate: Any) -> bool:
    from lm_eval.api.metrics import mean

    return aggregate is mean or getattr(aggregate, "__name__", "") == "mean"


def _filter(harness: Any, task: str, wanted: str | None) -> str | None:
    known = [one.name for one in getattr(harness, "_filters", [])]
    if wanted is not None and wanted not in known:
        raise UserError(f"task {task!r} has no filter {wanted!r} {did_you_mean(wanted, known)}")
    return wanted


def _documents(harness: Any, split: str) -> Iterator[tuple[Item, Any]]:
    """Items and documents of the harness' split, each content once."""
    if not getattr(harness, f"has_{split}_docs")():
        return
    seen = set()
    for document in getattr(harness, f"{split}_docs")():
        digest = _digest(document)
        if digest not in seen:
            seen.add(digest)
            yield Item(digest, "", ()), document


def _digest(document: Any) -> str:
    content = json.dumps(document, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:16]


@lru_cache(maxsize=4)
def _manager(include_path: Path | None, defaults: bool = True) -> TaskManager:
    """The harness' index of tasks; reading its ten thousand files takes seconds."""
    from lm_eval.tasks import TaskManager

    with _quiet():
        return TaskManager(include_path=None if include_path is None else str(include_path), include_defaults=defaults)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness' and the data library's remarks and progress bars."""
    import datasets

    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
