"""Few-shot examples of the harness' tasks: those that the harness itself draws, and never the item that is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mergefront.optimizer.errors import UserError

Documents = Sequence[Mapping[str, Any]]


class _OtherExamples:
    """Draws as the harness' own sampler does; where that draws the item that is asked, it draws from the others.

    ``known`` are examples that were drawn before, in the place of a new draw.
    """

    def __init__(self, sampler: Any, harness: Any, document: Mapping[str, Any], known: Documents | None) -> None:
        self._sampler = sampler
        self._harness = harness
        self._document = document
        self._known = known
        self._asked = _as_example(harness, document)

    def sample(self, n: int, eval_doc: Mapping[str, Any] | None = None) -> Documents:
        drawn: Documents = self._known or self._sampler.sample(n=n, eval_doc=eval_doc)
        if not any(map(self._is_asked, drawn)):
            return drawn
        others = [one for one in self._sampler.fewshot_docs() if not self._is_asked(one)]
        if len(others) < n:
            raise UserError(f"num_fewshot is {n}, and there are {len(others)} examples beside the item that is asked")
        again = type(self._sampler)(others)
        again.rnd = self._sampler.rnd
        found: Documents = again.sample(n=n)
        return found

    def _is_asked(self, example: Mapping[str, Any]) -> bool:
        return example == self._document or _as_example(self._harness, example) == self._asked


def _as_example(harness: Any, document: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a prompt shows of a document."""
    choices = harness.doc_to_choice(document) if harness.config.doc_to_choice else None
    return harness.doc_to_text(document), choices, harness.doc_to_target(document)


@contextmanager
def other_examples(harness: Any, document: Mapping[str, Any], known: Documents | None = None) -> Iterator[None]:
    """While entered, the examples that a task of the harness draws are never the document; ``known`` are those to show
    otherwise (default: new ones)."""
    sampler = getattr(harness, "sampler", None)
    if sampler is None:  # a task that is a program draws from training items, or leaves the item out itself
        yield
        return
    harness.sampler = _OtherExamples(sampler, harness, document, known)
    try:
        yield
    finally:
        harness.sampler = sampler


def drawn_in_order(harness: Any, seed: int, count: int, key: Callable[[Any], str]) -> dict[str, Documents]:
    """The examples that a run of the harness with this ``fewshot_random_seed`` shows with each item that it asks, by
    the item's key: it draws for one item after the other."""
    sampler = getattr(harness, "sampler", None)
    if sampler is None or count == 0:
        return {}
    sampler.set_rnd(seed)
    leaves_out = harness.fewshot_cfg.split == harness.config.test_split
    found: dict[str, Documents] = {}
    for document in harness.eval_docs:
        found.setdefault(key(document), sampler.sample(n=count, eval_doc=document if leaves_out else None))
    return found


def draws_from(harness: Any, is_item: Callable[[Any], bool]) -> bool:
    """Whether some examples are items, and the harness itself does not leave out the one that is asked."""
    sampler = getattr(harness, "sampler", None)
    if sampler is None:
        return False
    split = harness.fewshot_cfg.split
    leaves_out = split is not None and split == harness.config.test_split
    return not leaves_out and any(map(is_item, sampler.fewshot_docs()))
