"""Stored studies that would now be scored differently are refused, and the others go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergefront.optimizer.errors import UserError
from mergefront.study.rules import SCORING, changes_since


def expect(
    reason: str | None, root: Path, expert: str, granularity: object, scoring: int = 1, method: list[str] | None = None
) -> None:
    """A study of rules ``scoring`` with this expert is refused for ``reason``, or goes on where that is None."""
    space = {"base_model": "base", "models": {"x": expert}, "method": method or [], "granularity": granularity}
    expect_of(reason, root, scoring, space, {"type": "local"})


def expect_of(
    reason: str | None, root: Path, scoring: int, space: dict[str, object], evaluator: dict[str, object]
) -> None:
    stored = {
        "scoring": scoring,
        "space": space,
        "evaluator": evaluator,
        "sampler": {"name": "sobol"},
        "objectives": [{"name": "maths"}],
    }
    if reason is None:
        assert changes_since("s", stored, root) == []
        return
    with pytest.raises(UserError, match=reason):
        changes_since("s", stored, root)


@pytest.mark.parametrize(
    ("dtype", "lora", "refused"),
    [(torch.bfloat16, True, True), (torch.bfloat16, False, False), (torch.float32, True, False)],
)
def test_a_study_that_rounded_task_vectors_of_loras_is_refused(
    tmp_path: Path, dtype: torch.dtype, lora: bool, refused: bool
) -> None:
    (tmp_path / "base").mkdir()
    save_file({"model.norm.weight": torch.ones(4, dtype=dtype)}, tmp_path / "base" / "model.safetensors")
    (tmp_path / "expert").mkdir()
    if lora:
        (tmp_path / "expert" / "adapter_config.json").write_text(json.dumps({"r": 2}))
        save_file({}, tmp_path / "expert" / "adapter_model.safetensors")
    expect("LoRAs were rounded to bfloat16" if refused else None, tmp_path, "expert", "global")


@pytest.mark.parametrize(("granularity", "refused"), [({"blocks": 2}, True), ("global", False)])
def test_a_study_whose_final_norm_changes_blocks_is_refused(tmp_path: Path, granularity: object, refused: bool) -> None:
    (tmp_path / "base").mkdir()
    save_file({"model.embedding_norm.weight": torch.ones(4)}, tmp_path / "base" / "model.safetensors")
    expect("embedding_norm" if refused else None, tmp_path, "base", granularity)


@pytest.mark.parametrize(
    ("config", "names", "refused"),
    [
        ({}, ("A.weight", "B.weight"), False),
        ({}, ("A.weight", "B.weight", "B.bias"), True),
        ({"init_lora_weights": "pissa"}, ("A.weight", "B.weight"), True),
        ({"fan_in_fan_out": True}, ("A.weight", "B.weight"), True),
    ],
)
def test_a_study_whose_loras_were_not_merged_as_peft_merges_them_is_refused(
    tmp_path: Path, config: dict[str, object], names: tuple[str, ...], refused: bool
) -> None:
    (tmp_path / "base").mkdir()
    save_file({"q_proj.weight": torch.ones(2, 2), "q_proj.bias": torch.ones(2)}, tmp_path / "base/model.safetensors")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "adapter_config.json").write_text(json.dumps({"r": 2, **config}))
    tensors = {f"q_proj.lora_{name}": torch.ones(2) if "bias" in name else torch.ones(2, 2) for name in names}
    save_file(tensors, tmp_path / "x" / "adapter_model.safetensors")
    expect("not merged as peft merges it" if refused else None, tmp_path, "x", "global")


@pytest.mark.parametrize(
    ("compat", "dtype", "refused"),
    [("mergekit", torch.bfloat16, True), (None, torch.bfloat16, False), ("mergekit", torch.float32, False)],
)
def test_a_study_that_kept_the_dtype_of_whole_tensors_of_loras_is_refused(
    tmp_path: Path, compat: str | None, dtype: torch.dtype, refused: bool
) -> None:
    tensors = {"q_proj.weight": torch.ones(2, 2, dtype=dtype), "q_proj.bias": torch.ones(2, dtype=dtype)}
    for folder, config, found in (("base", {}, tensors), ("x", {"r": 2}, {"q_proj.bias": torch.ones(2)})):
        (tmp_path / folder).mkdir()
        kind = "adapter_" if config else ""
        (tmp_path / folder / f"{kind}config.json").write_text(json.dumps(config))
        save_file(found, tmp_path / folder / f"{kind}model.safetensors")
    stored = {
        "scoring": 5,
        "space": {"base_model": "base", "models": {"x": "x"}, "granularity": "global"},
        "evaluator": {"type": "local", "backend": {"compat": compat}},
        "sampler": {"name": "sobol"},
        "objectives": [{"name": "maths"}],
    }
    if not refused:
        assert changes_since("s", stored, tmp_path) == []
        return
    with pytest.raises(UserError, match="whole tensors of LoRAs"):
        changes_since("s", stored, tmp_path)


@pytest.mark.parametrize(
    ("tower", "granularity", "refused"),
    [
        ("visual.blocks.0", {"blocks": 1}, True),
        ("visual.blocks.0", "global", False),
        ("decoder.layers.0", "layers", False),
    ],
)
def test_a_study_whose_blocks_moved_a_tower_is_refused(
    tmp_path: Path, tower: str, granularity: object, refused: bool
) -> None:
    (tmp_path / "base").mkdir()
    tensors = {"model.layers.0.weight": torch.ones(4), f"{tower}.weight": torch.ones(4)}
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    expect("layers of towers" if refused else None, tmp_path, "base", granularity)


@pytest.mark.parametrize(
    ("backend", "task", "refused"),
    [
        ({"type": "openai", "mode": "completions"}, {"type": "jsonl", "metric": "loss"}, True),
        ({"type": "openai", "mode": "completions"}, {"type": "jsonl", "metric": "exact_match", "margins": True}, True),
        ({"type": "openai", "mode": "completions"}, {"type": "lm_eval", "task": "x", "num_fewshot": 0}, True),
        ({"type": "ensemble", "members": {"a": {"mode": "completions"}}}, {"type": "jsonl", "metric": "loss"}, True),
        ({"type": "openai", "mode": "completions"}, {"type": "jsonl", "metric": "exact_match"}, False),
        ({"type": "openai", "mode": "chat"}, {"type": "jsonl", "metric": "exact_match"}, False),
        ({"type": "vllm"}, {"type": "jsonl", "metric": "loss"}, False),
    ],
)
def test_a_study_scored_by_the_places_that_an_endpoint_states_is_refused(
    tmp_path: Path, backend: dict[str, object], task: dict[str, object], refused: bool
) -> None:
    stored = {
        "scoring": 2,
        "space": {"base_model": None, "models": {"a": "a"}, "granularity": "global"},
        "evaluator": {"type": "server", "backend": backend, "tasks": {"t": task}},
        "sampler": {"name": "sobol"},
        "objectives": [{"name": "maths"}],
    }
    if not refused:
        assert changes_since("s", stored, tmp_path) == []
        return
    with pytest.raises(UserError, match="echoed prompts"):
        changes_since("s", stored, tmp_path)


@pytest.mark.parametrize(
    ("task", "answer", "reason"),
    [
        ({"metric": "numeric"}, "4", "numbers are read by one grammar"),
        ({"metric": "f1"}, "four", "normalised answers"),
        ({"metric": "exact_match", "normalise": True}, "four", "normalised answers"),
        ({"metric": "exact_match", "normalise": False}, "four", None),
        ({"metric": "exact_match", "normalise": False}, "vier Stühle", "one character"),
        ({"metric": "exact_match", "normalise": False}, "東京", None),
        ({"metric": "loss"}, "vier Stühle", None),
        ({"metric": "code"}, "four", None),
    ],
)
def test_a_study_whose_answers_are_compared_otherwise_now_is_refused(
    tmp_path: Path, task: dict[str, object], answer: str, reason: str | None
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "2 + 2 =", "answer": answer}))
    tasks = {"t": {"type": "jsonl", "path": "rows.jsonl", **task}}
    space: dict[str, object] = {"base_model": None, "models": {"a": "a"}, "granularity": "global"}
    expect_of(reason, tmp_path, 2, space, {"type": "server", "tasks": tasks})


@pytest.mark.parametrize(
    ("method", "tensor", "refused"),
    [
        (["ties", "wudi"], "model.layers.0.mlp.experts.down_proj", True),
        (["tsv_m"], "model.layers.0.mlp.experts.down_proj", True),
        (["ties", "isotropic"], "model.layers.0.mlp.experts.down_proj", False),
        (["widen"], "model.layers.0.conv1d.weight", False),
    ],
)
def test_a_study_that_merged_stacked_experts_as_vectors_is_refused(
    tmp_path: Path, method: list[str], tensor: str, refused: bool
) -> None:
    (tmp_path / "base").mkdir()
    save_file({tensor: torch.ones(2, 3, 4)}, tmp_path / "base" / "model.safetensors")
    expect("each expert's matrix is merged" if refused else None, tmp_path, "x", "global", 4, method)


def test_a_study_whose_sampler_cannot_take_its_objectives_is_refused(tmp_path: Path) -> None:
    stored = {"scoring": SCORING, "sampler": {"name": "gp"}, "objectives": [{"name": name} for name in "abcd"]}
    with pytest.raises(UserError, match=r"cannot go on: sampler 'gp' does up to 3 objectives.*mm-mo.*warm_start"):
        changes_since("s", stored, tmp_path)


@pytest.mark.parametrize(("method", "refused"), [("tsv_m", True), ("wudi", False)])
def test_a_study_whose_singular_vectors_were_shortened_is_refused(tmp_path: Path, method: str, refused: bool) -> None:
    (tmp_path / "base").mkdir()
    save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(3, 4)}, tmp_path / "base" / "model.safetensors")
    expect("keep their length" if refused else None, tmp_path, "x", "global", 6, [method])
