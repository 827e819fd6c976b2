"""The merged tensors are those of mergekit 0.1.5 (see tests/fixtures/goldens)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.output.directory import merge_to_directory
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe

FIXTURES = Path(__file__).parents[2] / "fixtures"
GOLDENS = FIXTURES / "goldens"
CONFIGS = sorted((GOLDENS / "configs").glob("*.yaml"))
SMALL = sorted((FIXTURES / "goldens_small" / "configs").glob("*.yaml"))


def assert_close(made: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert made.keys() == expected.keys()
    for name, tensor in expected.items():
        assert float((made[name] - tensor).norm()) <= 1e-5 * float(tensor.norm()), name


@pytest.mark.parametrize("config", CONFIGS + SMALL, ids=lambda config: config.stem)
def test_merge_directory_writes_mergekits_tensors(config: Path, tmp_path: Path) -> None:
    root = config.parents[1]
    made = load_file(merge_to_directory(config, tmp_path / "out", root=root) / "model.safetensors")
    expected = load_file(root / "expected" / f"{config.stem}.safetensors")
    if "compat: mergekit" in config.read_text():
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[name], tensor) for name, tensor in expected.items())
    else:
        assert_close(made, expected)


def test_every_method_of_mergekit_has_a_golden() -> None:
    covered = {config.read_text().split("merge_method: ")[1].split()[0] for config in CONFIGS + SMALL}
    own = {"metrics_weighted", "tsv_m", "wudi", "widen"} | {
        name for name, method in METHODS.items() if method.of_matrices or method.source == "user-defined"
    }
    assert covered == {name for name, method in METHODS.items() if method.lora is None} - own


@pytest.mark.parametrize(
    "config", [c for c in CONFIGS if c.stem in ("ties", "slerp", "linear", "gradient")], ids=lambda c: c.stem
)
def test_a_recipe_read_from_the_config_merges_in_place_to_the_same(config: Path) -> None:
    recipe = Recipe.from_mergekit(config.read_text())
    if config.stem == "gradient":
        recipe = Recipe(
            **{
                **{key: getattr(recipe, key) for key in ("method", "models", "params", "base_model")},
                "grouping": type(recipe.grouping)(layers=4),
            }
        )
    base = GOLDENS / (recipe.base_model or "models/base")
    engine = MergeEngine(base, {name: GOLDENS / path for name, path in recipe.models.items()})
    live = {name: torch.full_like(tensor, 7.0) for name, tensor in load_file(base / "model.safetensors").items()}
    engine.merge_into(recipe, live)
    assert_close(live, load_file(GOLDENS / "expected" / f"{config.stem}.safetensors"))


def test_an_exported_recipe_with_blocks_reads_back_as_itself() -> None:
    text = (FIXTURES / "goldens_small" / "configs" / "exported_blocks.yaml").read_text()
    recipe = Recipe.from_mergekit(text)
    assert set(recipe.models) == {"math", "code"} and recipe.grouping.starts == (0, 1, 2)
    assert Recipe.from_mergekit(recipe.to_mergekit()) == recipe
