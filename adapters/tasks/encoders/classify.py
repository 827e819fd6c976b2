"""A task over texts with a class each, for models with a head of classes (``AutoModelForSequenceClassification``).

{"text": "A fine film.", "label": "positive"}                  a label of the model's id2label, or its number
{"text": "It rains.", "text_pair": "It is wet.", "label": 0}   a pair of texts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from mergefront.adapters.language_model import LanguageModel, Verb, text_model
from mergefront.adapters.tasks.encoders.rows import content_hash, read_rows, shared_rows, text_of
from mergefront.adapters.tasks.encoders.text_task import TextTask
from mergefront.adapters.tasks.encoders.whole_scores import macro_f1_items
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.options import DEFAULT_REPORT_FRACTION, Fraction, ItemOptions, PathText
from mergefront.adapters.tasks.task import Splits, limited, seeded_order, split_items
from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.scores.evaluation import ItemScores
from mergefront.optimizer.sections import read_section


class ClassifyOptions(ItemOptions):
    """Texts with a class each."""

    path: PathText = Field(description="the file of texts and labels")
    metric: Literal["accuracy", "macro_f1"] = Field(
        "accuracy", description="the share of right labels, or F1 averaged over the classes"
    )
    report: PathText | None = Field(None, description="a file of report items, in the place of `report_fraction`")
    report_fraction: Fraction = Field(
        DEFAULT_REPORT_FRACTION, description=ItemOptions.model_fields["report_fraction"].description
    )


@dataclass(frozen=True)
class Example:
    """A text, or a pair, and the name or the number of its class."""

    text: str
    pair: str
    label: str | int


@dataclass(frozen=True)
class ClassifyTask(TextTask):
    """Asks for the likeliest class of each text, or pair of texts.

    The score of an item is 1 where that is right (``accuracy``), or its share of the F1 averaged over the classes
    (``macro_f1``: see ``whole_scores``).
    """

    name: str
    metric: str
    splits: Splits = field(repr=False)
    examples: Mapping[str, Example] = field(repr=False)
    verb: Verb = "classify"
    remedy: ClassVar[str] = "a file 'report' or a 'report_fraction' above 0"

    @property
    def whole(self) -> str:
        """Why a part of the items says nothing of the score; empty where it does."""
        return "" if self.metric == "accuracy" else "macro_f1 is a score of all items together"

    def unknown_labels(self, labels: Sequence[str]) -> list[str]:
        """Why a model with these classes cannot be right about some items: a line for the first of them."""
        for example in self.examples.values():
            try:
                _number(example.label, labels)
            except UserError as error:
                return [str(error)]
        return []

    def score(self, model: LanguageModel, items: Sequence[Item]) -> ItemScores:
        """Raises ``UserError`` for a label that the model does not have."""
        reader = text_model(model)
        examples = [self.examples[item.id] for item in items]
        scores = reader.classify([(one.text, one.pair) for one in examples])
        gold = [_number(one.label, reader.labels) for one in examples]
        predicted = [row.index(max(row)) for row in scores]
        ids = tuple(item.id for item in items)
        if self.metric == "macro_f1":
            return ItemScores(ids, tuple(macro_f1_items(gold, predicted)))
        margins = [row[right] - max(row[:right] + row[right + 1 :]) for row, right in zip(scores, gold, strict=True)]
        return ItemScores(
            ids, tuple(float(one == other) for one, other in zip(gold, predicted, strict=True)), tuple(margins)
        )


def _number(label: str | int, labels: Sequence[str]) -> int:
    if isinstance(label, int) and 0 <= label < len(labels):
        return label
    if isinstance(label, str) and label in labels:
        return labels.index(label)
    hint = did_you_mean(str(label), labels)
    raise UserError(f"the label {label!r} is no class of the model's id2label (config.json) {hint}")


def read_classify_task(
    name: str, config: Mapping[str, Any], folder: Path, seed: int
) -> tuple[ClassifyTask | None, list[str]]:
    """The task of one study file entry, and everything that is wrong with its options and files."""
    options, problems = read_section(ClassifyOptions, config)
    if options is None:
        return None, problems
    read = read_rows(folder / options.path, str(options.path), _example)
    problems += read.problems
    examples = dict(read.rows)
    items = [_item(key, one) for key, one in read.rows.items()]
    if options.report is not None:
        if "report_fraction" in options.model_fields_set:
            problems.append("report and report_fraction exclude each other; keep the one that you mean")
        others = read_rows(folder / options.report, str(options.report), _example)
        problems += [*others.problems, *shared_rows(read, others, (str(options.path), str(options.report)))]
        examples |= others.rows
        search = seeded_order(items, seed)
        report = seeded_order([_item(key, one) for key, one in others.rows.items()], seed)
    else:
        search, report = split_items(items, options.report_fraction, seed)
    splits, too_few = limited({"search": search, "report": report}, options)
    problems += too_few if not read.problems else []
    return ClassifyTask(name, options.metric, splits, examples), problems


def _item(key: str, example: Example) -> Item:
    return Item(key, example.text, (str(example.label),))


def _example(content: Mapping[str, Any]) -> tuple[str, Example]:
    text, pair = text_of(content, "text"), text_of(content, "text_pair") if "text_pair" in content else ""
    label = content.get("label")
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise ValueError(f"'label' is {label!r:.60}; it must be the name or the number of a class")
    return content_hash(text, pair, label), Example(text, pair, label)
