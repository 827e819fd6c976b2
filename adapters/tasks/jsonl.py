"""A task over JSON lines: a file of items, a metric, and two disjoint splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from mergefront.adapters.language_model import LanguageModel, Verb
from mergefront.adapters.tasks import options as option
from mergefront.adapters.tasks.items import Item, ReadItems, capped, read_items
from mergefront.adapters.tasks.metrics.known_metrics import METRICS
from mergefront.adapters.tasks.metrics.metric_spec import MetricOptions, MetricSpec
from mergefront.adapters.tasks.metrics.user_metric import is_user_metric, user_metric
from mergefront.adapters.tasks.options import Option, check_options
from mergefront.adapters.tasks.questions import Question, following, shown_answers
from mergefront.adapters.tasks.task import (
    DEFAULT_MAX_UNANSWERED,
    DEFAULT_REPORT_FRACTION,
    MAX_UNANSWERED,
    SPLIT_OPTIONS,
    Splits,
    items_of,
    limited,
    seeded_order,
    split_items,
)
from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.scores.evaluation import ItemScores


def _wrong_metric(name: Any) -> str | None:
    if is_user_metric(name) or (isinstance(name, str) and name in METRICS):
        return None
    return f"a metric, or a function of your own as module:name {did_you_mean(str(name), METRICS)}"


OPTIONS = (
    Option("path", option.is_path, "the file of items", required=True),
    Option("metric", _wrong_metric, "a metric of the table above, or `module:function`", required=True),
    Option("report", option.is_path, "a file of report items, in the place of `report_fraction`"),
    *SPLIT_OPTIONS,
    MAX_UNANSWERED,
    Option("max_new_tokens", option.is_count, "the longest answer, in tokens"),
    Option("stop", option.is_stop, "a text, or several, at which an answer ends", read=option.as_texts),
    Option(
        "skip_blank_start",
        option.is_switch,
        "a stop string of white space alone ends no answer before its first other character",
    ),
    Option(
        "delimiter",
        option.is_delimiter,
        "what stands between a prompt and a scored answer; null: nothing where either has white space there, otherwise "
        "one space",
    ),
    Option("length_normalised", option.is_switch, "log-likelihoods of choices are divided by their characters"),
    Option("margins", option.is_switch, "the likelihood of the accepted answer is asked as well, for racing"),
    Option(
        "normalise", option.is_switch, "case, punctuation, forms of compatibility and English articles do not count"
    ),
    Option("tolerance", option.is_tolerance, "how far a number may be off, relative to the right one", read=float),
    Option("seconds", option.is_positive, "processor time of a program", read=float),
    Option("memory_mb", option.is_count, "memory of a program"),
)


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
        return [
            Question(
                item.prompt,
                tuple(following(item.prompt, text, options.delimiter) for text in item.choices or item.answers),
                new_tokens,
                stop,
                item.image,
            )
            for item in items
        ]

    def score(self, model: LanguageModel, items: Sequence[Item]) -> ItemScores:
        scores, margins = self.metric.score(model, items, self.metric_options)
        return ItemScores(tuple(item.id for item in items), tuple(scores), None if margins is None else tuple(margins))


def read_jsonl_task(
    name: str, config: Mapping[str, Any], folder: Path, seed: int
) -> tuple[JsonlTask | None, list[str]]:
    """The task of one study file entry, and everything that is wrong with its options and files."""
    sound, problems = check_options(config, OPTIONS)
    if "path" not in sound or "metric" not in sound:
        return None, problems
    try:
        metric = user_metric(sound["metric"], folder) if is_user_metric(sound["metric"]) else METRICS[sound["metric"]]
    except UserError as error:
        return None, [*problems, str(error)]
    missing = metric.missing()
    if missing is not None:
        problems.append(f"metric {metric.name!r}: {missing}")
    if any(name not in config for name in metric.needs):
        problems.append(f"metric {metric.name!r} has no defaults for {' and '.join(metric.needs)}; state them")
    if "report" in sound and "report_fraction" in sound:
        problems.append("report and report_fraction exclude each other; keep the one that you mean")
    read = _file(sound["path"], folder, metric)
    problems.extend(read.problems)
    if "report" in sound:
        report_read = _file(sound["report"], folder, metric)
        problems.extend(report_read.problems)
        problems.extend(_shared(read, str(sound["path"]), report_read, str(sound["report"])))
        search, report = seeded_order(read.items, seed), seeded_order(report_read.items, seed)
    else:
        search, report = split_items(read.items, sound.get("report_fraction", DEFAULT_REPORT_FRACTION), seed)
        if len(read.items) == 1 and not read.problems and sound.get("report_fraction") != 0:
            problems.append(
                f"{sound['path']}: has 1 item; at least 2 are needed for search and report (or a file 'report')"
            )
    splits, too_few = limited({"search": search, "report": report}, sound)
    problems += too_few if not read.problems else []
    options = {known.name: sound[known.name] for known in fields(MetricOptions) if known.name in sound}
    most = sound.get("max_unanswered", DEFAULT_MAX_UNANSWERED)
    return JsonlTask(name, metric, MetricOptions(**options), splits, most), problems


def jsonl_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a sound entry leaves out."""
    defaults: dict[str, Any] = {**asdict(MetricOptions()), "stop": list(MetricOptions.stop)}
    defaults["max_unanswered"] = DEFAULT_MAX_UNANSWERED
    if "report" not in config:
        defaults["report_fraction"] = DEFAULT_REPORT_FRACTION
    return {name: value for name, value in defaults.items() if name not in config}


def idle_options(config: Mapping[str, Any]) -> list[str]:
    """The options of a sound entry that its metric has no use for."""
    known = METRICS.get(config["metric"])
    used = MetricSpec.options if known is None else known.options
    return [one.name for one in fields(MetricOptions) if one.name in config and one.name not in used]


def _file(path: str | PathLike[str], folder: Path, metric: MetricSpec) -> ReadItems:
    label = str(path)
    read = read_items(folder / path, label, metric.required)
    faults = [
        f"{label}:{line}: {fault}"
        for found in (shown_answers(read.items), metric.faults(read.items))
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
