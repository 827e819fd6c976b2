"""Which model it is that a server serves under a name.

Names stay when models are exchanged: a new checkpoint on a local server, another revision at a provider. So a few fixed
questions are asked before a study begins, and what was answered is kept with the study and tells its cached answers
from those of other models. A study that goes on keeps its answers' key; where the model answers otherwise by then, its
owner is told.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergefront.adapters.remote.http.cache import ResponseCache, request_key
from mergefront.optimizer.errors import EvaluationError, SearchStoppedError

QUESTIONS = ("The capital of France is", "Once upon a time there was", "Count from one to ten in French:")
ANSWER_TOKENS = 16
SAME_MODEL = 0.02
"""Nats by which two runs of one model may differ (threads, batches, types of the key-value cache)."""
STRAYED = 0.1
"""Two answers of one merge may differ by this share of what an expert changes (batches change last digits)."""
COMPARED = 5
"""Most likely tokens of a distribution that are compared."""

Distribution = Mapping[Any, float]
"""Log-probabilities of the most likely next tokens, by token id."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """Whose answers are cached: ``server`` names them, ``number`` is the model's among those that were found under this
    name; None in studies that were begun before models were told apart by their answers."""

    server: str
    number: int | None


class Recognition:
    """Tells the models of one backend apart from others of their names.

    ``known`` is what a stored study keeps of each model, None where no study is continued. ``served`` is what a study
    that begins now has to keep.
    """

    def __init__(self, known: Mapping[str, Mapping[str, Any]] | None) -> None:
        self._known = known
        self.served: dict[str, dict[str, Any]] = {}

    def identify(
        self,
        name: str,
        server: str,
        cache: ResponseCache,
        ask: Callable[[], list[Any]],
        *,
        model: str = "",
        always: bool = False,
    ) -> Identity:
        """Whose answers those of a model at ``server`` are, which the study calls ``name`` and the server ``model``.

        ``ask`` gives the model's answers to fixed questions, as texts, numbers and distributions.
        ``always``: studies of earlier versions told models of this kind apart as well, and kept nothing for it. A
        model of a study that is continued may be out of reach: its kept answers are still there.
        """
        known = None if self._known is None else self._known.get(name)
        if self._known is not None and known is None and not always:
            return Identity(server, None)
        try:
            seen = ask()
        except (EvaluationError, SearchStoppedError) as error:
            if known is None:
                raise
            _log.warning("it is not known whether %s is the model that the study began with: %s", name, error)
        else:
            if known is None:
                known = {"server": server, "answers": seen}
            elif not same_answers(known["answers"], seen):
                _log.warning(
                    "%s at %s answers otherwise than when the study began: another model may be served under this name "
                    "by now, or it answers one question in several ways. Answers that are kept stay as they are; begin "
                    "a study of another name to score the model that is there",
                    name or "the model",
                    server,
                )
        self.served[name] = dict(known)
        return Identity(known["server"], _number(f"{known['server']} {model}".strip(), known["answers"], cache))


def are_same(one: Mapping[str, Mapping[str, Any]], two: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether two studies keep the same models, by what they answered."""
    return set(one) == set(two) and all(same_answers(one[name]["answers"], two[name]["answers"]) for name in one)


def _number(identity: str, answers: list[Any], cache: ResponseCache) -> int:
    """Which model of this name it is: the first whose stored answers are the same."""
    number = 0
    while True:
        key = request_key(identity, "FINGERPRINT", str(number), None)
        stored = cache.find(key)
        if stored is None:
            cache.keep(key, identity, json.dumps(answers), (0, 0, 0))
            return number
        if same_answers(json.loads(stored), answers):
            return number
        number += 1


def same_answers(one: Any, two: Any) -> bool:
    """Whether two lists of answers are one model's: equal texts, numbers and distributions within ``SAME_MODEL``."""
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(same_answers, one, two))
    if isinstance(one, dict) and isinstance(two, dict):
        return difference(one, two) <= SAME_MODEL
    if isinstance(one, float) and isinstance(two, float):
        return abs(one - two) <= SAME_MODEL
    return bool(one == two)


def furthest(one: Sequence[float], two: Sequence[float]) -> float:
    """The largest difference between log-probabilities of the same texts."""
    return max((abs(first - second) for first, second in zip(one, two, strict=True)), default=0.0)


def difference(one: Distribution, two: Distribution) -> float:
    """The largest difference (nats) of the most likely tokens' log-probabilities; a token that the other
    distribution does not list counts with the least that it lists."""

    def directed(first: Distribution, second: Distribution) -> float:
        least = min(second.values())
        likely = sorted(first, key=lambda token: -first[token])[:COMPARED]
        return max(abs(first[token] - second.get(token, least)) for token in likely)

    return max(directed(one, two), directed(two, one))
