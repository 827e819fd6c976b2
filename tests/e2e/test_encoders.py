"""Classifiers and embedders from study file to exported folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_tokenizer import SENTENCES
from tiny_encoders import make_encoder, make_word_pieces, save, write_sentence_modules

import mergefront as mf
from mergefront.adapters.local.reading.reader import TextReader
from mergefront.results.export import export_candidate
from mergefront.study.check import check_study

EMBED = {
    "find": {"type": "embed", "metric": "ndcg", "queries": "q.jsonl", "corpus": "d.jsonl", "qrels": "r.jsonl", "k": 3},
    "alike": {"type": "embed", "metric": "spearman", "path": "pairs.jsonl"},
}
CLASSIFY = {
    "right": {"type": "classify", "path": "classes.jsonl"},
    "macro": {"type": "classify", "path": "classes.jsonl", "metric": "macro_f1"},
}


def write_study(folder: Path, kinds: dict[str, Any], tasks: dict[str, Any], **more: Any) -> Path:
    """A study over folders that are made of ``kinds``, the first of them the base."""
    tokenizer = make_word_pieces()
    for seed, (name, model) in enumerate(kinds.items()):
        made = model if not isinstance(model, str) else make_encoder(model, seed)
        save(made, tokenizer, folder / name)
    texts = [text[:30] for text in SENTENCES]
    rows = {
        "q": [{"_id": f"q{n}", "text": text[:14]} for n, text in enumerate(texts)],
        "d": [{"_id": f"d{n}", "text": text} for n, text in enumerate(texts)],
        "r": [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 1} for n in range(len(texts))],
        "pairs": [
            {"sentence1": one, "sentence2": other, "score": abs(i - j)}
            for i, one in enumerate(texts)
            for j, other in enumerate(texts[:i])
        ],
        "classes": [
            {"text": f"{one} {other}", "label": (i + j) % 2}
            for i, one in enumerate(texts)
            for j, other in enumerate(texts)
        ],
    }
    for name, several in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, several)))
    base, *experts = kinds
    merge = {"method": "task_arithmetic", "base_model": base, "models": {name: name for name in experts}}
    content = {
        "study": "encoders",
        "merge": {**merge, "space": {"weight": [0, 1]}},
        "tasks": tasks,
        "objectives": list(tasks),
        "search": {"sampler": "random", "evaluations": 6},
        **more,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_an_embedder_is_searched_and_exported_with_what_pools_it(tmp_path: Path) -> None:
    """Also from a base that has the head it was trained with, which experts saved by sentence-transformers lack."""
    path = write_study(tmp_path, {"base": "BertForMaskedLM", "one": "BertModel", "two": "BertModel"}, EMBED)
    for name in ("base", "one", "two"):
        write_sentence_modules(tmp_path / name, {"pooling_mode_cls_token": True}, prompts={"query": "Question: "})
    checked = check_study(path)
    assert checked.problems == []
    assert any("by cls, normalised, prompts query" in note for note in checked.notes)
    study = mf.run(path)
    assert not study.failures() and len({one.scores["find"] for one in study.candidates()}) > 2
    chosen = study.candidates()[-1]
    out = export_candidate(study, chosen, tmp_path / "out")
    for file in ("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"):
        assert (out / file).read_text() == (tmp_path / "base" / file).read_text()
    from transformers import AutoModel, AutoTokenizer

    reader = TextReader(AutoModel.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out), out)
    items = [item.prompt for item in mergefront_task(study, "find").items("search")]
    documents = [text[:30] for text in SENTENCES]
    likeness = reader.embed(items, "query") @ reader.embed(documents, "document").T
    right = [next(place for place, text in enumerate(documents) if text.startswith(item)) for item in items]
    ranks = (likeness > likeness[np.arange(len(items)), right][:, None]).sum(1)
    expected = [1 / np.log2(rank + 2) if rank < 3 else 0.0 for rank in ranks]
    assert chosen.scores["find"] == pytest.approx(float(np.mean(expected)))


def mergefront_task(study: mf.Study, name: str) -> Any:
    from mergefront.study.evaluators import tasks_of

    return next(task for task in tasks_of(study.definition) if task.name == name)


def test_a_classifier_is_searched_by_accuracy_and_macro_f1(tmp_path: Path) -> None:
    kind = "BertForSequenceClassification"
    path = write_study(tmp_path, {"base": kind, "one": kind, "two": kind}, CLASSIFY)
    assert check_study(path).problems == []
    study = mf.run(path)
    assert not study.failures() and len({one.scores["right"] for one in study.candidates()}) > 1
    row = study.ledger.find(study.candidates()[0].recipe)
    assert row is not None and 0 < row.standard_errors["macro"] < 0.5


CLASSIFIER = "BertForSequenceClassification"


@pytest.mark.parametrize(
    ("kinds", "tasks", "more", "said"),
    [
        (
            (CLASSIFIER, make_encoder(CLASSIFIER, num_labels=3)),
            CLASSIFY,
            {},
            "has a head of 3 classes, the base's has 2 (classifier.bias), and a merge has one head",
        ),
        (("BertModel", "BertModel"), CLASSIFY, {}, "a head of classes (...ForSequenceClassification)"),
        (
            (CLASSIFIER, CLASSIFIER),
            {"macro": CLASSIFY["macro"]},
            {"racing": True},
            "macro_f1 is a score of all items together, and racing asks them in parts",
        ),
        (
            ("BertModel", "BertModel"),
            {"alike": EMBED["alike"]},
            {"racing": True},
            "spearman is a score of all pairs together, and racing asks them in parts",
        ),
        (
            ("BertModel", "BertModel"),
            {"find": EMBED["find"]},
            {"backend": {"type": "llama_server", "url": "http://localhost:1"}},
            "type embed asks the live model, which backend llama_server has not; use local",
        ),
        (
            ("Qwen3ForCausalLM", "Qwen3ForCausalLM"),
            {"find": EMBED["find"], "loss": {"type": "jsonl", "path": "d.jsonl", "metric": "loss"}},
            {},
            "type embed reads models without their heads, which type jsonl needs",
        ),
    ],
)
def test_what_cannot_be_asked_is_a_line_of_check(
    kinds: tuple[Any, Any], tasks: dict[str, Any], more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    problems = check_study(
        write_study(tmp_path, dict(zip(("base", "one"), kinds, strict=True)), tasks, **more)
    ).problems
    assert any(said in problem for problem in problems), problems
