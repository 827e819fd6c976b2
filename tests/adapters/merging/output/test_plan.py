"""What a merge writes: every tensor by its name, whatever kinds of layer a model has; slices only where layers fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergefront.adapters.merging.output.directory import merge_to_directory
from mergefront.optimizer.errors import UserError

HYBRID = {
    "model.embed_tokens.weight": (6, 4),
    "model.layers.0.mlp.weight": (4, 4),
    "model.layers.0.conv.weight": (4, 3),
    "model.layers.1.mlp.weight": (4, 4),
    "model.layers.1.self_attn.q_proj.weight": (4, 4),
    "model.layers.1.attn_norm.weight": (4,),
    "model.layers.2.mlp.weight": (4, 4),
    "model.layers.2.conv.weight": (4, 3),
    "model.norm.weight": (4,),
    "lm_head.weight": (6, 4),
}
TOWER = {f"visual.blocks.{layer}.mlp.weight": (4, 4) for layer in range(3)}


def write(folder: Path, shapes: Mapping[str, tuple[int, ...]], seed: int, **config: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def average(*models: str, **more: Any) -> dict[str, Any]:
    return {
        "merge_method": "linear",
        "models": [{"model": name} for name in models],
        "parameters": {"weight": 1},
    } | more


def kept(*layers: tuple[str, int, int]) -> dict[str, Any]:
    sources = [{"sources": [{"model": model, "layer_range": [first, end]}]} for model, first, end in layers]
    return {"merge_method": "passthrough", "slices": sources}


def merged(content: Mapping[str, Any], root: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    out = merge_to_directory(content, root / "out", root)
    return load_file(out / "model.safetensors"), json.loads((out / "config.json").read_text())


def test_layers_of_all_kinds_and_towers_of_any_depth_are_merged_name_by_name(tmp_path: Path) -> None:
    shapes = {**HYBRID, **TOWER, "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (3, 2)}
    first, second = (write(tmp_path / name, shapes, seed, model_type="other") for seed, name in enumerate(("a", "b")))
    made, _ = merged(average("a", "b"), tmp_path)
    assert made.keys() == shapes.keys()
    assert all(torch.allclose(made[name], (first[name] + second[name]) / 2, atol=1e-6) for name in shapes)


def test_the_configuration_stays_as_it_is_where_no_layer_is_sliced(tmp_path: Path) -> None:
    # Layer 2 predicts tokens further ahead: transformers does not count it.
    config = {"num_hidden_layers": 2, "num_nextn_predict_layers": 1, "layer_types": ["conv", "full_attention"]}
    for seed, name in enumerate(("a", "b")):
        write(tmp_path / name, HYBRID, seed, **config)
    made, written = merged(average("a", "b"), tmp_path)
    assert written == config and made.keys() == HYBRID.keys()


def test_slices_take_the_lists_of_a_nested_configuration_along_and_leave_a_tower_alone(tmp_path: Path) -> None:
    text = {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "full_attn_idxs": [1],
        "mrope_section": [1, 1, 2],
    }
    vision = {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]}
    tensors = write(tmp_path / "a", {**HYBRID, **TOWER}, 0, text_config=text, vision_config=vision)
    made, written = merged(kept(("a", 0, 3), ("a", 1, 2)), tmp_path)
    assert written["vision_config"] == vision
    assert written["text_config"] == {
        "num_hidden_layers": 4,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "full_attn_idxs": [1, 3],
        "mrope_section": [1, 1, 2],
    }
    assert {name for name in made if name.startswith("visual")} == TOWER.keys()
    assert {name for name in made if ".layers.3." in name} == {
        name.replace(".1.", ".3.") for name in HYBRID if ".layers.1." in name
    }
    assert torch.equal(made["model.layers.3.attn_norm.weight"], tensors["model.layers.1.attn_norm.weight"])


def test_layers_that_predict_further_tokens_follow_the_layers_that_a_slice_keeps(tmp_path: Path) -> None:
    tensors = write(tmp_path / "a", HYBRID, 0, num_hidden_layers=2, num_nextn_predict_layers=1)
    made, written = merged(kept(("a", 0, 1)), tmp_path)
    assert written["num_hidden_layers"] == 1
    assert torch.equal(made["model.layers.1.conv.weight"], tensors["model.layers.2.conv.weight"])
    assert not any(".layers.2." in name for name in made)


@pytest.mark.parametrize(
    ("shapes", "layers", "reasons"),
    [
        (HYBRID, [("a", 0, 1), ("b", 1, 2)], ["slice 0", "layer 0 of a", "layer 1 of b", "attn_norm.weight"]),
        (HYBRID, [("a", 0, 4), ("b", 0, 4)], ["a has 3 layers"]),
        ({"encoder.block.0.w": (2, 2), "decoder.block.0.w": (2, 2)}, [("a", 0, 1)], ["decoder.block, encoder.block"]),
    ],
)
def test_slices_say_which_layers_do_not_go_together(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], layers: list[tuple[str, int, int]], reasons: list[str]
) -> None:
    for seed, name in enumerate(("a", "b")):
        write(tmp_path / name, shapes, seed)
    sources = [{"model": model, "layer_range": [first, end]} for model, first, end in layers]
    content = {"merge_method": "linear", "slices": [{"sources": sources}], "parameters": {"weight": 1}}
    with pytest.raises(UserError) as caught:
        merge_to_directory(content, tmp_path / "out", tmp_path)
    assert all(reason in str(caught.value) for reason in reasons)


def test_layers_whose_biases_the_results_configuration_has_no_place_for_are_refused(tmp_path: Path) -> None:
    biased = HYBRID | {f"model.layers.{layer}.mlp.bias": (4,) for layer in range(3)}
    for seed, (name, shapes) in enumerate({"a": HYBRID, "b": biased}.items()):
        write(tmp_path / name, shapes, seed)
    with pytest.raises(UserError, match=r"slice 1: layer 0 of b is of no kind that a has.*mlp\.bias"):
        merge_to_directory(kept(("a", 0, 1), ("b", 0, 1)), tmp_path / "out", tmp_path)


def test_buffers_that_one_model_stores_in_its_layers_stop_no_slice(tmp_path: Path) -> None:
    older = HYBRID | {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": (2,) for layer in range(3)}
    for seed, (name, shapes) in enumerate({"a": HYBRID, "b": older}.items()):
        write(tmp_path / name, shapes, seed, num_hidden_layers=3)
    made, _ = merged(kept(("a", 0, 1), ("b", 1, 3)), tmp_path)
    assert made.keys() == HYBRID.keys()


def test_a_tied_head_that_is_stored_twice_stays_the_embedding_under_random_masks(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "a")):
        tensors = write(tmp_path / name, HYBRID, seed, tie_word_embeddings=True)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, tmp_path / name / "model.safetensors")
    models = [{"model": "a", "parameters": {"weight": 1, "density": 0.5}}]
    made, _ = merged({"merge_method": "dare_ties", "base_model": "base", "models": models}, tmp_path)
    assert made.keys() == HYBRID.keys()
    assert torch.equal(made["lm_head.weight"], made["model.embed_tokens.weight"])


def test_numbers_too_large_for_the_dtype_are_an_error_that_names_the_tensor(tmp_path: Path) -> None:
    tensors = write(tmp_path / "a", HYBRID, 0)
    tensors["model.norm.weight"].fill_(7e4)
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    with pytest.raises(UserError, match=r"'model\.norm\.weight' .* in float16"):
        merge_to_directory(average("a", out_dtype="float16"), tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_where_generation_ends_is_said_by_the_model_whose_tokenizer_is_taken(tmp_path: Path) -> None:
    for seed, (name, end) in enumerate({"base": 2, "a": [2, 7]}.items()):
        write(tmp_path / name, HYBRID, seed)
        said = {"eos_token_id": end, "temperature": 0.5 + seed}
        (tmp_path / name / "generation_config.json").write_text(json.dumps(said))
    out = merge_to_directory(average("base", "a", tokenizer_source="a"), tmp_path / "out", tmp_path)
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [2, 7], "temperature": 0.5}
