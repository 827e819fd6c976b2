"""The fused kernels and torch's plain operations give the same merge, on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergefront.adapters.merging.coefficients import read_coefficients
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.task_vectors.masks import LEVELS, KeptNorms, random_levels
from mergefront.adapters.merging.task_vectors.ranks import Rank, sort_magnitudes
from mergefront.adapters.merging.task_vectors.terms import TermBuilder
from mergefront.adapters.merging.task_vectors.torch_kernel import (
    Fusion,
    Mode,
    Term,
    compiled_kernel,
    eager_kernel,
    pack,
)
from mergefront.adapters.merging.tensor_pool import TensorPool
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe

FAMILY = [name for name, method in METHODS.items() if method.consensus is not None]
EXPERTS = ("a", "b", "c")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Tensors = dict[str, torch.Tensor]


def pool(*dtypes: torch.dtype) -> tuple[Tensors, dict[str, Tensors]]:
    """A base and three experts, of these dtypes in turn. Equal magnitudes are frequent in the short dtypes."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"up": (96, 130), "norm": (33,), "one": (1,), "square": (40, 40), "long": (1 << 18,)}
    plain = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    made = []
    for number in range(1 + len(EXPERTS)):
        dtype = dtypes[number % len(dtypes)]
        noise = 0.1 if number else 0.0
        made.append({n: (t + noise * torch.randn(t.shape, generator=generator)).to(dtype) for n, t in plain.items()})
    return made[0], dict(zip(EXPERTS, made[1:], strict=True))


def recipe(method: str, normalize: bool, density: float, weights: tuple[float, ...] = (0.7, -0.3, 0.5)) -> Recipe:
    params: dict[str, float | bool] = {f"weight[{name}]": w for name, w in zip(EXPERTS, weights, strict=True)}
    if METHODS[method].parameter("density"):
        params["density"] = density
    return Recipe(method, {name: name for name in EXPERTS}, {**params, "normalize": normalize}, "base")


def merged(engine: MergeEngine, made: Recipe, base: Tensors, dtype: torch.dtype) -> tuple[Tensors, float]:
    live = {name: torch.full_like(tensor, 7.0, dtype=dtype) for name, tensor in base.items()}
    return live, engine.merge_into(made, live).delta_l1


@pytest.mark.parametrize("method", FAMILY)
@pytest.mark.parametrize("dtypes", [*((dtype,) for dtype in DTYPES), DTYPES], ids=["float32", "bf16", "f16", "mixed"])
def test_the_cpu_kernel_is_eager_arithmetic_bit_for_bit(method: str, dtypes: tuple[torch.dtype, ...]) -> None:
    base, experts = pool(*dtypes)
    fused = MergeEngine(base, experts, compile=True)
    assert fused._family.native is not None, "compiling failed on this machine; the comparison would be with itself"
    eager = MergeEngine(base, experts, compile=False)
    assert eager._family.native is None
    weights = (0.7, -0.3, 0.5), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0), (0.4, 0.2, -0.6)
    for number, chosen in enumerate(weights):
        made = recipe(method, bool(number % 2), (0.6, 0.3, 1.0, 0.0)[number], chosen)
        for dtype in DTYPES:
            mine, norm = merged(fused, made, base, dtype)
            plain, expected = merged(eager, made, base, dtype)
            assert norm == pytest.approx(expected, rel=1e-5)
            for name, tensor in plain.items():
                assert torch.equal(mine[name], tensor), (name, dtype, chosen)


def test_eight_bit_task_vectors_go_through_the_cpu_kernel_alike() -> None:
    base, experts = pool(torch.bfloat16)
    made = recipe("ties", True, 0.4)
    mine, _ = merged(MergeEngine(base, experts, task_vectors="int8"), made, base, torch.float32)
    plain, _ = merged(MergeEngine(base, experts, task_vectors="int8", compile=False), made, base, torch.float32)
    assert all(torch.equal(mine[name], plain[name]) for name in plain)


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
print(engine._family.native is not None, hashlib.sha256(live["x"].view(torch.int16).numpy().tobytes()).hexdigest())
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
    base, experts = pool(torch.bfloat16)
    held = TensorPool(base, experts, torch.device("cpu"), None, True, True)
    wanted: dict[bool, list[int]] = {True: [], False: []}

    def builder(has_room: bool) -> TermBuilder:
        return TermBuilder(held, False, room=lambda needed: wanted[has_room].append(needed) or has_room)

    ordered, selected = builder(True), builder(False)
    densities = (1e-9, 0.33, 0.99)
    for name in ("up", "norm", "square", "long"):
        for density in densities:
            given = read_coefficients(recipe("ties", False, density), METHODS["ties"], EXPERTS, name)
            terms = [one.term(name, METHODS["ties"], given, "a", base[name]) for one in (ordered, selected)]
            assert None not in terms and terms[0]._replace(tensor=None) == terms[1]._replace(tensor=None)
    assert len(wanted[True]) == 4 and len(wanted[False]) == 4 * len(densities)


@pytest.mark.parametrize("size", [1, 700, LEVELS, LEVELS + 1])
def test_kept_norms_are_sums_of_the_kept_magnitudes(size: int) -> None:
    delta = torch.randn(size, generator=torch.Generator().manual_seed(1))
    norms = KeptNorms(lambda start, end: delta[start:end], size, (3, -9))
    levels = random_levels(torch.arange(size, dtype=torch.int32), 3, -9)
    assert norms.whole == pytest.approx(float(delta.abs().double().sum()), rel=1e-5)
    for threshold in (0, 1, 12345, LEVELS):
        kept = float(delta.abs().double()[levels < threshold].sum())
        assert norms.below(threshold) == pytest.approx(kept, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["all", "largest", "random"])
def test_torch_compile_is_eager_arithmetic(mode: Mode) -> None:
    """What other devices than a CPU use: within 2 units in the last place of the largest entry (a compiler may fuse
    multiply and add, and an entry near a sign election's tie keeps its side)."""
    base, experts = pool(torch.float32)
    flat = {name: tensor["up"].view(-1) for name, tensor in {"base": base, **experts}.items()}
    terms = []
    for number, name in enumerate(EXPERTS):
        order = sort_magnitudes(
            lambda start, end, name=name: flat[name][start:end] - flat["base"][start:end],
            flat[name].numel(), torch.device("cpu"),
        )  # fmt: skip
        index = int(order[4000])
        value = float((flat[name][index] - flat["base"][index]).abs())
        weight = (0.7, -0.3, 0.5)[number]
        terms.append(
            Term(flat[name], False, mode, weight, weight, least=Rank(value, index), keys=(5, number), threshold=30000)
        )
    fusion = Fusion((mode,) * 3, (False,) * 3, True, True)
    numbers, integers = pack(terms, 0.9, 1.0, torch.device("cpu"))
    outs = []
    for kernel in (compiled_kernel(fusion), eager_kernel(fusion)):
        outs.append(torch.empty_like(flat["base"]))
        kernel(flat["base"], [term.tensor for term in terms], [], numbers, integers, outs[-1])
    error = float((outs[0] - outs[1]).abs().max())
    assert error <= 2 * torch.finfo(torch.float32).eps * float(outs[1].abs().max())
