"""Every merge method runs in a study by its name alone: ``method: NAME`` and nothing else about coefficients."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergefront as mf
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.errors import StudyFileError, UserError
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.results.export import export_candidate

STUDY = """
study: one
merge:
  method: {method}
  base_model: base
  models: {models}
{more}
tasks:
  cloze: {{type: jsonl, path: items.jsonl, metric: loglikelihood}}
objectives: [cloze]
search: {{sampler: {sampler}, evaluations: {evaluations}}}
"""
BUILT_IN = tuple(METHODS)
QUERY = "model.layers.{}.self_attn.q_proj"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny real base, two experts of it, two LoRAs for it and four questions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("methods")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=None, initializer_range=0.3,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        for name in ("base", "first", "second"):
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
            for parameter in model.parameters():
                parameter.data.add_(0.05 * torch.randn_like(parameter))
    for seed, (name, rank) in enumerate({"lora_one": 2, "lora_two": 3}.items()):
        write_lora_folder(folder / name, rank, seed)
    items = [{"prompt": f"Sort {n}:", "choices": [f" {n}", " 38"], "answer": 0} for n in (23, 43, 83, 44)]
    (folder / "items.jsonl").write_text("\n".join(json.dumps(item) for item in items) + "\n")
    return folder


def write_lora_folder(path: Path, rank: int, seed: int) -> None:
    path.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(2 - seed):
        module = f"base_model.model.{QUERY.format(layer)}"
        tensors[f"{module}.lora_A.weight"] = torch.randn(rank, 16, generator=generator)
        tensors[f"{module}.lora_B.weight"] = 0.1 * torch.randn(16, rank, generator=generator)
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 4, "target_modules": ["q_proj"]}))


def write_study(
    workspace: Path, tmp_path: Path, method: str, evaluations: int, sampler: str = "random", **more: Any
) -> Path:
    """A study file in ``tmp_path`` beside links to the workspace's folders."""
    for entry in workspace.iterdir():
        if not (tmp_path / entry.name).exists():
            (tmp_path / entry.name).symlink_to(entry)
    declared = METHODS[method] if method in BUILT_IN else None
    of_loras = declared is not None and declared.lora is not None
    names = ["lora_one", "lora_two"] if of_loras else ["first", "second"]
    most = declared.max_models if declared is not None else None
    models = {name: name for name in names[:most]}
    lines = "\n".join(f"  {key}: {json.dumps(value)}" for key, value in more.items())
    text = STUDY.format(method=method, models=json.dumps(models), more=lines, evaluations=evaluations, sampler=sampler)
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


def anchors_of(method: str) -> int:
    return 3 if METHODS[method].max_models == 1 else 5


@pytest.mark.cases(6)
@pytest.mark.parametrize("method", BUILT_IN)
def test_the_name_alone_runs_and_exports(workspace: Path, tmp_path: Path, method: str) -> None:
    budget = anchors_of(method) + 2
    study = mf.run(write_study(workspace, tmp_path, method, budget))
    assert study.failures() == []
    tried = [candidate for candidate in study.candidates() if candidate.anchor is None]
    assert study.finished_count() == budget and {candidate.recipe.method for candidate in tried} == {method}
    assert {name.partition("[")[0] for name in study.space.searched} <= {p.name for p in METHODS[method].parameters}
    chosen = tried[-1]
    out = export_candidate(study, chosen, tmp_path / "out")
    made = load_file(out / "model.safetensors")
    experts = {name: workspace / path for name, path in chosen.recipe.models.items()}
    for name, tensor in MergeEngine(workspace / "base", experts).iterate(chosen.recipe):
        assert torch.allclose(made[name], tensor, rtol=1e-5, atol=1e-6), name


