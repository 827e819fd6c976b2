"""A task that is a function of the user's own over the live model: classifiers, embedders, vision, speech.

def accuracy(model, processor):        # the merge as transformers loads it; its tokenizer or processor
    return {"cat.png": 1.0, "dog.png": 0.0}        # a score for each item, by its name
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mergefront.adapters.counted_model import CountedModel
from mergefront.adapters.language_model import LanguageModel, Verb
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.options import DEFAULT_REPORT_FRACTION, Fraction, Paths, SplitOptions
from mergefront.adapters.tasks.questions import Question
from mergefront.adapters.tasks.task import SPLITS, items_of, split_items
from mergefront.adapters.tasks.user_code import user_function
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.scores.evaluation import ItemScores, finite_number
from mergefront.optimizer.sections import Options, read_section


class PythonOptions(Options):
    """A function of the user's own over the live model."""

    call: str = Field(
        pattern=".:.",
        title="a function, written as package.module:name",
        description="the function, `package.module:name`, in the study file's folder or installed",
    )
    direction: Literal["maximize", "minimize"] = Field("maximize", description="which end of its scores is better")
    report_fraction: Fraction = Field(
        DEFAULT_REPORT_FRACTION, description=SplitOptions.model_fields["report_fraction"].description
    )
    files: Paths | None = Field(
        None, description="files that the function reads: a study does not go on when one of them has changed"
    )


class PythonTask:
    """A function ``(model, processor) -> {item: score}`` over a live transformers model.

    Only the function knows its items, so that each call scores all of them; those of a split are then picked by seed
    (``report_fraction``, 0.5, are for the report) and returned. Until then a split is one item that stands for all.
    """

    verb: Verb = "python"
    whole = "type python scores all its items in one call"
    max_unanswered = 0.0

    def __init__(
        self,
        name: str,
        function: Callable[[Any, Any], Any],
        call: str,
        *,
        direction: Literal["maximize", "minimize"] = "maximize",
        report_fraction: float = DEFAULT_REPORT_FRACTION,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.direction: Literal["maximize", "minimize"] = direction
        self.announcement = f"task {name}: its items are known once a merge has been scored"
        self._function = function
        self._call = call
        self._report_fraction = report_fraction
        self._seed = seed
        self._known: frozenset[str] | None = None
        self._splits: dict[str, tuple[Item, ...]] = {split: (Item(f"{call} {split}", split, ()),) for split in SPLITS}
        if report_fraction == 0:
            self._splits["report"] = ()

    def items(self, split: str) -> Sequence[Item]:
        return items_of(self.name, self._splits, split, "a 'report_fraction' above 0")

    def questions(self, items: Sequence[Item]) -> list[Question]:
        """None: only the function knows what it asks."""
        return []

    def score(self, model: LanguageModel, items: Sequence[Item]) -> ItemScores:
        """The scores of a split's items; raises ``EvaluationError`` where the function fails or returns anything else
        than a finite number for each of the items that it returned before."""
        live: Any = model.model if isinstance(model, CountedModel) else model
        scores = self._scores(self._run(live.model, live.processor))
        if self._known is not None and self._known != scores.keys():
            changed = min(self._known ^ scores.keys())
            raise self._wrong(f"returned other items than for the merge before, such as {changed!r}", "other items")
        self._known = frozenset(scores)
        search, report = split_items([Item(name, "", ()) for name in scores], self._report_fraction, self._seed)
        picked = [item.id for item in (search if items[0].prompt == "search" else report)]
        if not picked:
            raise self._wrong(f"returned {len(scores)} items, which leaves none for the {items[0].prompt}", "no items")
        return ItemScores(tuple(picked), tuple(scores[name] for name in picked))

    def _run(self, model: Any, processor: Any) -> Any:
        import torch

        before = _state(model)
        model.eval()
        try:
            with torch.no_grad():
                returned = self._function(model, processor)
        except SystemExit as error:
            raise self._wrong(f"called sys.exit({error.code!r})", "SystemExit") from None
        for name, state in _state(model).items():
            if before.get(name) != state:
                raise UserError(f"task {self.name!r}: {self._call} changed the model's {name}; it may only read it")
        return returned

    def _scores(self, returned: Any) -> dict[str, float]:
        if not isinstance(returned, Mapping) or not returned:
            raise self._wrong(f"returned {returned!r:.60}; it must return {{item: score}}", "wrong type")
        scores: dict[str, float] = {}
        for item, value in returned.items():
            if str(item) in scores:
                raise self._wrong(f"returned the item {str(item)!r} twice, as two kinds of name", "other items")
            scores[str(item)] = finite_number(value, f"what {self._call} scored for {item!r}")
        return scores

    def _wrong(self, what: str, kind: str) -> EvaluationError:
        return EvaluationError(f"{self._call} {what}", kind=kind)


def _state(model: Any) -> dict[str, tuple[Any, ...]]:
    """Where each parameter lies, as what, and how often it was written."""
    return {
        name: (one.data_ptr(), one.dtype, one.device, tuple(one.shape), one._version)
        for name, one in model.named_parameters()
    }


def read_python_task(
    name: str, config: Mapping[str, Any], folder: Path, seed: int
) -> tuple[PythonTask | None, list[str]]:
    """The task of one study file entry, and everything that is wrong with it."""
    options, problems = read_section(PythonOptions, config)
    if options is None:
        return None, problems
    problems += [
        f"files: {path}: there is no such file" for path in options.files or () if not (folder / path).is_file()
    ]
    try:
        function = user_function(options.call, folder, "call")
    except UserError as error:
        return None, [*problems, str(error)]
    fraction = options.report_fraction
    task = PythonTask(name, function, options.call, direction=options.direction, report_fraction=fraction, seed=seed)
    return task, problems
