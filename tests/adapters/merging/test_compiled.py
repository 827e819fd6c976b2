"""The fused kernel of fused_merge.c: how it rounds, and installations without it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.sources import Entry
from mergefront.adapters.merging.task_vectors.masks import LEVELS, KeptNorms, random_levels
from mergefront.adapters.merging.task_vectors.ranks import RankTable, count_entries
from mergefront.adapters.merging.task_vectors.task_vector import TaskVector
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


KERNEL = "mergefront.adapters.merging.task_vectors.fused_merge"


def run(*before: str) -> subprocess.CompletedProcess[str]:
    program = "\n".join((*before, PROGRAM))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)


@pytest.mark.long
def test_an_installation_without_a_compiler_merges_to_the_same_and_says_so() -> None:
    here = run()
    without = run(f"import sys; sys.modules['{KERNEL}'] = None")
    assert here.stdout.startswith("True"), "the kernel is not built: make setup"
    assert without.stdout.startswith("False") and without.stdout.split()[1] == here.stdout.split()[1]
    assert without.stderr.count("without a C compiler") == 1


DENSITIES = (1e-9, 0.0005, 0.1, 0.3, 0.5004, 0.77, 0.9999)


def largest_kept(base: torch.Tensor, expert: torch.Tensor) -> list[torch.Tensor]:
    """Base plus half of the task vector's largest entries, the first among equals, for each of ``DENSITIES``."""
    delta = (expert.float() - base.float()).view(-1)
    order = delta.abs().sort(descending=True, stable=True).indices
    made = []
    for density in DENSITIES:
        kept = order[: max(1, int(density * delta.numel()))]
        mask = torch.zeros(delta.numel(), dtype=torch.bool).index_fill_(0, kept, True)
        made.append((base.float() + torch.where(mask, delta, 0.0).view(base.shape) * 0.5).to(base.dtype))
    return made


@pytest.mark.cases(12)
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "torch"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [0.0, 2**-6, 1.0], ids=["all differ", "many are equal", "hundreds of thousands are"])
def test_exactly_the_largest_are_kept_by_any_density(
    step: float, dtype: torch.dtype, compiled: bool, threads: int
) -> None:
    """Of equal ones the first, by a kernel that collects the last ones on several threads, over pieces and blocks."""
    generator = torch.Generator().manual_seed(0)
    base, experts = {}, {}
    for name, shape in {"long": (550, 700), "block": (513,), "two": (2,), "one": (1,)}.items():
        base[name] = torch.randn(shape, generator=generator).to(dtype)
        moved = torch.randn(shape, generator=generator) * (0.3 if step < 1 else 0.8)
        experts[name] = (base[name].float() + (moved if step == 0 else (moved / step).round() * step)).to(dtype)
    engine = MergeEngine(base, {"a": experts}, compile=compiled)
    live = {name: torch.empty_like(tensor) for name, tensor in base.items()}
    expected = {name: largest_kept(tensor, experts[name]) for name, tensor in base.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for place, density in enumerate(DENSITIES):
            params = {"weight[a]": 0.5, "density": density, "normalize": False}
            made = Recipe("ties", {"a": "a"}, params, "base")
            engine.merge_into(made, live)
            for name in base:
                assert torch.equal(live[name], expected[name][place]), (density, name)
    finally:
        torch.set_num_threads(before)


def test_ranks_take_a_small_part_of_the_memory_that_the_weights_take() -> None:
    for size in (100, 5000, 1 << 20, 1 << 22):
        delta = torch.randn(size, generator=torch.Generator().manual_seed(0))
        table = RankTable(TaskVector(Entry(delta, True), delta), count_entries)
        assert sum(array.nbytes for array in vars(table).values()) <= 0.1 * size + 32
        brackets = [found for k in range(1, size, max(1, size // 999)) if (found := table.find(k)[1]) is not None]
        assert all(1 <= one.wanted <= one.inside for one in brackets)
        assert sum(one.inside for one in brackets) / len(brackets) <= max(512, size // 5000)


@pytest.mark.parametrize("size", [1, 700, LEVELS, LEVELS + 1])
def test_kept_norms_are_sums_of_the_kept_magnitudes(size: int) -> None:
    delta = torch.randn(size, generator=torch.Generator().manual_seed(1))
    norms = KeptNorms(TaskVector(Entry(delta, True), delta), (3, -9))
    levels = random_levels(torch.arange(size, dtype=torch.int32), 3, -9)
    assert norms.whole == pytest.approx(float(delta.abs().double().sum()), rel=1e-5)
    for threshold in (0, 1, 12345, LEVELS):
        kept = float(delta.abs().double()[levels < threshold].sum())
        assert norms.below(threshold) == pytest.approx(kept, rel=1e-5)
