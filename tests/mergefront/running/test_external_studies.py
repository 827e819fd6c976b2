"""An outside harness makes a study, asks, merges with mergekit's YAML, and tells what it measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mergekit_schema
import pytest
import yaml
from click.testing import CliRunner, Result

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.storage.studies import all_studies

STUDY: dict[str, Any] = {
    "study": "skills",
    "merge": {
        "method": ["ties", "linear"],
        "base_model": "models/base",
        "models": {"maths": "models/maths", "french": "org/french-7b"},
    },
    "backend": {"type": "external"},
    "objectives": [{"name": "maths", "direction": "maximize"}, {"name": "loss", "direction": "minimize"}],
    "search": {"sampler": "random", "evaluations": 9},
}


def call(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study file; the base and a LoRA on it are there by name (nothing reads their weights), the other is a name."""
    for model in ("base", "maths"):
        (tmp_path / "models" / model).mkdir(parents=True)
    (tmp_path / "models/maths/adapter_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    write()
    return tmp_path


def write(**changes: Any) -> None:
    Path("study.yaml").write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))


def test_create_stores_and_evaluates_nothing_and_again_changes_nothing(folder: Path) -> None:
    made = call("create", "study.yaml")
    assert (made.exit_code, made.stdout) == (0, "skills\n") and "mergefront ask skills" in made.stderr
    study = mf.load_study("skills")
    assert study.finished_count() == 0 and study.ledger.workers() == [] and study.record.evaluations == 9
    assert Path("mergefront.db-wal").stat().st_size == 0, "all of it is in the one file"
    assert call("create", "study.yaml", "--evaluations", 12).exit_code == 0
    assert study.refresh().record.evaluations == 12 and mf.create("study.yaml").record.uuid == study.record.uuid


def test_create_refuses_what_check_refuses_and_another_study_of_the_name(folder: Path) -> None:
    write(objectives=["maths", "maths"], serch={})
    refused = call("create", "study.yaml")
    assert refused.exit_code == 2 and "named twice" in refused.stderr and "unknown key 'serch'" in refused.stderr
    assert not Path("mergefront.db").exists()
    write()
    call("create", "study.yaml")
    write(objectives=["maths", "loss"])
    other = call("create", "study.yaml")
    assert other.exit_code == 2
    assert "exists already with another definition" in other.stderr
    assert 'objectives[1].direction: was "minimize", is now "maximize"' in other.stderr
    assert len(all_studies(mf.load_study("skills").database)) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": {"maths": {"type": "jsonl", "path": "x.jsonl"}}}, "tasks: an outside harness scores"),
        ({"racing": True}, "racing: an outside harness scores"),
        ({"stop": {"hours": 2}}, "stop: 'mergefront ask' ends with the budget"),
        ({"merge": {"method": "linear", "models": {"maths": "models/maths"}}}, "name the model that it belongs to"),
        ({"backend": {"type": "external", "device": "cpu"}}, "backend: unknown key 'device'"),
        ({"merge": {**STUDY["merge"], "tokenizer_source": "onion"}}, "tokenizer_source"),
    ],
)
def test_check_refuses_what_no_outside_harness_can_do(folder: Path, changes: dict[str, Any], said: str) -> None:
    write(**changes)
    refused = call("check", "study.yaml")
    assert refused.exit_code == 2 and said in refused.stderr and len(refused.stderr.splitlines()) == 2


def test_what_would_score_is_refused_in_a_line_that_names_ask_and_tell(folder: Path) -> None:
    for arguments in (("run", "study.yaml"), ("run", "study.yaml", "--launcher", "ray")):
        assert call(*arguments).exit_code == 2
        assert not Path("mergefront.db").exists(), "nothing is written before it is refused"
    call("create", "study.yaml")
    commands = (("resume", "skills", "--evaluations", 20), ("worker", "skills"), ("report", "skills"))
    for arguments in (*commands, ("run", "study.yaml")):
        refused = call(*arguments)
        assert refused.exit_code == 2 and len(refused.stderr.splitlines()) == 1
        assert "mergefront ask skills" in refused.stderr and "mergefront tell skills TRIAL" in refused.stderr
    assert mf.load_study("skills").record.evaluations == 9
    assert "mergefront ask skills" in call("status", "skills").stdout


def test_ask_prints_what_mergekit_takes(folder: Path) -> None:
    call("create", "study.yaml")
    base, maths = (folder / "models" / name for name in ("base", "maths"))
    methods = set()
    for number in range(9):
        first, _, text = call("ask", "skills").stdout.partition("\n")
        assert first.startswith(f"# trial {number}")
        config = yaml.safe_load(text)
        assert mergekit_schema.faults(config) == []
        assert [entry["model"] for entry in config["models"]] == [f"{base}+{maths}", "org/french-7b"]
        assert config.get("base_model", str(base)) == str(base)
        methods.add(config["merge_method"])
        call("tell", "skills", number, "maths=0.5", f"loss={number}")
    assert methods == {"ties", "linear", "task_arithmetic"}
    nothing = call("ask", "skills")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert json.loads(call("ask", "skills", "--json").stdout) is None


