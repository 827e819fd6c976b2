"""Tasks over classes and vectors: the published scores, errors that hold, files named by line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from mergefront.adapters.counted_model import CountedModel
from mergefront.adapters.tasks.encoders.embed import similarities
from mergefront.adapters.tasks.encoders.whole_scores import macro_f1_items, ndcg, spearman_items
from mergefront.adapters.tasks.task_types import build_task, problems_of
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.scores.evaluation import ItemScores


def write(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows))


class Reader:
    """Reads a class, or a vector, off the text."""

    labels = ("bad", "good", "mixed")
    similarity = "cosine"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def classify(self, texts: Sequence[tuple[str, str]]) -> list[tuple[float, ...]]:
        return [tuple(float(text.count(name)) for name in self.labels) for text, _ in texts]

    def embed(self, texts: Sequence[str], role: str) -> np.ndarray:
        self.asked += [(text, role) for text in texts]
        return np.array([[text.count(letter) + 0.1 for letter in "abcde"] for text in texts])


def test_ndcg_is_trec_evals() -> None:
    """Gains 3, 2, 3, 0, 1, 2 of a ranking whose best order is 3, 3, 3, 2, 2, 2, 1 (Järvelin and Kekäläinen)."""
    gains = [3, 2, 3, 0, 1, 2]
    dcg = 3 + 2 / np.log2(3) + 3 / 2 + 1 / np.log2(6) + 2 / np.log2(7)
    ideal = 3 + 3 / np.log2(3) + 3 / 2 + 2 / np.log2(5) + 2 / np.log2(6) + 2 / np.log2(7)
    assert ndcg(gains, [1, 2, 2, 2, 3, 3, 3], 6) == pytest.approx(dcg / ideal)
    assert ndcg([0, 1], [1], 1) == 0 and ndcg([1], [1], 10) == 1


def test_a_rank_correlation_of_all_pairs_is_the_mean_of_its_items() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 9, 60).astype(float)
    second = first + rng.normal(0, 3, 60)
    assert np.mean(spearman_items(first, second)) == pytest.approx(float(spearmanr(first, second).statistic))
    assert np.mean(spearman_items(np.ones(5), np.arange(5.0))) == 0


def test_macro_f1_of_all_texts_is_the_mean_of_its_items() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    for _ in range(20):
        gold, predicted = rng.integers(0, 4, 30).tolist(), rng.integers(0, 5, 30).tolist()
        expected = sklearn.f1_score(gold, predicted, average="macro")
        assert np.mean(macro_f1_items(gold, predicted)) == pytest.approx(float(expected))


@pytest.mark.long
def test_the_stated_error_of_a_score_of_all_items_holds() -> None:
    """An error that is too small would call noise a better merge."""
    rng = np.random.default_rng(2)
    scores, errors = {"f1": [], "rank": []}, {"f1": [], "rank": []}
    for _ in range(300):
        gold = rng.integers(0, 3, 120)
        said = np.where(rng.random(120) < 0.7, gold, rng.integers(0, 3, 120))
        drawn = rng.normal(size=(2, 120))
        for name, items in (
            ("f1", macro_f1_items(gold.tolist(), said.tolist())),
            ("rank", spearman_items(drawn[0], drawn[0] + drawn[1])),
        ):
            scored = ItemScores(tuple(map(str, range(120))), tuple(items))
            scores[name].append(scored.mean)
            errors[name].append(scored.standard_error)
    for name in scores:
        assert np.mean(errors[name]) == pytest.approx(np.std(scores[name]), rel=0.12)


def test_texts_are_classified_by_their_likeliest_label(tmp_path: Path) -> None:
    rows = [
        {"text": "good good", "label": "good"},
        {"text": "bad", "label": 0},
        {"text": "good", "text_pair": "or not", "label": "mixed"},
        {"text": "mixed bad mixed", "label": 2},
    ]
    write(tmp_path / "c.jsonl", rows)
    entry = {"type": "classify", "path": "c.jsonl", "report_fraction": 0}
    task = build_task("c", entry, tmp_path)
    items = task.items("search")
    scored = task.score(CountedModel(Reader()), items)  # type: ignore[arg-type]
    assert dict(zip([item.prompt for item in items], scored.scores, strict=True)) == {
        "good good": 1,
        "bad": 1,
        "good": 0,
        "mixed bad mixed": 1,
    }
    assert scored.margins is not None
    assert all((margin > 0) == bool(score) for margin, score in zip(scored.margins, scored.scores, strict=True))
    macro = build_task("c", {**entry, "metric": "macro_f1"}, tmp_path).score(CountedModel(Reader()), items)  # type: ignore[arg-type]
    assert macro.mean == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    write(tmp_path / "c.jsonl", [*rows, {"text": "fine", "label": "goood"}])
    with pytest.raises(UserError, match=r"'goood' is no class.*'good'"):
        build_task("c", entry, tmp_path).score(CountedModel(Reader()), build_task("c", entry, tmp_path).items("search"))  # type: ignore[arg-type]


def test_a_search_is_scored_by_the_places_of_what_is_relevant(tmp_path: Path) -> None:
    write(tmp_path / "q.jsonl", [{"_id": "1", "text": "aab"}, {"_id": "2", "text": "ddd"}, {"_id": "3", "text": "e"}])
    write(
        tmp_path / "d.jsonl",
        [{"_id": "x", "text": "aa", "title": "b"}, {"_id": "y", "text": "ddc"}, {"_id": "z", "text": "d"}],
    )
    grades = [("1", "x", 1), ("2", "y", 2), ("2", "z", 1), ("3", "x", 0)]
    write(tmp_path / "r.jsonl", [{"query-id": q, "corpus-id": d, "score": s} for q, d, s in grades])
    files = {"queries": "q.jsonl", "corpus": "d.jsonl", "qrels": "r.jsonl"}
    task = build_task("t", {"type": "embed", "metric": "ndcg", **files, "report_fraction": 0}, tmp_path)
    items = {item.prompt: item for item in task.items("search")}
    assert set(items) == {"aab", "ddd"}, "a query that nothing answers says nothing"
    reader = Reader()
    model: Any = CountedModel(reader)
    assert task.score(model, [items["aab"]]).scores == (1.0,)
    (second,) = task.score(model, [items["ddd"]]).scores
    assert second == pytest.approx((1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3))), "z is nearer than y, which is better"
    assert [one for one in reader.asked if one[1] == "document"] == [
        ("b aa", "document"),
        ("ddc", "document"),
        ("d", "document"),
    ]


@pytest.mark.parametrize(("kind", "nearest"), [("cosine", 1), ("dot", 2), ("euclidean", 0), ("manhattan", 0)])
def test_likeness_is_compared_as_the_model_says(kind: str, nearest: int) -> None:
    found = similarities(np.array([[1.0, 1.0]]), np.array([[1.0, 0.8], [3.0, 3.0], [9.0, 0.0]]), kind)
    assert found.argmax() == nearest


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"type": "embed", "metric": "ndcg", "corpus": "d.jsonl"}, "metric ndcg needs queries, qrels"),
        ({"type": "embed", "metric": "spearman", "path": "p.jsonl", "queries": "q"}, "spearman has no use for queries"),
        ({"type": "embed", "metric": "spearman", "path": "p.jsonl"}, "p.jsonl:2: 'score' is 'high'; it must be a num"),
        ({"type": "embed", "metric": "spearman", "path": "none.jsonl"}, "none.jsonl: there is no such file"),
        ({"type": "classify", "path": "c.jsonl", "metric": "f1"}, "metric is 'f1'; it must be accuracy or macro_f1"),
        ({"type": "classify", "path": "c.jsonl"}, "c.jsonl:1: 'label' is None"),
        (
            {"type": "embed", "metric": "ndcg", "queries": "q.jsonl", "corpus": "d.jsonl", "qrels": "r.jsonl"},
            "r.jsonl: there is no document 'nowhere' in d.jsonl",
        ),
        (
            {"type": "embed", "metric": "ndcg", "queries": "twice.jsonl", "corpus": "d.jsonl", "qrels": "both.jsonl"},
            "twice.jsonl: '1' and '2' ask the same",
        ),
    ],
)
def test_what_is_wrong_is_named(entry: dict[str, Any], said: str, tmp_path: Path) -> None:
    pair = {"sentence1": "a", "sentence2": "b"}
    write(tmp_path / "p.jsonl", [{**pair, "score": 1}, {**pair, "score": "high"}])
    write(tmp_path / "c.jsonl", [{"text": "a"}])
    write(tmp_path / "q.jsonl", [{"_id": "1", "text": "a"}])
    write(tmp_path / "d.jsonl", [{"_id": "x", "text": "a"}])
    write(tmp_path / "r.jsonl", [{"query-id": "1", "corpus-id": "nowhere"}])
    write(tmp_path / "twice.jsonl", [{"_id": "1", "text": "a"}, {"_id": "2", "text": "a"}])
    write(tmp_path / "both.jsonl", [{"query-id": one, "corpus-id": "x"} for one in "12"])
    assert any(said in problem for problem in problems_of(entry, tmp_path)), problems_of(entry, tmp_path)
