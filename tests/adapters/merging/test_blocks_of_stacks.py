"""Blocks count the layers of text. Without that, block 1 of a vision-language model would move its tower as well."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import TINY_MODELS, move

from mergefront.adapters.checkpoints.header import read_header
from mergefront.adapters.checkpoints.stacks import depths
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.output.directory import merge_to_directory
from mergefront.optimizer.errors import StudyFileError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace

STACKS = {
    "qwen2_5_vl": {"vision": 2, "language": 3},
    "llava": {"vision": 2, "language": 3},
    "clip": {"vision": 2, "language": 3},
    "t5": {"encoder": 3, "decoder": 2},
    "whisper": {"encoder": 3, "decoder": 2},
    "vit": {"language": 3},
    "llama": {"language": 3},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By architecture a folder with a base and an expert that differ in every parameter."""
    made = {}
    for kind in STACKS:
        made[kind] = tmp_path_factory.mktemp(kind)
        model = TINY_MODELS[kind].make()
        model.save_pretrained(made[kind] / "base")
        move(model, 1)
        model.save_pretrained(made[kind] / "first")
    return made


def moved(folder: Path, recipe: Recipe) -> set[str]:
    base = load_file(folder / "base" / "model.safetensors")
    engine = MergeEngine(folder / "base", {"first": folder / "first"})
    return {name for name, tensor in engine.iterate(recipe) if not torch.equal(tensor, base[name])}


def space_of(folder: Path, granularity: object, parameters: Mapping[str, object] | None = None) -> MergeSpace:
    return MergeSpace(
        {"first": str(folder / "first")},
        method="task_arithmetic",
        base_model=str(folder / "base"),
        parameters=parameters or {"weight": [0, 1]},
        granularity=granularity,  # type: ignore[arg-type]
        layers=depths(read_header(folder / "base")),
    )


@pytest.mark.parametrize("kind", STACKS)
def test_layers_are_counted_per_stack(folders: dict[str, Path], kind: str) -> None:
    assert depths(read_header(folders[kind] / "base")) == STACKS[kind]


@pytest.mark.parametrize(
    ("kind", "of_layer_1", "other"),
    [
        ("qwen2_5_vl", ["model.layers.1."], ["visual."]),
        ("llava", ["language_model.model.layers.1."], ["vision_tower.", "multi_modal_projector."]),
        ("clip", ["text_model.encoder.layers.1."], ["vision_model.", "visual_projection."]),
        ("t5", ["encoder.block.1.", "decoder.block.1."], []),
        ("vit", ["vit.encoder.layer.1."], []),
    ],
)
def test_a_layer_of_text_moves_no_layer_of_a_tower(
    folders: dict[str, Path], kind: str, of_layer_1: list[str], other: list[str]
) -> None:
    folder = folders[kind]
    space = space_of(folder, "layers")
    names = load_file(folder / "base" / "model.safetensors")
    for block, starts in ((1, of_layer_1), (0, other)):
        recipe = space.recipe({name: float(name == f"weight[first, block {block}]") for name in space.searched})
        reached = moved(folder, Recipe.from_json(recipe.to_json()))
        for start in starts:
            assert any(name.startswith(start) for name in names)
            assert {name for name in reached if name.startswith(start)} == {n for n in names if n.startswith(start)}
        if block == 1:
            assert all(name.startswith(tuple(of_layer_1)) for name in reached)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
def test_the_written_configuration_makes_the_merge_that_was_scored(
    folders: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    folder = folders[kind]
    space = space_of(folder, {"blocks": 2})
    recipe = space.recipe({"weight[first, block 0]": 0.3, "weight[first, block 1]": 0.8})
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(recipe.to_mergekit()))
    merge_to_directory(yaml.safe_load((tmp_path / "merge.yaml").read_text()), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in MergeEngine(folder / "base", {"first": folder / "first"}).iterate(recipe):
        torch.testing.assert_close(written[name], tensor, msg=name)


@pytest.mark.parametrize(
    ("kind", "blocks", "reached"),
    [
        (
            "llava",
            {"language": 2, "vision": 0},
            {
                "weight[first, vision]": ("vision_tower.", "multi_modal_projector."),
                "weight[first, language block 0]": (
                    "language_model.model.embed_tokens.",
                    "language_model.model.layers.0.",
                    "language_model.model.layers.1.",
                ),
                "weight[first, language block 1]": (
                    "language_model.model.layers.2.",
                    "language_model.model.norm.",
                    "language_model.lm_head.",
                ),
            },
        ),
        (
            "t5",
            {"encoder": 2, "decoder": 1},
            {
                "weight[first, encoder block 0]": ("shared.", "encoder.block.0.", "encoder.block.1."),
                "weight[first, encoder block 1]": ("encoder.block.2.", "encoder.final_layer_norm."),
                "weight[first, decoder block 0]": ("decoder.",),
            },
        ),
        (
            "whisper", {"decoder": 0},
            {"weight[first, encoder]": ("model.encoder.",), "weight[first, decoder]": ("model.decoder.",)},
        ),
    ],
)  # fmt: skip
def test_every_stack_has_blocks_of_its_own(
    folders: dict[str, Path], kind: str, blocks: dict[str, int], reached: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    space = MergeSpace.from_json(space_of(folders[kind], {"blocks": blocks}).to_json())
    names = load_file(folders[kind] / "base" / "model.safetensors").keys()
    assert space.searched.keys() == reached.keys()
    for chosen, starts in reached.items():
        recipe = space.recipe({name: float(name == chosen) for name in space.searched})
        assert Recipe.from_json(recipe.to_json()) == recipe == Recipe.from_mergekit(recipe.to_mergekit())
        assert moved(folders[kind], recipe) == {name for name in names if name.startswith(starts)}
    merge_to_directory(recipe.to_mergekit(), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in MergeEngine(folders[kind] / "base", {"first": folders[kind] / "first"}).iterate(recipe):
        torch.testing.assert_close(written[name], tensor, msg=name)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"visoin": 0}, "no stack 'visoin'; it has language (3 layers), vision (2 layers)"),
        ({"language": 4}, "language is 4; it must be a whole number from 0 (one coefficient) to 3"),
        ({"vision": True}, "vision is True"),
    ],
)
def test_stacks_that_are_not_there_are_named(folders: dict[str, Path], blocks: dict[str, int], message: str) -> None:
    with pytest.raises(StudyFileError, match=re.escape(message)):
        space_of(folders["llava"], {"blocks": blocks})


def test_a_range_for_one_stack(folders: dict[str, Path]) -> None:
    own = {"weight": [0, 1], "weight[first, vision]": 0.0}
    space = space_of(folders["llava"], {"blocks": {"language": 1}}, own)
    assert list(space.searched) == ["weight[first, language block 0]"]
    assert space.fixed == {"weight[first, vision]": 0.0}
    with pytest.raises(StudyFileError, match="has no coefficient of its own"):
        space_of(folders["llava"], {"blocks": 1}, own)
