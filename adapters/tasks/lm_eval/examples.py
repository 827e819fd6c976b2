"""Few-shot examples of the harness' tasks: an item never stands, answered, in its own prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mergefront.optimizer.errors import UserError


class _OtherExamples:
    """Draws as the harness' own sampler does; where that draws the item that is asked, it draws from the others."""

    def __init__(self, sampler: Any, harness: Any, document: Mapping[str, Any]) -> None:
        self._sampler = sampler
        self._harness = harness
        self._document = document
        self._asked = _as_example(harness, document)

    def sample(self, n: int, eval_doc: Mapping[str, Any] | None = None) -> Sequence[Mapping[str, Any]]:
        drawn: Sequence[Mapping[str, Any]] = self._sampler.sample(n=n, eval_doc=eval_doc)
        if not any(map(self._is_asked, drawn)):
            return drawn
        others = [one for one in self._sampler.fewshot_docs() if not self._is_asked(one)]
        if len(others) < n:
            raise UserError(f"num_fewshot is {n}, and there are {len(others)} examples beside the item that is asked")
        again = type(self._sampler)(others)
        again.rnd = self._sampler.rnd
        found: Sequence[Mapping[str, Any]] = again.sample(n=n)
        return found

    def _is_asked(self, example: Mapping[str, Any]) -> bool:
        return example == self._document or _as_example(self._harness, example) == self._asked


def _as_example(harness: Any, document: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a prompt shows of a document."""
    choices = harness.doc_to_choice(document) if harness.config.doc_to_choice else None
    return harness.doc_to_text(document), choices, harness.doc_to_target(document)


@contextmanager
def other_examples(harness: Any, document: Mapping[str, Any]) -> Iterator[None]:
    """While entered, the examples that a task of the harness draws are never the document."""
    sampler = getattr(harness, "sampler", None)
    if sampler is None:  # a task that is a program draws from training items, or leaves the item out itself
        yield
        return
    harness.sampler = _OtherExamples(sampler, harness, document)
    try:
        yield
    finally:
        harness.sampler = sampler


def draws_from(harness: Any, is_item: Callable[[Any], bool]) -> bool:
    """Whether some examples are items, and the harness itself does not leave out the one that is asked."""
    sampler = getattr(harness, "sampler", None)
    if sampler is None:
        return False
    split = harness.fewshot_cfg.split
    leaves_out = split is not None and split == harness.config.test_split
    return not leaves_out and any(map(is_item, sampler.fewshot_docs()))
