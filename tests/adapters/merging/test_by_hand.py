"""Merges that can be worked out by hand, at values that random tensors hardly ever meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.sources import Entry
from mergefront.adapters.merging.task_vectors.masks import (
    LEVELS,
    KeptNorms,
    entry_index,
    keep_threshold,
    mask_key,
    random_levels,
)
from mergefront.adapters.merging.task_vectors.ranks import ranks_in_rows
from mergefront.adapters.merging.task_vectors.task_vector import TaskVector
from mergefront.adapters.merging.task_vectors.terms import table_bytes
from mergefront.adapters.merging.whole_models.spectral import least_interference
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe

NAME = "model.layers.0.mlp.up_proj.weight"


def merged(method: str, base: torch.Tensor, *experts: torch.Tensor, **params: float | bool) -> torch.Tensor:
    names = [f"e{number}" for number in range(len(experts))]
    recipe = Recipe(method, {name: name for name in names}, params, "base" if METHODS[method].needs_base else None)
    engine = MergeEngine({NAME: base}, {name: {NAME: tensor} for name, tensor in zip(names, experts, strict=True)})
    return dict(engine.iterate(recipe))[NAME]


def near(found: torch.Tensor, *expected: float) -> None:
    torch.testing.assert_close(found.flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_sce_takes_the_positive_side_where_experts_cancel_out() -> None:
    """As mergekit does: experts that pull apart by as much are no reason to stay at the base."""
    near(merged("sce", torch.zeros(2), torch.tensor([1.0, 0.5]), torch.tensor([-1.0, 0.5]), select_topk=1.0), 1.0, 0.5)


@pytest.mark.parametrize("method", ["ram", "ramplus_tl"])
def test_ram_counts_a_change_of_epsilon_itself_as_none(method: str) -> None:
    first, second = torch.tensor([1.0, 0.5, 0.0, 2.0]), torch.tensor([0.0, 0.5, 0.0, 1.0])
    scaled = 1.0 + 0.5 * min(1.0 / 1.0, 4.0) if method == "ramplus_tl" else 1.0  # one entry alone, one shared
    more = {"r": 0.5, "alpha": 4.0} if method == "ramplus_tl" else {}
    near(merged(method, torch.zeros(4), first, second, epsilon=0.5, **more), scaled, 0.0, 0.0, 1.5)


def test_metrics_weigh_by_their_power() -> None:
    found = merged(
        "metrics_weighted",
        torch.zeros(1),
        torch.ones(1),
        torch.zeros(1),
        **{"metric[e0]": 1.0, "metric[e1]": 2.0, "penalty": 3.0},
    )
    near(found, 1 / 9)


@pytest.mark.parametrize("row_wise", [False, True])
def test_nuslerp_takes_parallel_rows_by_their_weights_and_turns_the_others(row_wise: bool) -> None:
    first, second = torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[6.0, 0.0], [0.0, 1.0]])
    if row_wise:
        first, second = first.T.contiguous(), second.T.contiguous()
    found = merged(
        "nuslerp",
        torch.zeros(2, 2),
        first,
        second,
        nuslerp_flatten=False,
        nuslerp_row_wise=row_wise,
        **{"weight[e0]": 0.75, "weight[e1]": 0.25},
    )
    found = found.T if row_wise else found
    near(found, 3.0, 0.0, float(np.cos(np.pi / 8)), float(np.sin(np.pi / 8)))


def test_the_karcher_mean_of_two_directions_is_between_them_at_their_mean_length() -> None:
    near(merged("karcher", torch.zeros(2), torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])), 2**0.5, 2**0.5)


@pytest.mark.parametrize(("t", "expected"), [(0.25, 1.25), (0.5, 1.5), (3.0, 2.0)])
def test_nearswap_goes_no_further_than_t(t: float, expected: float) -> None:
    near(merged("nearswap", torch.ones(1), torch.full((1,), 2.0), t=t), expected)


def test_one_expert_of_full_rank_is_its_own_merge_by_singular_vectors() -> None:
    delta = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(merged("tsv_m", torch.zeros(5, 5), delta), delta, rtol=1e-4, atol=1e-4)


def test_of_more_experts_than_directions_each_keeps_its_first() -> None:
    """Without it the experts would be left out, all at once, of every narrow matrix."""
    rows = [torch.zeros(2, 6), torch.zeros(2, 6), torch.zeros(2, 6)]
    for place, row in enumerate(rows):
        row[place % 2, 2 * place], row[(place + 1) % 2, 2 * place + 1] = 3.0, 1.0
    found = merged("tsv_m", torch.zeros(2, 6), *rows)
    assert np.linalg.matrix_rank(found[:, ::2].numpy()) == 2 and float(found[:, 1::2].abs().max()) < 1e-5


def test_an_expert_that_changed_nothing_interferes_with_nobody() -> None:
    delta = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    alone = least_interference([delta], delta.shape)
    torch.testing.assert_close(least_interference([delta, torch.zeros(4, 3)], delta.shape), alone)


def test_entries_are_numbered_as_the_kernel_numbers_them_beyond_two_thousand_million() -> None:
    """Its indices have 31 bits: masks of a tensor of that size would else depend on who drew them."""
    end = 1 << 31
    assert entry_index(end - 2, end + 2, torch.device("cpu")).tolist() == [end - 2, end - 1, 0, 1]
    assert entry_index(3, 6, torch.device("cpu")).tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("density", "kept"), [(0.0, 0), (1e-9, 1), (1.2 / LEVELS, 1), (2 / LEVELS, 2), (0.5, LEVELS // 2), (1.0, LEVELS)]
)
def test_a_density_is_that_share_of_the_random_numbers_and_one_where_any_is_wanted(density: float, kept: int) -> None:
    assert keep_threshold(density) == kept


@pytest.mark.parametrize("size", [1000, LEVELS, LEVELS + 1, 100_000])
def test_what_a_mask_keeps_is_looked_up_as_it_would_be_summed(size: int) -> None:
    delta = torch.randn(size, generator=torch.Generator().manual_seed(2))
    keys = mask_key(3, "w", "e")
    norms = KeptNorms(TaskVector(Entry(delta, True), torch.zeros(size)), keys)
    drawn = random_levels(torch.arange(size, dtype=torch.int32), *keys)
    for threshold in (0, 1, 17, LEVELS // 3, LEVELS - 1, LEVELS):
        assert norms.below(threshold) == pytest.approx(float(delta[drawn < threshold].double().abs().sum()), rel=1e-6)
    assert norms.whole == pytest.approx(float(delta.double().abs().sum()), rel=1e-6)


@pytest.mark.parametrize("size", [7, LEVELS, LEVELS + 1])
def test_the_norms_of_a_mask_take_the_memory_that_is_counted_for_them(size: int) -> None:
    """Counted too low, they push the machine over the memory that a user gave."""
    norms = KeptNorms(TaskVector(Entry(torch.ones(size), True), torch.zeros(size)), mask_key(0, "w", "e"))
    held = sum(kept.nbytes for kept in vars(norms).values() if kept is not None)
    assert held == KeptNorms.bytes_of(size)


def test_another_seed_is_another_mask_also_in_an_engine_that_knows_one() -> None:
    """What is kept of a mask is a mask's, not the task vector's."""
    base, generator = torch.zeros(300), torch.Generator().manual_seed(3)
    expert = {NAME: torch.randn(300, generator=generator)}

    def made(engine: MergeEngine, seed: int) -> torch.Tensor:
        params = {"weight": 0.5, "density": 0.3, "rescale": "l1"}
        return dict(engine.iterate(Recipe("dare_linear", {"e": "e"}, params, "base", seed=seed)))[NAME]

    known = MergeEngine({NAME: base}, {"e": expert})
    for seed in (0, 1, 0):
        assert torch.equal(made(known, seed), made(MergeEngine({NAME: base}, {"e": expert}), seed))


def test_ranks_of_a_large_matrix_are_those_of_its_rows() -> None:
    """It is read in stretches of rows, of which the last is shorter."""
    rows, columns = 5, 500_000
    delta = torch.randn(rows * columns, generator=torch.Generator().manual_seed(4))
    ranks = ranks_in_rows(TaskVector(Entry(delta, True), torch.zeros(rows, columns))).view(rows, columns)
    for row in range(rows):
        assert torch.equal(delta.view(rows, columns)[row].abs().argsort(stable=True), ranks[row].argsort())


def test_a_method_that_drops_nothing_keeps_no_tables() -> None:
    """The engine counts these bytes before it decides what fits in memory."""
    shape = (64, 64)
    bytes_of = {
        name: table_bytes(METHODS[name], shape, False) for name in ("task_arithmetic", "ties", "dare_ties", "della")
    }
    assert bytes_of["task_arithmetic"] == 0 and bytes_of["della"] == 2 * 64 * 64
    assert bytes_of["dare_ties"] == KeptNorms.bytes_of(64 * 64)
