"""One task of the harness: its documents, the requests about them, and what its metric makes of the answers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from mergefront.adapters.language_model import Chat, Message
from mergefront.adapters.tasks.lm_eval.examples import Documents, drawn_in_order, draws_from, other_examples
from mergefront.adapters.tasks.lm_eval.loading import quiet
from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.seeding import derive_seed

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Prompting:
    """How the prompts of items are made.

    ``fewshot_seed`` is the ``fewshot_random_seed`` of the harness by which examples are drawn, for one item after the
    other in the order of the data; None: for each item by itself, by the study's ``seed``. ``template`` is the name or
    the text of a chat template ("": the model's usual one) that writes them, the examples as turns of their own where
    they are ``multiturn``; None: they are texts.
    """

    seed: int = 0
    fewshot_seed: int | None = None
    system_instruction: str | None = None
    template: str | None = None
    multiturn: bool = False


@dataclass
class Member:
    """One task of the harness with one of its metrics, behind one of its filters.

    ``documents`` are those that are items, by the id of the item. Requests are built once and reused for every merge.
    """

    name: str
    harness: Any
    metric: str
    filter: str | None
    few_shot: int
    prompting: Prompting
    documents: dict[str, Any] = field(default_factory=dict, repr=False)
    chats: dict[str, Chat] = field(default_factory=dict, repr=False)
    """The conversations that prompts of the harness stand for, where a template writes them."""
    _requests: dict[str, list[Instance]] = field(default_factory=dict, repr=False)
    _examples: dict[str, Documents] | None = field(default=None, repr=False)

    @property
    def generates(self) -> bool:
        return bool(self.harness.OUTPUT_TYPE == "generate_until")

    @property
    def settings(self) -> dict[str, Any]:
        """How answers are generated; nothing where none are."""
        return dict(self.harness.config.generation_kwargs or {}) if self.generates else {}

    @property
    def direction(self) -> Direction:
        return "maximize" if self.harness.higher_is_better().get(self.metric, True) else "minimize"

    @property
    def needs_greedy(self) -> bool:
        """Whether the metric asks whether continuations are the likeliest ones."""
        kind = self.harness.OUTPUT_TYPE
        return (kind == "loglikelihood" and self.metric == "acc") or self.metric == "exact_match"

    @property
    def may_show_items(self) -> bool:
        """Whether the harness would draw an item as an example for its own prompt."""
        known = set(map(document_id, self.documents.values()))
        return self.few_shot > 0 and draws_from(self.harness, lambda one: document_id(one) in known)

    def requests(self, item: str) -> list[Instance]:
        """The harness' requests about one item; its examples do not depend on what was asked before."""
        if item not in self._requests:
            document = self.documents[item]
            prompting = self.prompting
            more: dict[str, Any] = {}
            templated: dict[str, Any] = {}
            if prompting.system_instruction is not None:
                more["system_instruction"] = prompting.system_instruction
            if prompting.template is not None:
                templated = {"apply_chat_template": True, "chat_template": self._keep}
                more |= {**templated, "fewshot_as_multiturn": prompting.multiturn}
            with quiet():
                known = self._known_examples().get(document_id(document))
                self.harness.set_fewshot_seed(derive_seed(prompting.seed, "examples", document_id(document)) % 2**32)
                prefix = self.harness.doc_to_prefix(document)
                with other_examples(self.harness, document, known):
                    context = self.harness.fewshot_context(
                        document, num_fewshot=self.few_shot, gen_prefix=prefix, **more
                    )
                labels = (self.name, 0, 1)
                made = self.harness.construct_requests(doc=document, ctx=context, metadata=labels, **templated)
            self._requests[item] = made if isinstance(made, list) else [made]
        return self._requests[item]

    def _keep(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """In the place of a model's chat template, which no task knows: a text that stands for the conversation."""
        text = json.dumps(list(messages))
        turns = tuple(Message(message["role"], message["content"]) for message in messages)
        optional = self.prompting.system_instruction is None
        self.chats[text] = Chat(turns, self.prompting.template or "", as_text=True, optional_system=optional)
        return text

    def _known_examples(self) -> Mapping[str, Documents]:
        if self._examples is None:
            seed = self.prompting.fewshot_seed
            self._examples = {} if seed is None else drawn_in_order(self.harness, seed, self.few_shot, document_id)
        return self._examples

    def accepted(self, item: str) -> tuple[str, ...]:
        """The texts that an item's answer is compared with, as far as the harness says."""
        target = self.harness.doc_to_target(self.documents[item])
        several = target if isinstance(target, list) else [target]
        return tuple(text for text in several if isinstance(text, str) and text)

    def scores(self, answered: Mapping[str, Sequence[Instance]]) -> dict[str, float]:
        """The metric of each item, from its answered requests."""
        flat = [instance for several in answered.values() for instance in several]
        if not flat:
            return {}
        self.harness._instances = flat
        self.harness.apply_filters()
        chosen = self.filter or next(iter(flat[0].filtered_resps))
        return {
            item: float(
                self.harness.process_results(self.documents[item], [one.filtered_resps[chosen] for one in several])[
                    self.metric
                ]
            )
            for item, several in answered.items()
        }


def document_id(document: Any) -> str:
    """A hash of the content: 16 hexadecimal characters."""
    content = json.dumps(document, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:16]


def documents(harness: Any, split: str, limit: float | None) -> dict[str, Any]:
    """Documents of the harness' split by their ids, each content once.

    The first ``limit`` of it, or below 1 that share, as the harness counts.
    """
    if not getattr(harness, f"has_{split}_docs")():
        return {}
    every = getattr(harness, f"{split}_docs")()
    if limit is not None:
        every = islice(every, math.ceil(len(every) * limit) if limit < 1 else int(limit))
    found: dict[str, Any] = {}
    for document in every:
        found.setdefault(document_id(document), document)
    return found


def measures(harness: Any) -> dict[str, list[str | None]]:
    """The metrics that are means over items, each with the task's filters (None where it has no list of them)."""
    filters = [one.name for one in getattr(harness, "_filters", [])] or [None]
    return {name: list(filters) for name, aggregate in harness.aggregation().items() if _is_mean(aggregate)}


def chosen_measure(harness: Any, task: str, metric: str | None, filter: str | None) -> tuple[str, str | None]:
    """The metric and the filter that items are scored by; without a wish, the task's first. Raises ``UserError``."""
    known = measures(harness)
    if metric is None and not known:
        raise UserError(f"task {task!r} has no metric that is a mean over its items; such a task cannot be searched on")
    listed = f"; it has {', '.join(listed_measures(harness))}"
    chosen = metric or next(iter(known))
    if chosen not in known:
        if chosen in harness.aggregation():
            raise UserError(f"metric {chosen!r} of task {task!r} is no mean over its items{listed}")
        raise UserError(f"task {task!r} has no metric {chosen!r} {did_you_mean(chosen, known)}{listed}")
    filters = [one for one in known[chosen] if one is not None]
    if filter is not None and filter not in filters:
        raise UserError(f"task {task!r} has no filter {filter!r} {did_you_mean(filter, filters)}{listed}")
    return chosen, filter


def listed_measures(harness: Any) -> Iterator[str]:
    """Every ``metric,filter`` of a task, as the harness writes them."""
    for metric, filters in measures(harness).items():
        yield from (metric if one is None else f"{metric},{one}" for one in filters)


def _is_mean(aggregate: Any) -> bool:
    from lm_eval.api.metrics import mean

    return aggregate is mean or getattr(aggregate, "__name__", "") == "mean"
