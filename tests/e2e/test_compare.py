"""`compare` on real (tiny) models: LoRAs and whole checkpoints, then a search and an export of what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from local_study import write_local_study
from safetensors.torch import load_file, save_file

import mergefront as mf
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.search.attributes import REUSED
from mergefront.results.export import export_candidate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two whole experts and three LoRAs, with a study file of each."""
    made = tmp_path_factory.mktemp("compare")
    path = write_local_study(made, "whole")
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(made / "base" / "model.safetensors").items()}
    for seed, name in enumerate(("x", "y", "z")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for module in (name.removesuffix(".weight") for name in shapes if "q_proj" in name or "up_proj" in name):
            rows, columns = shapes[f"{module}.weight"]
            tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(2, columns, generator=generator) * 0.2
            tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, 2, generator=generator) * 0.2
        (made / name).mkdir()
        save_file(tensors, made / name / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"]}
        (made / name / "adapter_config.json").write_text(json.dumps(config))
    content = yaml.safe_load(path.read_text())
    content["study"] = "loras"
    content["merge"] |= {"method": "lora_cat", "models": {name: name for name in ("x", "y", "z")}}
    (made / "loras.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return made


def test_loras_are_compared_by_every_method_and_by_subsets(folder: Path) -> None:
    methods = ["lora_cat", "lora_svd", "tsv_m", "isotropic", "isotropic_cts", "subspace_boosting", "model_stock"]
    found = mf.compare(folder / "loras.yaml", methods=methods, subsets=3, progress=False)
    labels = {row.label: row for row in found.rows}
    assert set(methods) <= set(labels) and not found.failed and not found.left_out
    assert [task.name for task in found.tasks] == ["sorting", "side", "choices"]
    assert all(row.seconds is not None and row.forgets is not None for row in found.rows)
    if Path("/proc/self/clear_refs").exists():
        assert all(row.peak_bytes and row.peak_bytes > 10_000_000 for row in found.rows)
    assert {share.subsets for share in found.shares} == {3}
    again = mf.compare(folder / "loras.yaml", methods=methods, subsets=3, progress=False)
    assert again == found


def test_a_search_after_it_evaluates_no_anchor_and_an_export_is_the_merge(folder: Path, tmp_path: Path) -> None:
    path = folder / "whole.yaml"
    found = mf.compare(path, methods=["isotropic", "ties", "lora_cat"], report_items=True, progress=False)
    assert found.split == "report" and "whole checkpoint" in found.left_out["lora_cat"]
    study = mf.run(path, progress=False)
    reused = [trial.number for trial in study.optuna.get_trials(deepcopy=False) if REUSED in trial.user_attrs]
    assert reused == [anchor.number for anchor in study.anchors()] == list(range(5))
    assert set(study.ledger.evaluations("report")) >= {anchor.digest for anchor in study.anchors()}

    comparison = mf.load_study("whole/compare", storage=f"sqlite:///{folder}/mergefront.db")
    trial = next(row.trial for row in found.rows if row.label == "isotropic")
    candidate = next(one for one in comparison.candidates() if one.number == trial)
    export_candidate(comparison, candidate, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    engine = MergeEngine(folder / "base", {name: folder / name for name in ("one", "two")})
    for name, tensor in engine.iterate(candidate.recipe):
        if name in merged:
            assert torch.allclose(merged[name], tensor, atol=1e-6), name
