"""Task vectors in less memory: how far off they may be, and that what they cost is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergefront.adapters.merging.compression import GROUP, compress, to_int8, to_low_rank
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.recipe import Recipe

shapes = st.lists(st.integers(0, 40), min_size=0, max_size=3).map(tuple)


def randn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(shapes, st.integers(0, 2**31 - 1), st.floats(1e-6, 1e3))
@settings(deadline=None)
def test_eight_bits_are_off_by_half_a_level_of_the_group_at_most(
    shape: tuple[int, ...], seed: int, size: float
) -> None:
    delta = size * randn(shape, seed)
    made = to_int8(delta)
    assert made.expand().shape == delta.shape
    flat, error = delta.reshape(-1), (made.expand() - delta).abs().reshape(-1)
    for group, level in enumerate(made.scales.tolist()):
        part = slice(GROUP * group, GROUP * (group + 1))
        assert level == pytest.approx(float(flat[part].abs().max()) / 127, rel=1e-6)
        assert float(error[part].max()) <= 0.501 * level


def test_an_empty_task_vector_stays_empty() -> None:
    assert torch.equal(to_int8(torch.zeros(5, 7)).expand(), torch.zeros(5, 7))


@given(st.integers(0, 2**31 - 1), st.integers(1, 20))
@settings(deadline=None, max_examples=25)
def test_low_rank_is_the_nearest_matrix_of_its_rank(seed: int, rank: int) -> None:
    delta = randn((24, 20), seed)
    error = float((to_low_rank(delta, rank).expand() - delta).norm())
    left_out = float(torch.linalg.svdvals(delta)[rank:].square().sum().sqrt())
    assert left_out * 0.999 <= error + 1e-4 and error <= left_out + 0.01 * float(delta.norm())


def test_what_would_not_get_smaller_stays_as_it_is() -> None:
    for shape, rank in (((16,), 4), ((16, 16), 8), ((4, 3, 2), 1)):
        delta = randn(shape, 0)
        assert torch.equal(compress(delta, rank).expand(), delta)


@pytest.mark.parametrize(("form", "worst"), [("int8", 0.01), (4, 0.01), (2, 0.9)])
def test_an_engine_merges_with_compressed_experts_and_knows_how_far_off_they_are(form: str | int, worst: float) -> None:
    base = {"w": randn((64, 48), 0), "norm": randn((48,), 1)}
    experts = {
        name: {"w": base["w"] + randn((64, 4), seed) @ randn((4, 48), seed + 9), "norm": base["norm"] + 0.1}
        for seed, name in enumerate("ab", start=2)
    }
    engine = MergeEngine(base, experts, resident=True, task_vectors=form)  # type: ignore[arg-type]
    errors = engine.task_vector_errors()
    assert set(errors) == {"a", "b"} and all(0 < error <= worst for error in errors.values())
    params = {"weight[a]": 0.4, "weight[b]": 0.7, "density": 0.5}
    recipe = Recipe("ties", {"a": "a", "b": "b"}, params, "base")
    one = Recipe("task_arithmetic", {"a": "a", "b": "b"}, {"weight[a]": 1.0, "weight[b]": 0.0}, "base")
    made, exact = (dict(e.iterate(one))["w"] for e in (engine, MergeEngine(base, experts)))
    assert float((made - exact).norm() / (exact - base["w"]).norm()) == pytest.approx(errors["a"], rel=0.05)
    assert all(torch.isfinite(tensor).all() for _, tensor in engine.iterate(recipe))


def test_exact_task_vectors_are_off_by_nothing() -> None:
    engine = MergeEngine({"w": torch.ones(3)}, {"a": {"w": torch.zeros(3)}}, resident=True)
    assert engine.task_vector_errors() == {"a": 0.0}


@pytest.mark.parametrize("form", ["int4", 0, 1.5])
def test_an_unknown_form_is_named(form: object) -> None:
    with pytest.raises(UserError, match=r"task_vectors is .*write exact, int8, or a rank"):
        MergeEngine({"w": torch.ones(3)}, {"a": {"w": torch.zeros(3)}}, task_vectors=form)  # type: ignore[arg-type]
