"""By how much each item was answered right or wrong, as trials carry it to samplers.

Only of objectives that are a share of right answers, where a margin above 0 says right; kept as half-precision numbers.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.racing.joint_scores import decisive
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores
from mergefront.optimizer.search.attributes import MARGINS

MOST_ITEMS = 16_000
"""Of all objectives together. Their margins take 43 kB of a trial's row, of which MySQL holds 65."""
_LARGEST = float(np.finfo(np.float16).max)
_LEAST = float(np.finfo(np.float16).smallest_subnormal)


def kept_margins(objectives: Sequence[str], evaluation: Evaluation) -> list[dict[str, str] | None] | None:
    """Of each objective which items were asked and their margins; None where these are unknown or do not decide the
    score. None for all where that holds of each, or they are too many."""
    answered = [evaluation.items[name] for name in objectives if name in evaluation.items]
    if sum(len(items.ids) for items in answered) > MOST_ITEMS:
        return None
    kept = [_kept(evaluation.items.get(name)) for name in objectives]
    return kept if any(one is not None for one in kept) else None


def _kept(items: ItemScores | None) -> dict[str, str] | None:
    if items is None or items.margins is None:
        return None
    margins = np.asarray(items.margins, dtype=float)
    if not decisive(items.values, margins):
        return None
    # Rounding must not turn an answer: one that is right by next to nothing stays right.
    margins = np.where(items.values > 0.0, np.maximum(margins, _LEAST), np.minimum(margins, 0.0))
    written = np.clip(margins, -_LARGEST, _LARGEST).astype("<f2")
    asked = zlib.crc32("\n".join(items.ids).encode())
    return {"items": f"{asked:08x}", "margins": base64.b64encode(written.tobytes()).decode()}


def margins_of(trials: Sequence[FrozenTrial], objectives: int) -> tuple[Array | None, ...]:
    """Of each objective the margins (``n x items``) of all ``trials``; None where these did not all ask the same items,
    or one of them has none."""
    return tuple(_of_objective([_read(trial, objectives, j) for trial in trials]) for j in range(objectives))


def _of_objective(written: Sequence[Mapping[str, Any] | None]) -> Array | None:
    known = [one for one in written if one is not None]
    if not known or len(known) < len(written) or len({one["items"] for one in known}) > 1:
        return None
    rows = [np.frombuffer(base64.b64decode(one["margins"]), dtype="<f2").astype(float) for one in known]
    return np.stack(rows) if len({len(row) for row in rows}) == 1 else None


def _read(trial: FrozenTrial, objectives: int, place: int) -> Mapping[str, Any] | None:
    written = trial.system_attrs.get(MARGINS)
    if not isinstance(written, Sequence) or len(written) != objectives:
        return None
    one = written[place]
    return one if isinstance(one, Mapping) else None