def test_json_and_yaml_are_one_recipe(folder: Path) -> None:
    call("create", "study.yaml")
    asked = json.loads(call("ask", "skills", "--json", "--lease", "1e-6").stdout)
    assert asked.keys() == {"trial", "anchor", "params", "seed", "mergekit"} and asked["anchor"] == "base"
    assert yaml.safe_load(call("ask", "skills").stdout) == asked["mergekit"]


def test_told_items_are_compared_item_by_item(folder: Path) -> None:
    call("create", "study.yaml")
    study = mf.load_study("skills")
    right = {f"i{number}": number % 2 == 0 for number in range(20)}
    Path("items.json").write_text(json.dumps({"maths": right}))
    assert [asked.trial for _ in range(3) if (asked := study.ask()) is not None] == [0, 1, 2]
    assert call("tell", "skills", 0, "loss=2", "--items", "items.json").exit_code == 0
    study.tell(1, {"loss": 2.5, "maths": 1}, items={"maths": dict.fromkeys(right, 1.0)}, standard_errors={"loss": 0.1})
    told = call("tell", "skills", 2, "loss=2", "--items", "-", stdin=json.dumps({"maths": {"a": 1, "b": 0, "c": 0}}))
    assert told.exit_code == 0
    found = study.candidates()
    assert [candidate.scores["maths"] for candidate in found] == [0.5, 1.0, pytest.approx(1 / 3)]
    assert found[0].standard_errors["maths"] == pytest.approx((0.25 / 19) ** 0.5)
    assert found[1].standard_errors["loss"] == 0.1
    kept = study.ledger.evaluations(items=True)[found[0].digest].items["maths"]
    assert kept.ids == tuple(right) and kept.scores == tuple(float(value) for value in right.values())


WRONG_TELLS: tuple[tuple[tuple[str, ...], Any, str], ...] = (
    (("maths=50", "loss=1"), {"maths": {"a": 1, "b": 0}}, "the mean of its 2 items is 0.5"),
    (("loss=1",), {"maths": {}}, "tell at least one"),
    (("loss=1",), {"maths": {"a": None}}, "item 'a' of 'maths' is None"),
    (("loss=1",), {"math": {"a": 1}}, "no objective 'math'"),
    (("loss=1",), [1], "it must be a mapping"),
    (("loss=1",), {"maths": [1]}, "it must be a mapping"),
    (("loss=1",), '{"maths": {"a": 1, "a": 0}}', "'a' is there twice"),
    (("loss=1",), '{"maths": {"a": NaN}}', "not a finite number"),
    (("loss=1",), "{", "not readable as JSON"),
    (("maths=1", "loss=1", "--standard-error", "loss=-1"), None, "must be at least 0"),
    (("maths=1", "loss=1", "--standard-error", "loss=nan"), None, "not a finite number"),
    (("maths=1",), None, "'loss' was not scored"),
    (("--failed", "no", "maths=1"), None, "excludes scores"),
)


def test_wrong_tells_are_refused(folder: Path) -> None:
    call("create", "study.yaml")
    call("ask", "skills")
    for arguments, items, said in WRONG_TELLS:
        if items is not None:
            Path("items.json").write_text(items if isinstance(items, str) else json.dumps(items))
            arguments = (*arguments, "--items", "items.json")
        refused = call("tell", "skills", 0, *arguments)
        assert refused.exit_code == 2 and said in refused.stderr, arguments
    assert mf.load_study("skills").finished_count() == 0


def test_scores_of_another_harness_are_not_taken_for_ones_own(folder: Path) -> None:
    call("create", "study.yaml")
    earlier = mf.load_study("skills")
    while (asked := earlier.ask()) is not None:
        earlier.tell(asked.trial, {"maths": asked.trial / 9, "loss": 9.0 - asked.trial})
    write(study="again", warm_start=[{"study": "skills"}])
    call("create", "study.yaml")
    again = mf.load_study("again")
    assert again.finished_count() == 0 and again.candidates() == []
    best = earlier.front()[0].recipe
    asked_again = [again.ask() for _ in range(9)]
    assert best in [asked.recipe for asked in asked_again if asked is not None]


def test_blocks_of_a_base_that_is_here_are_slices(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    weights = {f"model.layers.{layer}.mlp.up_proj.weight": np.ones((2, 2), np.float32) for layer in range(4)}
    save_file(weights, folder / "models/base/model.safetensors")
    merge = {**STUDY["merge"], "method": "ties", "space": {"granularity": {"blocks": 2}}}
    write(merge=merge)
    assert call("create", "study.yaml").exit_code == 0
    study = mf.load_study("skills")
    asked = [study.ask() for _ in range(9)]
    configs = [found.mergekit for found in asked if found is not None]
    assert all(mergekit_schema.faults(config) == [] for config in configs)
    ranges = [[source["layer_range"] for source in made["sources"]] for made in configs[-1]["slices"]]
    assert ranges == [[[0, 2]] * 3, [[2, 4]] * 3]
