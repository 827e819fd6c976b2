"""A task over vectors of texts: what a search finds with them, or how like each other pairs are.

metric: ndcg
    queries  {"_id": "q1", "text": "What is a merge?"}
    corpus   {"_id": "d7", "text": "A merge is ...", "title": "Merges"}          the title is optional
    qrels    {"query-id": "q1", "corpus-id": "d7", "score": 1}
metric: spearman
    path     {"sentence1": "A man plays.", "sentence2": "Someone plays.", "score": 4.2}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mergefront.adapters.language_model import LanguageModel, text_model
from mergefront.adapters.tasks.encoders.rows import content_hash, number_of, read_rows, text_of
from mergefront.adapters.tasks.encoders.text_task import TextTask
from mergefront.adapters.tasks.encoders.whole_scores import ndcg, spearman_items
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.options import DEFAULT_REPORT_FRACTION, Count, Fraction, ItemOptions, PathText
from mergefront.adapters.tasks.task import Splits, limited, split_items
from mergefront.optimizer.arrays import Array
from mergefront.optimizer.scores.evaluation import ItemScores
from mergefront.optimizer.sections import read_section


class EmbedOptions(ItemOptions):
    """Vectors of texts."""

    metric: Literal["ndcg", "spearman"] = Field(
        description="`ndcg` of a search, or `spearman`: the rank correlation of likeness and score of pairs"
    )
    queries: PathText | None = Field(None, description="the file of queries (`ndcg`)")
    corpus: PathText | None = Field(None, description="the file of documents (`ndcg`)")
    qrels: PathText | None = Field(None, description="the file of which documents are relevant, graded (`ndcg`)")
    k: Count = Field(10, description="places of a ranking that count (`ndcg`)")
    path: PathText | None = Field(None, description="the file of pairs (`spearman`)")
    report_fraction: Fraction = Field(
        DEFAULT_REPORT_FRACTION, description=ItemOptions.model_fields["report_fraction"].description
    )


_FILES = {"ndcg": ("queries", "corpus", "qrels"), "spearman": ("path",)}


@dataclass(frozen=True)
class RetrievalTask(TextTask):
    """nDCG of every query over one corpus; a query is an item.

    ``relevant`` has by query (its item's id) the grades of documents, ``queries`` its text, ``corpus`` the texts of the
    documents by their ids.
    """

    name: str
    k: int
    splits: Splits = field(repr=False)
    queries: Mapping[str, str] = field(repr=False)
    corpus: Mapping[str, str] = field(repr=False)
    relevant: Mapping[str, Mapping[str, float]] = field(repr=False)
    whole: str = ""

    def score(self, model: LanguageModel, items: Sequence[Item]) -> ItemScores:
        reader = text_model(model)
        documents = reader.embed(list(self.corpus.values()), "document")
        queries = reader.embed([self.queries[item.id] for item in items], "query")
        names = list(self.corpus)
        scores = []
        kind = reader.similarity
        if kind == "cosine":
            queries, documents, kind = _unit(queries), _unit(documents), "dot"
        for item, query in zip(items, queries, strict=True):
            # One query at a time: all of them against a large corpus would not fit into memory.
            grades, found = self.relevant[item.id], similarities(query[None], documents, kind)[0]
            best = np.argsort(-found, kind="stable")[: self.k]
            scores.append(ndcg([grades.get(names[place], 0.0) for place in best], list(grades.values()), self.k))
        return ItemScores(tuple(item.id for item in items), tuple(scores))


@dataclass(frozen=True)
class SimilarityTask(TextTask):
    """Spearman's correlation of the likeness of pairs with their scores; a pair is an item (see ``whole_scores``)."""

    name: str
    splits: Splits = field(repr=False)
    pairs: Mapping[str, tuple[str, str, float]] = field(repr=False)
    whole: str = "spearman is a score of all pairs together"

    def score(self, model: LanguageModel, items: Sequence[Item]) -> ItemScores:
        reader = text_model(model)
        asked = [self.pairs[item.id] for item in items]
        vectors = reader.embed([text for first, second, _ in asked for text in (first, second)], "")
        likeness = np.array(
            [similarities(pair[:1], pair[1:], reader.similarity)[0, 0] for pair in np.split(vectors, len(asked))]
        )
        return ItemScores(
            tuple(item.id for item in items), tuple(spearman_items(likeness, np.array([score for *_, score in asked])))
        )


def similarities(first: Array, second: Array, kind: str) -> Array:
    """How like each other vectors are (``n x d`` and ``m x d`` -> ``n x m``), larger is more alike.

    ``kind`` is sentence-transformers': "cosine", "dot", or minus a distance, "euclidean" or "manhattan".
    """
    if kind == "euclidean":
        return np.asarray(-np.sqrt(((first[:, None] - second[None]) ** 2).sum(-1)))
    if kind == "manhattan":
        return np.asarray(-np.abs(first[:, None] - second[None]).sum(-1))
    if kind == "cosine":
        first, second = _unit(first), _unit(second)
    return np.asarray(first @ second.T)


def _unit(vectors: Array) -> Array:
    """Vectors (``n x d``) of length 1."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def read_embed_task(
    name: str, config: Mapping[str, Any], folder: Path, seed: int
) -> tuple[RetrievalTask | SimilarityTask | None, list[str]]:
    """The task of one study file entry, and everything that is wrong with its options and files."""
    options, problems = read_section(EmbedOptions, config)
    if options is None:
        return None, problems
    needed = _FILES[options.metric]
    given = {key for files in _FILES.values() for key in files if getattr(options, key) is not None}
    idle = sorted(given - set(needed))
    problems += [f"metric {options.metric} has no use for {', '.join(idle)}; remove it"] if idle else []
    missing = [key for key in needed if key not in given]
    if missing:
        return None, [*problems, f"metric {options.metric} needs {', '.join(missing)}"]
    if options.metric == "spearman":
        return _similarity(name, options, folder, seed, problems)
    return _retrieval(name, options, folder, seed, problems)


def _similarity(
    name: str, options: EmbedOptions, folder: Path, seed: int, problems: list[str]
) -> tuple[SimilarityTask, list[str]]:
    read = read_rows(folder / str(options.path), str(options.path), _pair)
    items = [Item(key, first, (second,)) for key, (first, second, _) in read.rows.items()]
    splits, too_few = _split(items, options, seed)
    problems += [*read.problems, *(too_few if not read.problems else ())]
    if not read.problems and min(len(splits["search"]), len(splits["report"]) or 2) < 2:
        problems.append(f"{options.path}: a rank correlation needs at least 2 pairs for search and report each")
    return SimilarityTask(name, splits, read.rows), problems


def _retrieval(
    name: str, options: EmbedOptions, folder: Path, seed: int, problems: list[str]
) -> tuple[RetrievalTask, list[str]]:
    files = {key: str(getattr(options, key)) for key in _FILES["ndcg"]}
    queries = read_rows(folder / files["queries"], files["queries"], _text)
    corpus = read_rows(folder / files["corpus"], files["corpus"], _text)
    qrels = read_rows(folder / files["qrels"], files["qrels"], _grade)
    problems += [*queries.problems, *corpus.problems, *qrels.problems]
    relevant: dict[str, dict[str, float]] = {}
    strangers: dict[str, str] = {}
    for query, document, grade in qrels.rows.values():
        if query not in queries.rows:
            strangers.setdefault("query", f"there is no query {query!r} in {files['queries']}")
        elif document not in corpus.rows:
            strangers.setdefault("document", f"there is no document {document!r} in {files['corpus']}")
        elif grade > 0:
            relevant.setdefault(query, {})[document] = grade
    if not queries.problems and not corpus.problems:
        problems += [f"{files['qrels']}: {stranger}" for stranger in strangers.values()]
    # A query without a relevant document has no ranking that is better than another one.
    items = {
        query: Item(content_hash(queries.rows[query], sorted(grades.items())), queries.rows[query], ())
        for query, grades in relevant.items()
    }
    known: dict[str, str] = {}
    for query, item in items.items():
        if (other := known.setdefault(item.id, query)) != query:
            problems.append(f"{files['queries']}: {other!r} and {query!r} ask the same; remove one of them")
    splits, too_few = _split(list(items.values()), options, seed)
    if not items and not problems:
        problems.append(f"{files['qrels']}: no query has a relevant document")
    problems += too_few if not problems else ()
    return RetrievalTask(
        name,
        options.k,
        splits,
        {items[query].id: queries.rows[query] for query in items},
        corpus.rows,
        {items[query].id: grades for query, grades in relevant.items()},
    ), problems


def _split(items: Sequence[Item], options: EmbedOptions, seed: int) -> tuple[Splits, list[str]]:
    search, report = split_items(items, options.report_fraction, seed)
    return limited({"search": search, "report": report}, options)


def _text(content: Mapping[str, Any]) -> tuple[str, str]:
    text, title = text_of(content, "text"), content.get("title")
    return text_of(content, "_id", "id"), f"{title} {text}" if isinstance(title, str) and title.strip() else text


def _grade(content: Mapping[str, Any]) -> tuple[str, tuple[str, str, float]]:
    query, document = text_of(content, "query-id"), text_of(content, "corpus-id")
    return f"{query}\n{document}", (query, document, number_of(content, "score") if "score" in content else 1.0)


def _pair(content: Mapping[str, Any]) -> tuple[str, tuple[str, str, float]]:
    first, second = text_of(content, "sentence1"), text_of(content, "sentence2")
    score = number_of(content, "score")
    return content_hash(first, second, score), (first, second, score)
