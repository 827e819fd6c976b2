"""A task over JSON lines: a file of items, a metric, and two disjoint splits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from mergefront.adapters.language_model import LanguageModel, Verb
from mergefront.adapters.tasks.conversations import asked, chat_fault, with_template
from mergefront.adapters.tasks.items import Item, ReadItems, capped, read_items
from mergefront.adapters.tasks.metrics.known_metrics import METRICS
from mergefront.adapters.tasks.metrics.metric_spec import CHAT_DEFAULTS, MetricOptions, MetricSpec
from mergefront.adapters.tasks.metrics.user_metric import is_user_metric, user_metric
from mergefront.adapters.tasks.options import (
    DEFAULT_MAX_UNANSWERED,
    DEFAULT_REPORT_FRACTION,
    Fraction,
    PathText,
    SplitOptions,
    Text,
)
from mergefront.adapters.tasks.questions import Question, following, shown_answers
from mergefront.adapters.tasks.task import Splits, items_of, limited, seeded_order, split_items
from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.scores.evaluation import ItemScores
from mergefront.optimizer.sections import read_section
from mergefront.optimizer.seeding import derive_seed

Fields = Annotated[
    dict[Literal["prompt", "messages", "answer", "choices", "text", "tests"], Text],
    Field(min_length=1, title="keys of items by column, such as {prompt: question, answer: answer}"),
]


class JsonlOptions(MetricOptions, SplitOptions):
    """Items of a JSONL file."""

    path: PathText = Field(description="the file of items (JSON lines or Parquet), here or `hf://datasets/...`")
    fields: Fields | None = Field(
        None, description="the keys of items by column of the data, or as a text with columns in braces"
    )
    metric: str = Field(
        title="a metric, or a function of your own as module:name",
        description="a metric of the table above, or `module:function`",
        json_schema_extra={"anyOf": [{"enum": list(METRICS)}, {"pattern": ".:."}]},
    )
    report: PathText | None = Field(None, description="a file of report items, in the place of `report_fraction`")
    report_fraction: Fraction = Field(
        DEFAULT_REPORT_FRACTION, description=SplitOptions.model_fields["report_fraction"].description
    )

    @field_validator("metric")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if not is_user_metric(name) and name not in METRICS:
            hint = did_you_mean(name, METRICS)
            raise ValueError(f"it must be a metric, or a function of your own as module:name {hint}")
        return name


@dataclass(frozen=True)
class JsonlTask:
    """Items of a JSONL file, scored by one metric.

    The report items come from the file ``report`` or, without it, are the fraction
    ``report_fraction`` of ``path`` (0.5; 0 for none), chosen by seed. ``search_items`` and ``report_items`` take no
    more than so many of each, chosen by seed. The other options are those of ``MetricOptions``.

    Make one with ``JsonlTask.read``.
    """

    name: str
    metric: MetricSpec
    metric_options: MetricOptions
    splits: Splits = field(repr=False)
    max_unanswered: float = DEFAULT_MAX_UNANSWERED
    seed: int = 0
    places: Mapping[str, str] = field(default_factory=dict, repr=False)
    """File and line of each item, by its id."""

    @classmethod
    def read(
        cls, name: str, path: str | PathLike[str], metric: str, *, folder: Path = Path(), seed: int = 0, **options: Any
    ) -> JsonlTask:
        """Read the files and split them; raises ``UserError`` with every problem found."""
        task, problems = read_jsonl_task(name, {"path": path, "metric": metric, **options}, folder, seed)
        if task is None or problems:
            raise UserError("\n".join(f"task {name!r}: {problem}" for problem in problems))
        return task

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        return self.metric.direction

    @property
    def verb(self) -> Verb:
        return self.metric.verb

    def items(self, split: str) -> Sequence[Item]:
        return items_of(self.name, self.splits, split, "a file 'report' or a 'report_fraction' above 0")

    def questions(self, items: Sequence[Item]) -> list[Question]:
        options = self.metric_options
        new_tokens, stop = (options.max_new_tokens, options.stop) if self.verb == "generate" else (None, ())
        if new_tokens is not None and options.thoughts is not None:
            new_tokens += options.thoughts.most
        return [
            Question(
                prompt := asked(item, options.chat),
                tuple(following(prompt, text, options.delimiter) for text in item.choices or item.answers),
                new_tokens,
                stop,
                item.image,
                self.places.get(item.id, ""),
                options.thoughts if self.verb == "generate" else None,
            )
            for item in items
        ]

    def score(self, model: LanguageModel, items: Sequence[Item]) -> ItemScores:
        options = self.metric_options
        if options.temperature > 0 and self.verb == "generate":
            items = [
                replace(item, seed=derive_seed(self.seed, "sample", item.id, number))
                for item in items
                for number in range(self.samples)
            ]
        scores, margins = self.metric.score(model, items, options)
        each = range(0, len(items), self.samples)
        if options.samples_metric == "pass@k":
            best = max if self.direction == "maximize" else min
            scores = [best(scores[start : start + self.samples]) for start in each]
        else:
            scores = _means(scores, self.samples)
        ids = tuple(items[start].id for start in each)
        return ItemScores(ids, tuple(scores), None if margins is None else tuple(_means(margins, self.samples)))

    @property
    def samples(self) -> int:
        """Answers for each item."""
        return self.metric_options.samples if self.verb == "generate" else 1


def read_jsonl_task(
    name: str, config: Mapping[str, Any], folder: Path, seed: int
) -> tuple[JsonlTask | None, list[str]]:
    """The task of one study file entry, and everything that is wrong with its options and files."""
    options, problems = read_section(JsonlOptions, config)
    if options is None:
        return None, problems
    try:
        metric = user_metric(options.metric, folder) if is_user_metric(options.metric) else METRICS[options.metric]
    except UserError as error:
        return None, [*problems, str(error)]
    missing = metric.missing()
    if missing is not None:
        problems.append(f"metric {metric.name!r}: {missing}")
    needed = [one for one in metric.needs if one not in config and (options.chat is None or one not in CHAT_DEFAULTS)]
    if needed:
        problems.append(f"metric {metric.name!r} has no defaults for {' and '.join(needed)}; state them")
    if options.report is not None and "report_fraction" in options.model_fields_set:
        problems.append("report and report_fraction exclude each other; keep the one that you mean")
    options, faults = _in_chat(options, folder)
    problems.extend(faults)
    read = _file(options.path, folder, metric, options)
    places = read.places(str(options.path))
    problems.extend(read.problems)
    if options.report is not None:
        report_read = _file(options.report, folder, metric, options)
        places |= report_read.places(str(options.report))
        problems.extend(report_read.problems)
        problems.extend(_shared(read, str(options.path), report_read, str(options.report)))
        search, report = seeded_order(read.items, seed), seeded_order(report_read.items, seed)
    else:
        search, report = split_items(read.items, options.report_fraction, seed)
        if len(read.items) == 1 and not read.problems and options.report_fraction != 0:
            problems.append(
                f"{options.path}: has 1 item; at least 2 are needed for search and report (or a file 'report')"
            )
    splits, too_few = limited({"search": search, "report": report}, options)
    problems += too_few if not read.problems else []
    if options.samples > 1 and options.temperature == 0:
        problems.append(f"samples is {options.samples}, but at temperature 0 all answers are the same; raise it")
    return JsonlTask(name, metric, options, splits, options.max_unanswered, seed, places), problems


def _means(values: Sequence[float], samples: int) -> list[float]:
    """Of each item's ``samples`` values, which stand together."""
    return [math.fsum(values[start : start + samples]) / samples for start in range(0, len(values), samples)]


