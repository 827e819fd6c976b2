"""The fused kernel of fused_merge.c: how it rounds, and machines that cannot compile it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mergefront.adapters.merging.coefficients import CoefficientReader, TensorMerge
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.sources import Entry
from mergefront.adapters.merging.task_vectors.masks import LEVELS, KeptNorms, random_levels
from mergefront.adapters.merging.task_vectors.task_vector import TaskVector
from mergefront.adapters.merging.task_vectors.terms import TermBuilder
from mergefront.adapters.merging.tensor_pool import TensorPool
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40), st.sampled_from(DTYPES))
def test_the_cpu_kernel_rounds_as_torch_does(values: list[float], dtype: torch.dtype) -> None:
    """To bfloat16 and float16: halves to even, what is too large to infinity, the smallest numbers too."""
    base = {"x": torch.zeros(len(values))}
    delta = torch.tensor(values, dtype=torch.float32)
    engine = MergeEngine(base, {"a": {"x": delta}}, check=False)
    live = {"x": torch.empty(len(values), dtype=dtype)}
    # Weight 0.5 on twice the task vector keeps the expert from being copied whole.
    half = Recipe("task_arithmetic", {"a": "a"}, {"weight[a]": 0.5}, "base")
    engine.merge_into(half, live)
    assert torch.equal(live["x"], (delta * 0.5).to(dtype))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-65000, 65000, width=32), min_size=1, max_size=40), st.sampled_from(DTYPES[1:]))
@example([1.0 + 2**-8, -1e-7, 3.0, 5e-42], torch.bfloat16)
def test_weights_that_are_scored_have_the_digits_that_are_written(values: list[float], dtype: torch.dtype) -> None:
    """Live weights are float32 where a processor computes in it, and yet those of the folder in ``dtype``."""
    delta = torch.tensor(values, dtype=torch.float32)
    experts = {"a": {"x": delta, "y": delta, "z": delta}, "b": {"x": -delta, "y": delta, "z": delta}}
    base = {name: torch.zeros(len(values)) for name in "xyz"}
    engine = MergeEngine(base, experts, check=False, rounding=dtype)
    live = {name: torch.empty(len(values)) for name in "xyz"} | {"y": torch.empty(len(values), dtype=torch.float64)}
    pair = {"a": "a", "b": "b"}
    engine.merge_into(Recipe("task_arithmetic", pair, {"weight[a]": 0.25, "weight[b]": 0.5}, "base"), live)
    assert torch.equal(live["x"], (delta * -0.25).to(dtype).float())
    assert torch.equal(live["y"].float(), (delta * 0.75).to(dtype).float())
    # Where b counts for nothing, a is the whole merge and is copied.
    engine.merge_into(Recipe("task_arithmetic", pair, {"weight[a]": 1.0, "weight[b]": 0.0}, "base"), live)
    assert torch.equal(live["z"], delta.to(dtype).float())


def test_the_cpu_kernel_reads_every_float16() -> None:
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    halves = bits.view(torch.float16)
    halves = halves[halves.isfinite()]
    engine = MergeEngine({"x": torch.zeros(len(halves))}, {"a": {"x": halves}})
    live = {"x": torch.empty(len(halves))}
    engine.merge_into(Recipe("task_arithmetic", {"a": "a"}, {"weight[a]": 2.0}, "base"), live)
    assert torch.equal(live["x"], halves.float() * 2)


PROGRAM = """
import hashlib, json, sys, torch
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.recipes.recipe import Recipe
generator = torch.Generator().manual_seed(0)
base = {"x": torch.randn(5000, generator=generator).bfloat16()}
experts = {n: {"x": (base["x"].float() + torch.randn(5000, generator=generator)).bfloat16()} for n in "ab"}
engine = MergeEngine(base, experts)
live = {"x": torch.empty_like(base["x"])}
params = {"weight[a]": 0.7, "weight[b]": 0.4, "density": 0.3}
engine.merge_into(Recipe("ties", {"a": "a", "b": "b"}, params, "base"), live)
print(engine.compiled, hashlib.sha256(live["x"].view(torch.int16).numpy().tobytes()).hexdigest())
"""


def run(**environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_a_machine_without_a_compiler_merges_to_the_same_and_says_so(tmp_path: Path) -> None:
    """Also: two processes that come to a machine at once both compile, and neither sees half a library."""
    runs = [run(XDG_CACHE_HOME=str(tmp_path)), run(XDG_CACHE_HOME=str(tmp_path)), run(CC=str(tmp_path / "no-compiler"))]
    (first, first_errors), (second, _), (without, errors) = (process.communicate(timeout=300) for process in runs)
    assert first.startswith("True") and second == first, first_errors
    assert without.startswith("False") and without.split()[1] == first.split()[1]
    assert "compiler" in errors
    assert len(list((tmp_path / "mergefront").iterdir())) == 1


def test_a_folder_that_others_may_write_to_is_not_trusted_with_the_compiled_kernel(tmp_path: Path) -> None:
    (tmp_path / "mergefront").mkdir(mode=0o777)
    (tmp_path / "mergefront").chmod(0o777)
    process = run(XDG_CACHE_HOME=str(tmp_path))
    made, errors = process.communicate(timeout=300)
    assert made.startswith("True"), errors
    assert not list((tmp_path / "mergefront").iterdir())


def test_ranks_without_room_for_an_order_are_the_same_and_an_order_is_made_once() -> None:
    base = {"x": torch.randn(12_000, generator=torch.Generator().manual_seed(0)).bfloat16()}
    expert = {"x": base["x"].flip(0)}
    held = TensorPool(base, {"a": expert}, torch.device("cpu"), None, True, True)
    asked: dict[bool, list[int]] = {True: [], False: []}

    def builder(has_room: bool) -> TermBuilder:
        return TermBuilder(held, False, room=lambda needed: asked[has_room].append(needed) or has_room)

    with_order, without = builder(True), builder(False)
    for density in (1e-9, 0.3, 0.9999):
        made = Recipe("ties", {"a": "a"}, {"weight[a]": 0.7, "density": density}, "base")
        wanted = TensorMerge("x", METHODS["ties"], CoefficientReader(made)("x"), base["x"])
        terms = [builder.term(wanted, "a") for builder in (with_order, without)]
        assert terms[0] is not None and terms[1] is not None
        assert terms[0].least == terms[1].least and terms[0].mode == "largest"
    assert len(asked[True]) == 1 and len(asked[False]) == 3


@pytest.mark.parametrize("size", [1, 700, LEVELS, LEVELS + 1])
def test_kept_norms_are_sums_of_the_kept_magnitudes(size: int) -> None:
    delta = torch.randn(size, generator=torch.Generator().manual_seed(1))
    norms = KeptNorms(TaskVector(Entry(delta, True), delta), (3, -9))
    levels = random_levels(torch.arange(size, dtype=torch.int32), 3, -9)
    assert norms.whole == pytest.approx(float(delta.abs().double().sum()), rel=1e-5)
    for threshold in (0, 1, 12345, LEVELS):
        kept = float(delta.abs().double()[levels < threshold].sum())
        assert norms.below(threshold) == pytest.approx(kept, rel=1e-5)
