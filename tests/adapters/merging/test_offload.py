"""Weights that do not fit are streamed, and a merge is the same to the last bit wherever they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mergefront.adapters.merging import engine as engine_module
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.offload.memory import free_memory
from mergefront.adapters.merging.offload.placement import BASE, Part, Room, memory_limits, place
from mergefront.adapters.merging.offload.prefetch import prefetched
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe

CPU = torch.device("cpu")
SHAPES = {
    "model.embed_tokens.weight": (320, 256),
    "model.layers.0.self_attn.q_proj.weight": (48, 256),
    "model.layers.0.mlp.up_proj.weight": (96, 256),
    "model.layers.0.input_layernorm.weight": (256,),
    "model.layers.1.mlp.up_proj.weight": (96, 256),
    "model.norm.weight": (256,),
}
ENTRIES = sum(rows * (columns[0] if columns else 1) for rows, *columns in SHAPES.values())
EXPERTS = ("a", "b", "c")
LORAS = ("l", "m")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three experts and two LoRAs in bfloat16, as files."""
    made = tmp_path_factory.mktemp("offload")
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    base = {name: draw(*shape).bfloat16() for name, shape in SHAPES.items()}
    for name in ("base", *EXPERTS):
        (made / name).mkdir()
        tensors = base if name == "base" else {k: (t.float() + draw(*t.shape) / 8).bfloat16() for k, t in base.items()}
        save_file(tensors, made / name / "model.safetensors", metadata={"format": "pt"})
    for name in LORAS:
        (made / name).mkdir()
        settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["up_proj"]}
        (made / name / "adapter_config.json").write_text(json.dumps(settings))
        factors = {}
        for layer in (0, 1):
            prefix = f"base_model.model.model.layers.{layer}.mlp.up_proj.lora_"
            factors |= {f"{prefix}A.weight": draw(4, 256), f"{prefix}B.weight": draw(96, 4)}
        save_file(factors, made / name / "adapter_model.safetensors", metadata={"format": "pt"})
    return made


def recipe(method: str, number: int) -> Recipe:
    """The ``number``-th candidate of a method: three experts and a LoRA where it takes so many, or two LoRAs."""
    declared = METHODS[method]
    names = list(LORAS) if declared.lora else [*EXPERTS, "l"][: declared.max_models or 4]
    params: dict[str, Any] = {}
    for parameter in declared.parameters:
        if parameter.name in ("weight", "metric", "scale"):
            params |= {f"{parameter.name}[{name}]": 0.3 + 0.1 * number + 0.05 * at for at, name in enumerate(names)}
        elif parameter.name == "density":
            params |= {f"density[{name}]": 0.4 + 0.1 * number for name in names}
        elif parameter.name == "t":
            params["t"] = 0.2 + 0.1 * number
    if declared.parameter("rescale"):
        params["rescale"] = "l1"
    return Recipe(method, {name: name for name in names}, params, "base", seed=number // 2)


def merges(folder: Path, method: str, **options: Any) -> tuple[list[dict[str, torch.Tensor]], list[float]]:
    """Three candidates of a method, one after the other: live tensors and norms."""
    names = recipe(method, 0).models
    engine = MergeEngine(folder / "base", {name: folder / name for name in names}, **options)
    live = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    made, norms = [], []
    for number in range(3):
        norms.append(engine.merge_into(recipe(method, number), live).delta_l1)
        made.append({name: tensor.clone() for name, tensor in live.items()})
    return made, norms


def assert_same(folder: Path, method: str, held: dict[str, Any], streamed: dict[str, Any]) -> None:
    (first, norms), (second, again) = merges(folder, method, **held), merges(folder, method, **streamed)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in SHAPES)
    assert norms == again


@pytest.mark.cases(8)
@pytest.mark.parametrize("room", ["nothing", "some"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_merges_the_same_bits_wherever_the_weights_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, room: str
) -> None:
    monkeypatch.setattr(engine_module, "_ON_CPU", 1 << 18)  # several portions of these small tensors
    limits = {"cpu": 0 if room == "nothing" else 3 * ENTRIES}
    assert_same(folder, method, {"resident": True}, {"max_memory": limits})
    if METHODS[method].consensus is not None:
        assert_same(folder, method, {"resident": True, "compile": False}, {"max_memory": limits, "compile": False})


@pytest.mark.parametrize("options", [{"task_vectors": "int8"}, {"task_vectors": 8}, {"compat_mergekit": True}], ids=str)
def test_so_do_compressed_task_vectors_and_mergekits_arithmetic(folder: Path, options: dict[str, Any]) -> None:
    for method in ("ties", "linear"):
        assert_same(folder, method, {"resident": True, **options}, {"max_memory": {"cpu": 0}, **options})


def test_what_is_held_stays_within_the_bound_and_the_rest_is_read_from_its_file(folder: Path) -> None:
    limit = 3 * ENTRIES
    engine = MergeEngine(folder / "base", {name: folder / name for name in EXPERTS}, max_memory={"cpu": limit})
    held = engine.placement
    assert held.base == {("cpu", "device"): 2 * ENTRIES}
    assert held.experts["cpu", "device"] + held.experts["cpu", "disk"] == 6 * ENTRIES
    assert 2 * ENTRIES + held.experts["cpu", "device"] <= limit
    assert held.streamed == held.experts["cpu", "disk"]


def test_beside_an_accelerator_the_hosts_memory_comes_before_disk() -> None:
    card = torch.device("cuda:1")
    parts = [
        Part(("w", BASE), card, 10),
        Part(("w", "a"), card, 10),
        Part(("w", "b"), card, 10),
        Part(("v", "b"), CPU, 9),
    ]
    placed = place(parts, Room([card], {"cuda:1": 12, "cpu": 15}))
    assert list(placed.tiers.values()) == ["device", "host", "disk", "disk"]
    assert placed.streamed == 29


def test_a_bound_is_a_size_for_all_or_one_for_each_device() -> None:
    assert memory_limits("24GB", [CPU]) == {"cpu": 24 * 10**9}
    assert memory_limits({"cpu": "1.5GiB", "cuda:0": 7}, [CPU]) == {"cpu": 3 << 29, "cuda:0": 7}
    assert memory_limits(None, [CPU]) == {}
    for wrong in ("much", {"gpu": "1GB"}, {"cuda": "1GB"}, "-1GB", "3 pounds"):
        with pytest.raises(UserError, match="max_memory"):
            memory_limits(wrong, [CPU])


def test_without_a_bound_half_of_what_is_free_is_used() -> None:
    assert not Room([CPU], {}).take(CPU, int(free_memory(CPU) * 0.6))
    assert Room([CPU], {}).take(CPU, int(free_memory(CPU) * 0.4))


def test_one_portion_is_fetched_ahead_and_no_more() -> None:
    fetched: list[int] = []
    ahead = prefetched(range(4), lambda one: fetched.append(one) or one * one)
    assert next(ahead) == (0, 0)
    assert [result for _, result in ahead] == [1, 4, 9]
    assert fetched == [0, 1, 2, 3]


def test_what_cannot_be_read_is_told_by_its_name_when_its_turn_comes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    engine = MergeEngine(folder / "base", {"a": tmp_path / "a"}, max_memory={"cpu": 0})
    live = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    with pytest.raises(UserError, match=r"expert 'a': tensor 'model.norm.weight' holds NaN"):
        engine.merge_into(Recipe("linear", {"a": "a"}, {"weight[a]": 1.0}, "base"), live)
