"""Experts whose configuration differs from the base's: refused or allowed; old results stay readable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import mergefront as mf
from mergefront.optimizer.errors import UserError
from mergefront.results.export import export_candidate, merge_config
from mergefront.running.report_items import report
from mergefront.storage.studies import update
from mergefront.study.check import check_study

ALLOWED = ["num_attention_heads"]


@pytest.fixture
def study_file(tmp_path: Path, random_model: Callable[..., Any], tokenizer: Any) -> Path:
    """A study of one expert that says of itself to have another number of heads and another epsilon."""
    for number, name in enumerate(("base", "maths")):
        model = random_model()
        with torch.no_grad():
            model.model.norm.weight.add_(number)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    described = tmp_path / "maths" / "config.json"
    config = json.loads(described.read_text())
    described.write_text(json.dumps({**config, "num_attention_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-3}))
    for name, texts in {"search": ("one", "two"), "report": ("three", "four")}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    path = tmp_path / "study.yaml"
    write(path)
    return path


def write(path: Path, **merge: Any) -> None:
    made = {
        "method": "task_arithmetic",
        "base_model": "base",
        "models": {"maths": "maths"},
        "space": {"weight": [0, 1]},
    }
    task = {"type": "jsonl", "path": "search.jsonl", "report": "report.jsonl", "metric": "loss"}
    study = {
        "study": "heads", "storage": f"sqlite:///{path.parent}/s.db", "merge": {**made, **merge},
        "backend": {"type": "local", "device": "cpu"}, "tasks": {"t": task}, "objectives": ["t"],
        "search": {"sampler": "random", "evaluations": 4},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(study))


def test_check_names_the_key_and_both_values_and_the_way_to_allow_it(study_file: Path) -> None:
    found = check_study(study_file)
    (problem,) = found.problems
    assert "num_attention_heads: base says 4, expert says 2" in problem
    assert "allow: [num_attention_heads]" in problem
    assert any("rms_norm_eps: base says" in note for note in found.notes)


def test_an_allowed_difference_is_stored_with_the_study(study_file: Path) -> None:
    write(study_file, allow=ALLOWED)
    study = mf.run(study_file)
    assert study.finished_count() == 4
    assert study.record.definition["allow"] == ALLOWED
    assert mf.resume("heads", storage=study.database.url, evaluations=5).finished_count() == 5


def test_a_key_that_no_model_has_is_a_mistake(study_file: Path) -> None:
    write(study_file, allow=[*ALLOWED, "num_atention_heads"])
    (problem,) = check_study(study_file).problems
    assert "num_atention_heads" in problem and "num_attention_heads" in problem.partition("config.json")[2]


def test_a_study_that_would_be_refused_now_is_readable_and_goes_on_once_it_is_allowed(
    study_file: Path, tmp_path: Path
) -> None:
    write(study_file, allow=ALLOWED)
    study = mf.run(study_file)
    older = {key: value for key, value in study.record.definition.items() if key != "allow"}
    update(study.database, study.record, definition=older)
    study.refresh()
    with pytest.raises(UserError, match="num_attention_heads"):
        mf.resume("heads", storage=study.database.url, evaluations=6)
    assert report(study) > 0
    out = export_candidate(study, study.candidates()[-1], tmp_path / "merged")
    assert json.loads((out / "config.json").read_text())["num_attention_heads"] == 4
    assert mf.run(study_file, evaluations=6).finished_count() == 6
    assert mf.resume("heads", storage=study.database.url, evaluations=7).finished_count() == 7


def test_merge_refuses_says_and_allows_as_check_does(
    study_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = [{"model": str(tmp_path / "maths"), "parameters": {"weight": 1.0}}]
    config = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), "models": models}
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="num_attention_heads: base says 4, expert says 2"):
        merge_config(tmp_path / "merge.yaml", tmp_path / "out")
    with pytest.raises(UserError, match="'num_heads_of_attention' is no key"):
        merge_config(tmp_path / "merge.yaml", tmp_path / "out", allow=[*ALLOWED, "num_heads_of_attention"])
    merge_config(tmp_path / "merge.yaml", tmp_path / "out", allow=ALLOWED)
    assert "rms_norm_eps" in caplog.text
