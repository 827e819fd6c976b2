"""One model in two checkpoints: other names, buffers that one lacks, integers that no merge can mix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mergefront.adapters.checkpoints.compatibility import compare_models
from mergefront.adapters.checkpoints.header import read_header
from mergefront.adapters.checkpoints.names import expert_names
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.importance import layer_importance
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.recipe import Recipe

Tensors = dict[str, torch.Tensor]


def stored(path: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None) -> Path:
    path.mkdir(parents=True)
    save_file(dict(tensors), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config or {}))
    return path


def weights(seed: int, prefix: str = "model.", layers: int = 2) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    made = {f"{prefix}layers.{layer}.mlp.up_proj.weight": torch.randn(4, 4, generator=draw) for layer in range(layers)}
    return {f"{prefix}embed_tokens.weight": torch.randn(8, 4, generator=draw), **made}


def merged(base: Tensors | Path | None, experts: Mapping[str, Tensors | Path], method: str = "linear") -> Tensors:
    params = {f"weight[{name}]": 1.0 / len(experts) for name in experts}
    recipe = Recipe(method, {name: name for name in experts}, params, None if base is None else "base")
    return dict(MergeEngine(base, experts).iterate(recipe))


@pytest.mark.parametrize(
    ("base", "expert", "renamed"),
    [
        (["layers.0.w", "norm.w"], ["model.layers.0.w", "model.norm.w"], {"layers.0.w": "model.layers.0.w"}),
        (
            ["language_model.model.layers.0.w", "language_model.lm_head.w", "vision_tower.layers.0.w"],
            ["model.language_model.layers.0.w", "lm_head.w", "model.vision_tower.layers.0.w"],
            {"language_model.lm_head.w": "lm_head.w", "vision_tower.layers.0.w": "model.vision_tower.layers.0.w"},
        ),
        (
            ["model.layers.0.w", "visual.blocks.0.w"],
            ["model.language_model.layers.0.w", "model.visual.blocks.0.w"],
            {"model.layers.0.w": "model.language_model.layers.0.w"},
        ),
        (["bert.pooler.w", "cls.w"], ["pooler.w"], {"bert.pooler.w": "pooler.w"}),
        (["LayerNorm.gamma"], ["LayerNorm.weight"], {"LayerNorm.gamma": "LayerNorm.weight"}),
    ],
)  # fmt: skip
def test_prefixes_of_one_model_are_mapped(base: list[str], expert: list[str], renamed: dict[str, str]) -> None:
    assert renamed.items() <= expert_names(base, expert).items()


def test_names_are_left_alone_where_two_would_become_one() -> None:
    assert expert_names(["model.norm.w", "language_model.norm.w"], ["norm.w"]) == {}
    assert expert_names(["layers.0.a"], ["layers.0.b"]) == {}


def test_an_expert_under_other_names_is_merged_under_the_bases(tmp_path: Path) -> None:
    base, expert = weights(0, ""), weights(1, "model.")
    made = merged(stored(tmp_path / "base", base), {"e": stored(tmp_path / "e", expert)})
    assert list(made) == list(base)
    assert all(torch.equal(made[name], expert[f"model.{name}"]) for name in base)


@pytest.mark.parametrize("with_base", [True, False])
def test_a_buffer_that_one_checkpoint_lacks_is_copied_and_stops_no_merge(with_base: bool) -> None:
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.tensor([1.0, 0.1])}
    base = {**weights(0), **inv_freq} if with_base else None
    first, second = {**weights(1), **inv_freq}, weights(2)
    for experts in ({"a": first, "b": second}, {"a": first, "b": {**second, "h.0.attn.bias": torch.ones(1, 1, 3, 3)}}):
        made = merged(base, experts)
        assert torch.equal(made[next(iter(inv_freq))], next(iter(inv_freq.values())))
        name = "model.layers.1.mlp.up_proj.weight"
        assert torch.allclose(made[name], (first[name] + second[name]) / 2)


def test_buffers_of_other_values_and_sizes_stay_the_bases() -> None:
    mask = "h.0.attn.bias"
    base = {**weights(0), mask: torch.tril(torch.ones(1, 1, 3, 3)).bool(), "position_ids": torch.arange(3)}
    expert = {**weights(1), mask: torch.tril(torch.ones(1, 1, 5, 5)).bool(), "position_ids": torch.arange(5)}
    made = merged(base, {"a": expert}, "task_arithmetic")
    assert torch.equal(made[mask], base[mask]) and torch.equal(made["position_ids"], base["position_ids"])


def test_buffers_of_other_sizes_count_for_no_task_vector() -> None:
    frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq"
    base = {**weights(0), frequencies: torch.ones(2)}
    expert = {**base, frequencies: torch.ones(5), "model.layers.1.mlp.up_proj.weight": torch.ones(4, 4)}
    assert layer_importance(base, {"a": expert}) == [0.0, 1.0]
    engine = MergeEngine(base, {"a": expert}, resident=True, task_vectors="int8")
    assert engine.task_vector_errors()["a"] < 0.01


def test_layers_that_predict_further_tokens_may_be_missing_from_an_expert(tmp_path: Path) -> None:
    base = {**weights(0), "mtp.layers.0.w": torch.ones(2)}
    first, second = stored(tmp_path / "base", base), stored(tmp_path / "expert", weights(1))
    found = compare_models(read_header(first), read_header(second), "maths")
    assert not found.problems and "mtp.layers.0.w" in found.notes[0]
    assert torch.equal(merged(first, {"a": second})["mtp.layers.0.w"], torch.ones(2))


def test_an_embedding_that_encoder_and_decoder_share_may_be_stored_once_or_three_times(tmp_path: Path) -> None:
    def shared(seed: int, prefix: str, copies: bool) -> Tensors:
        embedding = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        names = ("shared.weight", *(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight") if copies else ()))
        return {f"{prefix}{name}": embedding.clone() for name in names} | {
            f"{prefix}encoder.norm.weight": torch.ones(4)
        }

    once, thrice = shared(1, "model.", False), shared(0, "", True)
    made = merged(stored(tmp_path / "base", thrice), {"e": stored(tmp_path / "expert", once)})
    assert all(torch.equal(made[name], once["model.shared.weight"]) for name in thrice if "norm" not in name)
    made = merged(once, {"e": thrice})
    assert made.keys() == once.keys() and torch.equal(made["model.shared.weight"], thrice["shared.weight"])
    with pytest.raises(UserError, match=r"ties decoder\.embed_tokens\.weight to shared\.weight, but the two differ"):
        merged(once, {"e": {**thrice, "decoder.embed_tokens.weight": torch.ones(8, 4)}})


def test_integers_that_differ_are_refused_by_name_unless_allowed(tmp_path: Path) -> None:
    base = {**weights(0), "permutation": torch.arange(4)}
    expert = {**weights(1), "permutation": torch.arange(4).flip(0)}
    first, second = (stored(tmp_path / name, made) for name, made in (("base", base), ("expert", expert)))
    (problem,) = compare_models(read_header(first), read_header(second), "maths").problems
    assert "permutation" in problem and "allow: [permutation]" in problem
    for one, other in ((first, second), (base, expert)):
        with pytest.raises(UserError, match="permutation"):
            MergeEngine(one, {"a": other})
        MergeEngine(one, {"a": other}, allow=["permutation"])
    with pytest.raises(UserError, match="permutation"):
        MergeEngine(None, {"a": base, "b": expert})
    assert not compare_models(read_header(first), read_header(first), "maths").problems


def test_an_expert_of_another_configuration_is_refused_by_the_engine_too(tmp_path: Path) -> None:
    base = stored(tmp_path / "base", weights(0), {"num_attention_heads": 4})
    expert = stored(tmp_path / "expert", weights(1), {"num_attention_heads": 2})
    with pytest.raises(UserError, match="num_attention_heads: base says 4, expert says 2"):
        MergeEngine(base, {"a": expert})
    MergeEngine(base, {"a": expert}, allow=["num_attention_heads"])
