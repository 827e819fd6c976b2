"""A merge with what it lost of each expert: LoRAs that peft loads, and a router that sends prompts to the right one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from local_study import write_local_study
from safetensors.torch import load_file
from tiny_models import TINY_MODELS, move

import mergefront as mf
from mergefront.adapters.merging.output.directory import write_merge
from mergefront.adapters.merging.output.lost import write_lost
from mergefront.adapters.merging.output.plan import plan_recipe
from mergefront.cli.application import cli
from mergefront.results.twin.router import Router, fit

RANK = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, and its uniform average exported with LoRAs beside it."""
    root = tmp_path_factory.mktemp("twin")
    path = write_local_study(root, "twin")
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "objectives": ["sorting", "choices"]}))
    mf.run(path)
    where = ["--storage", str(root / "mergefront.db"), "--out", str(root / "t")]
    made = CliRunner().invoke(cli, ["export", "twin", *where, "--trial", "3", "--twin", str(RANK)])
    assert made.exit_code == 0, made.output
    assert "tensors equal the merge that was scored" in made.output
    return root


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.arange(8).unsqueeze(0)).logits


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_merge_and_a_lora_are_the_expert_cut_to_the_rank(folder: Path, name: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged, expert = (load_file(folder / where / "model.safetensors") for where in ("t", name))
    expected = AutoModelForCausalLM.from_pretrained(folder / "t")
    kept, everything = 0.0, 0.0
    state = expected.state_dict()
    for tensor, stored in merged.items():
        lost = (expert[tensor] - stored).double()
        everything += float(lost.square().sum())
        if ".layers." in tensor and lost.dim() == 2:
            left, values, right = np.linalg.svd(lost.numpy())
            cut = torch.from_numpy(left[:, :RANK] * values[:RANK] @ right[:RANK])
            state[tensor].copy_(stored + cut)
            kept += float(cut.square().sum())
    merge = AutoModelForCausalLM.from_pretrained(folder / "t")
    loaded = PeftModel.from_pretrained(merge, folder / "t" / "experts" / name)
    torch.testing.assert_close(logits(loaded), logits(expected), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(expected), logits(AutoModelForCausalLM.from_pretrained(folder / "t")), atol=1e-2)
    card = (folder / "t" / "experts" / "README.md").read_text()
    assert f"| {name} | {kept / everything:.1%} |" in card and "--lora-modules one=one two=two" in card


@pytest.mark.parametrize("kind", ["deepseek_v3", "falcon_h1"])
def test_every_lora_that_is_written_is_one_that_peft_loads(tmp_path: Path, kind: str) -> None:
    """Peft takes LoRAs of a mixture's dense layers for its experts', without a word, and refuses those of Mamba's."""
    from peft import PeftModel

    tiny = TINY_MODELS[kind]
    for seed, name in enumerate(("base", "a", "b")):
        model = tiny.make()
        move(model, seed)
        model.save_pretrained(tmp_path / name)
    experts = {name: tmp_path / name for name in ("a", "b")}
    recipe = mf.Recipe("linear", {name: name for name in experts}, {"weight": 0.5})
    plan = plan_recipe(recipe, tmp_path / "base", experts, allow=("*",))
    (tmp_path / "t").mkdir()
    write_merge(plan, tmp_path / "t")
    lost = write_lost(plan, tmp_path / "t", tmp_path / "t" / "experts", 1000)
    loaded = PeftModel.from_pretrained(type(model).from_pretrained(tmp_path / "t"), tmp_path / "t" / "experts" / "a")
    written, expert = loaded.merge_and_unload().state_dict(), type(model).from_pretrained(experts["a"]).state_dict()
    targets = json.loads((tmp_path / "t" / "experts" / "a" / "adapter_config.json").read_text())["target_modules"]
    assert len(targets) > 8 and 0.1 < lost["a"].kept < 0.9
    for target in targets:
        torch.testing.assert_close(written[f"{target}.weight"], expert[f"{target}.weight"], atol=1e-4, rtol=1e-4)


def test_a_report_has_the_merge_alone_the_oracle_and_the_router_against_size(folder: Path) -> None:
    """Every item of the oracle is asked of its task's expert, every item of the router of the one that it chooses."""
    from mergefront.adapters.local.backend import LocalBackend
    from mergefront.study.evaluators import tasks_of

    result = CliRunner().invoke(
        cli, ["report", "twin", "--storage", str(folder / "mergefront.db"), "--twin", str(folder / "t"), "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["twin"]
    rows = {row["name"]: row for row in found["rows"]}
    router = Router.read(folder / "t" / "router.json")
    study = mf.load_study("twin", storage=f"sqlite:///{folder}/mergefront.db")
    anchors = {one.anchor: one for one in study.anchors()}
    assert set(router.tasks) == {"sorting", "choices"}
    for task in tasks_of(study.definition):
        if task.name not in router.tasks:
            continue
        own = {name: anchors[f"expert {name}"].scores[task.name] for name in ("one", "two")}
        best = (min if task.direction == "minimize" else max)(own, key=lambda name: own[name])
        assert router.tasks[task.name] == best
        backend = LocalBackend.from_checkpoints(folder / "t", {"lora": folder / "t" / "experts" / best}, device="cpu")
        for weight, row in ((0.0, "merge alone"), (1.0, "with the task's expert")):
            recipe = mf.Recipe("task_arithmetic", {"lora": "lora"}, {"weight[lora]": weight}, "base")
            with backend.apply(recipe) as model:
                score = task.score(model, task.items("report")).mean
            assert rows[row]["scores"][task.name]["score"] == pytest.approx(score, abs=1e-5)
        routed = rows["with the router's choice"]["scores"][task.name]["score"]
        if found["router_right"][task.name] == 1.0:
            assert routed == rows["with the task's expert"]["scores"][task.name]["score"]
    bytes_of = {name: len((folder / "t" / name).read_bytes()) for name in ("model.safetensors",)}
    assert rows["merge alone"]["megabytes"] == pytest.approx(bytes_of["model.safetensors"] / 1e6, rel=0.05)
    assert rows["merge alone"]["megabytes"] < rows["with the task's expert"]["megabytes"]
    assert rows["with the task's expert"]["megabytes"] < rows["the experts themselves"]["megabytes"]


def test_a_router_learns_what_tells_prompts_apart_and_says_how_often_it_is_right(tmp_path: Path) -> None:
    """One class ten times as common, features of very different size; items it has not seen say how good it is."""
    rng = np.random.default_rng(0)
    labels = np.array(["common"] * 400 + ["rare"] * 40 + ["third"] * 60)
    points = rng.standard_normal((500, 6)) * np.array([1e-3, 10.0, 1.0, 1.0, 1.0, 1.0])
    points[labels == "rare", 0] += 5e-3
    points[labels == "third", 1] -= 60.0
    order = rng.permutation(500)
    router = fit(points[order], list(labels[order]), {"a": "common"}, "embedding")
    assert router.accuracy > 0.97
    router.write(tmp_path / "router.json")
    again = Router.read(tmp_path / "router.json")
    assert again == router
    fresh = rng.standard_normal((3, 6)) * np.array([1e-3, 10.0, 1.0, 1.0, 1.0, 1.0])
    fresh[1, 0] += 6e-3
    fresh[2, 1] -= 60.0
    assert again.choose(fresh) == ["common", "rare", "third"]
    noise = fit(rng.standard_normal((300, 6)), list(rng.choice(["common", "rare"], 300)), {}, "embedding")
    assert 0.4 < noise.accuracy < 0.6, "an accuracy on the items that it was fitted on would be higher"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--twin", "2", "--config-only"], "leave --config-only and --as-lora out"),
        (["--twin", "0"], "0 is not in the range"),
        (["--twin", "2", "--trial", "1"], "the merge is expert 'one'"),
    ],
)
def test_what_has_no_twin_is_refused_and_nothing_is_left(folder: Path, options: list[str], message: str) -> None:
    out = folder / "none"
    where = ["export", "twin", "--storage", str(folder / "mergefront.db"), "--out", str(out)]
    refused = CliRunner().invoke(cli, [*where, *([] if "--trial" in options else ["--trial", "3"]), *options])
    assert refused.exit_code == 2 and message in refused.output
    assert not out.exists()