@pytest.fixture(scope="module", params=["bfloat16", "bfloat16 and float32"])
def narrow_workspace(request: pytest.FixtureRequest, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace in a narrower dtype; in one of them the second expert is stored in float32."""
    folder = tmp_path_factory.mktemp("narrow")
    for entry in workspace.iterdir():
        (folder / entry.name).symlink_to(entry)
    dtype, _, other = request.param.partition(" and ")
    for name in ("base", "first") if other else ("base", "first", "second"):
        (folder / name).unlink()
        shutil.copytree(workspace / name, folder / name)
        tensors = load_file(workspace / name / "model.safetensors")
        # What a norm is stored in is what it keeps: models hold a few tensors in float32 on purpose.
        narrow = {
            k: tensor if "input_layernorm" in k else tensor.to(getattr(torch, dtype)) for k, tensor in tensors.items()
        }
        save_file(narrow, folder / name / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.cases(6)
@pytest.mark.parametrize("method", BUILT_IN)
def test_what_is_scored_is_what_is_exported(narrow_workspace: Path, tmp_path: Path, method: str) -> None:
    """Scores of unrounded weights are no scores of the model that people download."""
    from transformers import AutoModelForCausalLM

    from mergefront.adapters.local.backend import LocalBackend

    study = mf.run(write_study(narrow_workspace, tmp_path, method, anchors_of(method) + 1))
    chosen = study.candidates()[-1]
    out = export_candidate(study, chosen, tmp_path / "out")
    shipped = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    experts = {name: narrow_workspace / path for name, path in chosen.recipe.models.items()}
    backend = LocalBackend.from_checkpoints(narrow_workspace / "base", experts, device="cpu")
    with backend.apply(chosen.recipe):
        scored = backend.model.state_dict()
    assert scored.keys() == shipped.keys()
    assert [name for name in scored if not torch.equal(scored[name], shipped[name])] == []


def test_an_expert_of_other_names_and_another_dtype_is_exported_as_it_was_scored(
    workspace: Path, tmp_path: Path
) -> None:
    """Saved without its head an expert has no name in common with the base, and its dtype counts all the same."""
    from mergefront.results.export_check import check_export

    path = write_study(workspace, tmp_path, "task_arithmetic", 5)
    for name, change in (("base", torch.Tensor.bfloat16), ("second", torch.Tensor.float)):
        (tmp_path / name).unlink()
        shutil.copytree(workspace / name, tmp_path / name)
        tensors = load_file(workspace / name / "model.safetensors")
        named = {key.removeprefix("model.") if name == "second" else key: change(t) for key, t in tensors.items()}
        save_file(named, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "first").unlink()
    shutil.copytree(tmp_path / "base", tmp_path / "first")
    study = mf.run(path)
    out = export_candidate(study, study.candidates()[-1], tmp_path / "out")
    assert "tensors equal the merge that was scored" in check_export(study, study.candidates()[-1], out)


def test_an_export_is_compared_with_what_was_scored(narrow_workspace: Path, tmp_path: Path) -> None:
    """Whoever uploads a model should know that it is the one with those scores."""
    from mergefront.results.export_check import check_export

    study = mf.run(write_study(narrow_workspace, tmp_path, "ties", 6))
    chosen = study.candidates()[-1]
    out = export_candidate(study, chosen, tmp_path / "out")
    tensors = load_file(out / "model.safetensors")
    assert check_export(study, chosen, out) == f"All {len(tensors)} tensors equal the merge that was scored."
    changed = "model.layers.1.mlp.down_proj.weight"
    save_file({**tensors, changed: -tensors[changed]}, out / "model.safetensors", metadata={"format": "pt"})
    said = check_export(study, chosen, out)
    assert said.startswith(f"1 of {len(tensors)} tensors are not those that were scored (first {changed}). ")
    found = re.search(r"cloze (\S+) \((\S+) when it was searched, 2 items\)", said)
    assert found is not None and float(found[2]) == pytest.approx(chosen.scores["cloze"], abs=1e-3)


@pytest.mark.parametrize("method", ["model_stock", "karcher", "slerp", "metrics_weighted", "lora_svd"])
def test_the_default_sampler_searches_what_these_methods_take(workspace: Path, tmp_path: Path, method: str) -> None:
    study = mf.run(write_study(workspace, tmp_path, method, anchors_of(method) + 2, sampler="mm-mo"))
    assert study.failures() == [] and study.finished_count() == anchors_of(method) + 2


@pytest.mark.parametrize(
    ("method", "models", "named"),
    [("slerp", 3, "slerp takes 2 models, not 3"), ("nearswap", 2, "nearswap takes 1 model, not 2")],
)
def test_a_wrong_number_of_models_is_said_before_anything_is_run(
    workspace: Path, tmp_path: Path, method: str, models: int, named: str
) -> None:
    path = write_study(workspace, tmp_path, method, 8)
    listed = {f"m{i}": "first" for i in range(models)}
    lines = [f"  models: {json.dumps(listed)}" if "models:" in line else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    with pytest.raises(StudyFileError, match=named):
        mf.run(path)
    assert not (tmp_path / "mergefront.db").exists()


def test_a_lora_method_names_the_expert_that_is_no_lora(workspace: Path, tmp_path: Path) -> None:
    path = write_study(workspace, tmp_path, "lora_cat", 8)
    path.write_text(path.read_text().replace('"lora_two": "lora_two"', '"second": "second"'))
    with pytest.raises(StudyFileError, match=r"merge.models.second: lora_cat merges LoRAs"):
        mf.run(path)


def test_blocks_by_importance_are_read_off_the_weights(workspace: Path, tmp_path: Path) -> None:
    space = {"weight": [0, 1], "granularity": {"blocks": 2, "boundaries": "importance"}}
    study = mf.run(write_study(workspace, tmp_path, "ties", 6, space=space))
    assert study.space.grouping.starts == (0, 1)
    assert "weight[first, block 1]" in study.space.searched
    assert len(mf.run(tmp_path / "study.yaml", evaluations=7).candidates()) == 7  # the same study, continued


def test_loras_are_weighted_by_layer_and_switched_by_module(workspace: Path, tmp_path: Path) -> None:
    space = {
        "weight": [0, 1],
        "active": {"choices": [True, False]},
        "granularity": {"blocks": 2},
        "split": ["self_attn"],
    }
    study = mf.run(write_study(workspace, tmp_path, "lora_cat", 8, space=space))
    assert study.failures() == []
    assert {"weight[lora_one, self_attn, block 1]", "active[lora_two, self_attn, block 0]"} <= set(study.space.searched)
    export_candidate(study, study.candidates()[-1], tmp_path / "out")


@pytest.mark.parametrize("method", ["lora_cat", "lora_svd"])
def test_a_merge_of_loras_is_exported_as_one_lora(workspace: Path, tmp_path: Path, method: str) -> None:
    study = mf.run(write_study(workspace, tmp_path, method, 7))
    chosen = study.candidates()[-1]
    out = export_candidate(study, chosen, tmp_path / "out", as_lora=True)
    assert (out / "adapter_config.json").exists() and not (out / "model.safetensors").exists()
    folded = MergeEngine(workspace / "base", {"out": out})
    one = Recipe("lora_cat", {"out": "out"}, {"weight[out]": 1.0}, "base")
    experts = {name: workspace / path for name, path in chosen.recipe.models.items()}
    exact = dict(MergeEngine(workspace / "base", experts).iterate(chosen.recipe))
    for name, tensor in folded.iterate(one):
        assert torch.allclose(tensor, exact[name], atol=1e-5), name
    (base,) = (candidate for candidate in study.candidates() if candidate.anchor == "base")
    with pytest.raises(UserError, match="every module of the merged LoRA is switched off"):
        export_candidate(study, base, tmp_path / "no", as_lora=True)


METHOD_FILE = '''
from typing import Annotated
from mergefront.optimizer.recipes.merge_method import Range, merge_method

@merge_method("{name}")
def merge(tensors, base, *, weight: tuple[float, ...], pull: Annotated[float, Range(0, 1)] = 0.5):
    """Part of the way towards the experts."""
    return base + pull * sum(w * (x - base) for w, x in zip(weight, tensors)) / len(tensors)
'''


def test_a_method_of_the_users_own_runs_from_its_file(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(METHOD_FILE.format(name="halfway_there"))
    path = write_study(workspace, tmp_path, "halfway_there", 7, method_files=["own.py"])
    study = mf.run(path)
    assert study.failures() == [] and {c.recipe.method for c in study.candidates() if c.anchor is None} == {
        "halfway_there"
    }
    export_candidate(study, study.candidates()[-1], tmp_path / "out")
    (tmp_path / "own.py").write_text(METHOD_FILE.format(name="halfway_there") + "# changed\n")
    with pytest.raises(UserError, match=r"own.py.*changed since the study was begun"):
        _ = mf.load_study("one", storage=f"sqlite:///{tmp_path / 'mergefront.db'}").space


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "cannot be read"),
        ("raise ValueError('no')", "ValueError: no"),
        (METHOD_FILE.format(name="ties"), "exists"),
    ],
)
def test_a_method_file_that_cannot_be_used_is_a_problem_of_the_study_file(
    workspace: Path, tmp_path: Path, content: str | None, named: str
) -> None:
    if content is not None:
        (tmp_path / "own.py").write_text(content)
    path = write_study(workspace, tmp_path, "ties", 7, method_files=["own.py"])
    with pytest.raises(StudyFileError, match=rf"merge.method_files.*own.py.*{named}|merge.method_files.*{named}"):
        mf.run(path)


@pytest.mark.parametrize("setting", ["compat: mergekit", "task_vectors: int8", "task_vectors: 4"])
def test_the_backends_arithmetic_is_a_line_of_the_study_file(workspace: Path, tmp_path: Path, setting: str) -> None:
    path = write_study(workspace, tmp_path, "ties", 6)
    path.write_text(path.read_text() + f"backend: {{type: local, {setting}}}\n")
    study = mf.run(path)
    assert study.failures() == [] and len(study.candidates()) == 6
    key, value = setting.split(": ")
    assert str(study.record.definition["evaluator"]["backend"][key]) == value
    out = export_candidate(study, study.candidates()[-1], tmp_path / "out")
    assert ("compat: mergekit" in (out / "mergekit_config.yml").read_text()) == (key == "compat")
