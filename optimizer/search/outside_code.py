"""Code of others runs within a search: whatever it does or returns is an evaluation that can be kept, or a failure."""

from __future__ import annotations

import json
import math
import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np

from mergefront.optimizer.errors import EvaluationError, SearchStoppedError, UserError
from mergefront.optimizer.foreign_text import LONGEST_NAME, NAMES, is_name
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores
from mergefront.optimizer.search.ledger import Failure, bounded

UNSCORED = "unscored"
"""The detail that holds what was reported beside the objectives and is no finite number."""
_LONGEST_NOTE = 1000
_LONGEST_DETAIL = 100_000


@contextmanager
def undisturbed() -> Iterator[None]:
    """The working directory and the global random states are afterwards what they were before."""
    folder = None
    with suppress(OSError):  # somebody removed it
        folder = os.getcwd()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    torch_state = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        if folder is not None:
            with suppress(OSError):
                os.chdir(folder)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if torch is not None:
            torch.set_rng_state(torch_state)


def failure_of(error: BaseException) -> Failure | None:
    """Why a candidate failed; None for what ends the search: an interrupt, or an error that every candidate would meet.

    ``sys.exit`` in an evaluator is a failure: whoever wrote it meant this evaluation, not the search.
    """
    if isinstance(error, SystemExit):
        return Failure("SystemExit", f"the evaluator called sys.exit({error.code!r})")
    if isinstance(error, (UserError, SearchStoppedError)) or not isinstance(error, Exception):
        return None
    kind = error.kind if isinstance(error, EvaluationError) else type(error).__name__
    try:
        said = " ".join(str(error).split())
    except Exception:
        said = ""
    return Failure(kind, said or "no message")


def storable(evaluation: Any) -> Evaluation:
    """What was returned as it can be kept: finite numbers as floats, other reports beside them as notes.

    Raises ``EvaluationError`` for what is no ``Evaluation`` or has items that are no scores.
    """
    if not isinstance(evaluation, Evaluation):
        raise EvaluationError(f"the evaluator returned {type(evaluation).__name__}, no Evaluation", kind="wrong type")
    for name, items in evaluation.items.items():
        if not is_name(str(name)):
            raise EvaluationError(f"items of {str(name)[:LONGEST_NAME]!r}: {NAMES}", kind="wrong name")
        if not isinstance(items, ItemScores):
            raise EvaluationError(f"items of {name!r} are {type(items).__name__}, no ItemScores", kind="wrong type")
    scores, unscored = _numbers(evaluation.scores)
    details = dict(evaluation.details)
    if unscored:
        details[UNSCORED] = unscored
    return replace(
        evaluation,
        scores=scores,
        standard_errors=_numbers(evaluation.standard_errors)[0],
        seconds=_numbers(evaluation.seconds)[0],
        cost=_numbers(evaluation.cost)[0],
        details=_plain(details),
    )


def _numbers(given: Mapping[Any, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Finite numbers by name, and short notes of the rest."""
    numbers: dict[str, float] = {}
    others: dict[str, Any] = {}
    for name, value in given.items():
        try:
            number = float(value)
        except Exception:
            others[str(name)] = _note(value)
            continue
        if math.isfinite(number):
            numbers[str(name)] = number
        else:
            others[str(name)] = str(number)
    return numbers, others


def _note(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value if value is None else bounded(value, _LONGEST_NOTE)
    try:
        return bounded(repr(value), _LONGEST_NOTE)
    except Exception:
        return f"a {type(value).__name__}"


def _plain(details: Mapping[str, Any]) -> dict[str, Any]:
    """Details as JSON keeps them, long texts cut; what it does not know becomes a note."""
    kept: dict[str, Any] = {}
    for name, value in details.items():
        try:
            text = json.dumps(value)
            is_long = isinstance(value, str) or len(text) > _LONGEST_DETAIL
            kept[str(name)] = bounded(value if isinstance(value, str) else text) if is_long else value
        except Exception:
            kept[str(name)] = _note(value)
    return kept