def _in_chat(options: JsonlOptions, folder: Path) -> tuple[JsonlOptions, list[str]]:
    """The options of a task with what ``chat`` says: its template's text and its defaults."""
    if options.chat is None:
        return options, []
    chat, problems = with_template(options.chat, folder)
    of_chat = {name: value for name, value in CHAT_DEFAULTS.items() if name not in options.model_fields_set}
    misspelt = [f"chat: {sentence}" for sentence in options.chat.misspelt.values()]
    return options.model_copy(update={**of_chat, "chat": chat}), [*misspelt, *problems]


def idle_options(config: Mapping[str, Any]) -> list[str]:
    """The options of a sound entry that its metric has no use for."""
    known = METRICS.get(config["metric"])
    used = MetricSpec.options if known is None else known.options
    is_idle = {name: name not in used for name in MetricOptions.model_fields}
    is_idle |= {"chat": False}
    is_idle |= {"delimiter": True} if config.get("chat") else {}
    is_idle |= {} if config.get("temperature") else {"top_p": True}
    is_idle |= {} if config.get("thinking") or config.get("thinking") == {} else {"max_thinking_tokens": True}
    return [name for name, idle in is_idle.items() if idle and name in config]


def _file(path: str | PathLike[str], folder: Path, metric: MetricSpec, options: JsonlOptions) -> ReadItems:
    label = str(path)
    read = read_items(folder / path, label, metric.required, options.fields)
    faults = [
        f"{label}:{line}: {fault}"
        for found in (
            [chat_fault(item, options.chat) for item in read.items],
            shown_answers(read.items),
            metric.faults(read.items),
        )
        for line, fault in zip(read.lines, found, strict=True)
        if fault is not None
    ]
    return replace(read, problems=(*read.problems, *capped(faults, label)))


def _shared(search: ReadItems, search_label: str, report: ReadItems, report_label: str) -> Sequence[str]:
    """Items that are in both files."""
    lines = {item.id: line for item, line in zip(search.items, search.lines, strict=True)}
    return capped(
        [
            f"{report_label}:{line}: is a search item too ({search_label}:{lines[item.id]}); remove one of them"
            for item, line in zip(report.items, report.lines, strict=True)
            if item.id in lines
        ],
        report_label,
    )
