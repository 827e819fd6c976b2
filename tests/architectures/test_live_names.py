"""Every stored tensor is found in the live model, where transformers puts it at load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import TINY_MODELS

from mergefront.adapters.checkpoints.live_names import live_names


def saved(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def shapes(stored: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in stored.items()}


@pytest.mark.cases(18)
@pytest.mark.parametrize("kind", sorted(TINY_MODELS))
def test_every_stored_tensor_has_its_place_in_the_live_model(kind: str, tmp_path: Path) -> None:
    made = TINY_MODELS[kind].make()
    stored = saved(made, tmp_path)
    loaded = type(made).from_pretrained(tmp_path, dtype=torch.float32)
    names = live_names(loaded, shapes(stored))
    assert not (names.ignored or names.unfilled or names.misfits)
    live = loaded.state_dict()
    for name, place in names.places.items():
        assert torch.equal(place.of(live[place.live]), stored[name]), name
    for assembly in names.assemblies:
        for name, tensor in assembly.make(stored, loaded).items():
            assert torch.equal(tensor, live[name]), name
    assert {*names.places, *(name for one in names.assemblies for name in one.names)} == set(stored)
    with torch.device("meta"):
        unloaded = type(made)(type(made.config).from_pretrained(tmp_path))
    assert live_names(unloaded, shapes(stored)).places == names.places


def test_an_expert_of_a_mixture_is_rows_of_the_fused_tensor(tmp_path: Path) -> None:
    model = TINY_MODELS["qwen3_moe"].make()
    stored = shapes(saved(model, tmp_path))
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    place = live_names(model, stored).places[name]
    assert place.live == "model.layers.1.mlp.experts.gate_up_proj"
    rows, columns = stored[name]
    assert (place.shape, place.offset) == (stored[name], (2 * 2 * rows + rows) * columns)


def test_what_the_model_does_not_read_and_what_nothing_fills_is_named(tmp_path: Path) -> None:
    model = TINY_MODELS["gpt2"].make()
    stored = shapes(saved(model, tmp_path))
    stored |= {"transformer.h.0.attn.bias": (1, 1, 8, 8)}
    del stored["transformer.h.1.ln_1.weight"]
    stored["transformer.ln_f.weight"] = (3,)
    names = live_names(model, stored)
    assert names.ignored == ("transformer.h.0.attn.bias",)
    assert names.unfilled == ("transformer.h.1.ln_1.weight",)
    assert names.misfits == {"transformer.ln_f.weight": ((3,), (16,))}


def test_a_checkpoint_of_the_inner_model_fills_the_whole_one(tmp_path: Path) -> None:
    """A base saved by AutoModel has no prefix, and its head is the embedding."""
    model = TINY_MODELS["qwen3_moe"].make(tie_word_embeddings=True)
    names = live_names(model, shapes(saved(model.model, tmp_path)))
    assert not (names.ignored or names.unfilled or names.misfits)
    assert names.places["layers.0.mlp.experts.0.down_proj.weight"].live == "model.layers.0.mlp.experts.down_proj"


def test_a_module_of_no_library_has_the_stored_names() -> None:
    names = live_names(torch.nn.Linear(3, 2), {"weight": (2, 3), "mask": (1,)})
    assert (names.places["weight"].live, names.ignored, names.unfilled) == ("weight", ("mask",), ("bias",))
