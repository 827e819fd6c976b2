"""What every merge must satisfy, for all inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.sources import Entry
from mergefront.adapters.merging.task_vectors.masks import LEVELS, mask_key, random_levels
from mergefront.adapters.merging.task_vectors.ranks import (
    EVERY,
    RankTable,
    count_entries,
    select_rank,
)
from mergefront.adapters.merging.task_vectors.task_vector import TaskVector
from mergefront.optimizer.errors import EvaluationError
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe

FAMILY = [name for name, method in METHODS.items() if method.consensus is not None]
SHAPES = {
    "model.embed_tokens.weight": (7, 4),
    "model.layers.0.mlp.up_proj.weight": (4, 5),
    "model.norm.weight": (4,),
    "one": (1,),
}
seeds = st.integers(0, 2**31 - 1)
weights = st.floats(-1.5, 1.5, allow_subnormal=False)


def pool(
    seed: int, experts: int = 3, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """A base and experts with ties and zeros among their task vectors."""
    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    made = {}
    for expert in range(experts):
        made[f"e{expert}"] = {
            name: (tensor.float() + torch.randint(-3, 4, tensor.shape, generator=generator) / 64).to(dtype)
            for name, tensor in base.items()
        }
    return base, made


def recipe_for(
    method: str,
    experts: list[str],
    weight: list[float],
    density: float = 1.0,
    seed: int = 0,
    **params: float | str | bool,
) -> Recipe:
    values: dict[str, float | str | bool] = {f"weight[{name}]": w for name, w in zip(experts, weight, strict=True)}
    if METHODS[method].parameter("density"):
        values |= {f"density[{name}]": density for name in experts}
    return Recipe(method, {name: name for name in experts}, {**values, **params}, "base", seed=seed)


def merged(engine: MergeEngine, recipe: Recipe) -> dict[str, torch.Tensor]:
    return dict(engine.iterate(recipe))


@pytest.mark.parametrize("method", FAMILY)
@given(seed=seeds, density=st.floats(0.2, 1.0))
@settings(max_examples=15, deadline=None)
def test_weights_of_zero_give_the_base_exactly(method: str, seed: int, density: float) -> None:
    base, experts = pool(seed)
    made = merged(MergeEngine(base, experts), recipe_for(method, list(experts), [0.0] * 3, density))
    assert all(torch.equal(made[name], base[name]) for name in base)


@pytest.mark.parametrize("method", ["linear", *FAMILY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_one_expert_at_weight_one_is_that_expert_exactly(method: str, dtype: torch.dtype, seed: int) -> None:
    base, experts = pool(seed, dtype=dtype)
    made = merged(MergeEngine(base, experts), recipe_for(method, list(experts), [0.0, 1.0, 0.0]))
    assert all(torch.equal(made[name], experts["e1"][name]) for name in base)


@pytest.mark.parametrize("method", ["linear", *(m for m in FAMILY if METHODS[m].sparsifier != "breadcrumbs")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [True, False])
def test_one_expert_alone_keeps_every_last_digit(method: str, dtype: torch.dtype, compiled: bool) -> None:
    """On most entries base + (expert - base) is not the expert: the sum loses a digit, and with it the score."""
    generator = torch.Generator().manual_seed(0)
    base, expert = ({"w": torch.randn(40, 50, generator=generator).to(dtype)} for _ in range(2))
    lost = base["w"].float() + (expert["w"].float() - base["w"].float())
    if dtype == torch.float32:
        assert not torch.equal(lost.to(dtype), expert["w"])
    experts = {"e0": base, "e1": expert}
    recipe = recipe_for(method, list(experts), [0.0, 1.0])
    for resident in (True, False):
        engine = MergeEngine(base, experts, resident=resident, compile=compiled)
        live = {"w": torch.empty_like(base["w"])}
        engine.merge_into(recipe, live)
        assert torch.equal(live["w"], expert["w"])
        assert torch.equal(merged(engine, recipe)["w"], expert["w"])


@pytest.mark.parametrize("method", [name for name in FAMILY if METHODS[name].sparsifier == "magnitude"])
@pytest.mark.parametrize(("density", "kept"), [(0.0, 0), (1e-9, 1), (0.03, 1), (0.049, 1), (0.05, 2), (0.999, 39)])
def test_a_density_keeps_so_many_entries_rounded_down_and_one_where_any_are_wanted(
    method: str, density: float, kept: int
) -> None:
    """A recipe that drops an expert whole would otherwise still carry its largest entry."""
    base = {"w": torch.zeros(40)}
    delta = {"w": torch.arange(1.0, 41.0)}
    made = merged(MergeEngine(base, {"e": delta}), recipe_for(method, ["e"], [0.5], density))["w"]
    assert (made != 0).nonzero().flatten().tolist() == list(range(40 - kept, 40))


@pytest.mark.parametrize("method", FAMILY)
@given(seed=seeds, weight=st.lists(weights, min_size=3, max_size=3), density=st.floats(0.2, 1.0))
@settings(max_examples=15, deadline=None)
def test_permuting_experts_changes_nothing(method: str, seed: int, weight: list[float], density: float) -> None:
    base, experts = pool(seed)
    names = list(experts)
    first = merged(MergeEngine(base, experts), recipe_for(method, names, weight, density))
    backwards = {name: experts[name] for name in reversed(names)}
    second = merged(MergeEngine(base, backwards), recipe_for(method, names[::-1], weight[::-1], density))
    assert all(torch.equal(first[name], second[name]) for name in base)


@given(seed=seeds, size=st.integers(1, 3000), data=st.data())
@settings(deadline=None)
def test_the_largest_entries_are_exactly_as_many_as_asked_for(seed: int, size: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, size))
    generator = torch.Generator().manual_seed(seed)
    entries = torch.randint(-5, 6, (size,), generator=generator) / 8

    delta = TaskVector(Entry(entries, True), entries)
    rank, bracket = RankTable(delta, count_entries).find(k) if k < size else (EVERY, None)
    if bracket is not None:
        rank = select_rank(delta, bracket)
    index = torch.arange(size)
    keep = (entries.abs() > rank.value) | ((entries.abs() == rank.value) & (index <= rank.position))
    assert int(keep.sum()) == k
    assert float(entries.abs()[keep].sum()) == pytest.approx(
        float(entries.abs().sort(descending=True).values[:k].sum())
    )


def test_masks_depend_on_seed_tensor_and_expert_alone() -> None:
    index = torch.arange(1 << 16, dtype=torch.int32)
    levels = {
        key: random_levels(index, *mask_key(*key))
        for key in [(0, "a", "x"), (1, "a", "x"), (0, "b", "x"), (0, "a", "y")]
    }
    for key, drawn in levels.items():
        assert torch.equal(drawn, random_levels(index, *mask_key(*key)))
        assert abs(float((drawn < LEVELS * 0.3).float().mean()) - 0.3) < 0.01
        for other, others in levels.items():
            if other != key:
                both = ((drawn < LEVELS * 0.5) & (others < LEVELS * 0.5)).float().mean()
                assert abs(float(both) - 0.25) < 0.01


def test_random_numbers_are_uniform_and_neighbours_independent() -> None:
    drawn = random_levels(torch.arange(1 << 18, dtype=torch.int32), *mask_key(3, "w", "m")).double()
    counts = torch.histc(drawn, 64, 0, LEVELS)
    expected = len(drawn) / 64
    assert float(((counts - expected) ** 2 / expected).sum()) < 120
    centred = drawn - drawn.mean()
    for lag in (1, 2, 64, 4096):
        correlation = float((centred[lag:] * centred[:-lag]).mean() / centred.var())
        assert abs(correlation) < 0.01


@pytest.mark.parametrize(
    "method", [name for name in FAMILY if METHODS[name].stochastic and METHODS[name].consensus == "none"]
)
def test_dropping_keeps_the_expected_task_vector(method: str) -> None:
    base, experts = {"w": torch.zeros(64, 512)}, {"e": {"w": torch.ones(64, 512)}}
    for rescale in ("l1", "density"):
        made = merged(MergeEngine(base, experts), recipe_for(method, ["e"], [1.0], 0.4, rescale=rescale))
        assert float(made["w"].mean()) == pytest.approx(1.0, abs=0.05)
        assert float((made["w"] != 0).float().mean()) == pytest.approx(0.4, abs=0.02)


def test_masks_stay_when_weights_change_and_move_with_the_seed() -> None:
    base, experts = pool(1)
    engine = MergeEngine(base, experts)
    params = {"rescale": "none"}
    first = merged(engine, recipe_for("dare_linear", list(experts), [1.0, 0.0, 0.0], 0.5, 0, **params))
    second = merged(engine, recipe_for("dare_linear", list(experts), [0.5, 0.0, 0.0], 0.5, 0, **params))
    other = merged(engine, recipe_for("dare_linear", list(experts), [1.0, 0.0, 0.0], 0.5, 9, **params))
    name = "model.embed_tokens.weight"
    assert torch.allclose((first[name] - base[name]) / 2, second[name] - base[name], atol=1e-6)
    assert not torch.equal(first[name], other[name])


def test_linear_weights_that_cancel_fail_the_candidate_with_a_reason() -> None:
    base, experts = pool(1)
    with pytest.raises(EvaluationError, match="sum to zero"):
        merged(MergeEngine(base, experts), recipe_for("linear", list(experts), [1.0, -0.5, -0.5]))


def test_duplicate_experts_count_twice() -> None:
    base, experts = pool(2, 1)
    twice = {"a": experts["e0"], "b": experts["e0"]}
    made = merged(MergeEngine(base, twice), recipe_for("ties", ["a", "b"], [1.0, 1.0]))
    assert all(torch.allclose(made[name], experts["e0"][name], atol=1e-6) for name in base)


def test_empty_tensors_and_empty_task_vectors_are_the_base() -> None:
    base = {"empty": torch.empty(0, 3), "same": torch.ones(5)}
    for method in FAMILY:
        made = merged(
            MergeEngine(base, {"e": {k: v.clone() for k, v in base.items()}}), recipe_for(method, ["e"], [0.7], 0.5)
        )
        assert all(torch.equal(made[name], base[name]) for name in base)
