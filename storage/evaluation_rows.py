"""Evaluations, item scores and recipes as rows, and back to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.engine import Connection, Row

from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores
from mergefront.storage.database import insert_missing
from mergefront.storage.json_text import from_json
from mergefront.storage.schema import item_scores, item_sets


class StoredRecipes(Mapping[str, Recipe]):
    """Recipes by their digests, each made of its JSON text when it is first asked for."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self._made: dict[str, Recipe] = {}

    def __getitem__(self, digest: str) -> Recipe:
        if digest not in self._made:
            self._made[digest] = Recipe.from_json(from_json(self._texts[digest]))
        return self._made[digest]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


def writable(given: str) -> str:
    """Text that every database takes: servers refuse the character 0 and half a surrogate pair."""
    return given.replace("\0", "\\0").encode("utf-8", "replace").decode()


def write_items(connection: Connection, evaluation_id: int, task: str, items: ItemScores) -> None:
    """Keep one task's item scores with an evaluation."""
    digest = sha256("\n".join(items.ids).encode()).hexdigest()[:32]
    this_set = select(item_sets.c.digest).where(item_sets.c.digest == digest)
    # Locked, so that nobody who deletes a study takes it for unused.
    while connection.execute(this_set.with_for_update(read=True, key_share=True)).first() is None:
        insert_missing(connection, item_sets, {"digest": digest, "ids": list(items.ids)})
    connection.execute(
        item_scores.insert().values(
            evaluation_id=evaluation_id,
            task=task,
            item_set=digest,
            scores=_pack(items.scores),
            margins=None if items.margins is None else _pack(items.margins),
        )
    )


def read_evaluation(connection: Connection, row: Row[Any], sets: dict[str, tuple[str, ...]] | None) -> Evaluation:
    """The evaluation of a row of ``mergefront_evaluations``.

    Its items are read where there are ``sets``: the identifiers by digest that were read before, completed here.
    """
    items = {} if sets is None else _read_items(connection, row.id, sets)
    return Evaluation(row.scores, row.standard_errors, items, row.seconds, row.cost, row.details)


def _read_items(connection: Connection, evaluation_id: int, sets: dict[str, tuple[str, ...]]) -> dict[str, ItemScores]:
    items: dict[str, ItemScores] = {}
    query = select(item_scores).where(item_scores.c.evaluation_id == evaluation_id)
    for entry in connection.execute(query).all():
        if entry.item_set not in sets:
            ids = connection.execute(select(item_sets.c.ids).where(item_sets.c.digest == entry.item_set)).scalar_one()
            sets[entry.item_set] = tuple(ids)
        margins = None if entry.margins is None else _unpack(entry.margins)
        items[entry.task] = ItemScores(sets[entry.item_set], _unpack(entry.scores), margins)
    return items


def _pack(values: tuple[float, ...]) -> bytes:
    return np.asarray(values, dtype="<f8").tobytes()


def _unpack(data: bytes) -> tuple[float, ...]:
    return tuple(np.frombuffer(data, dtype="<f8").tolist())
