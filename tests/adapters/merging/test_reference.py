"""Every fast path of the task-vector family merges as the reference does, which reads like the formulas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mergefront.adapters.checkpoints.header import Checkpoint
from mergefront.adapters.checkpoints.lora import LoraTaskVector
from mergefront.adapters.merging.coefficients import CoefficientReader, TensorMerge
from mergefront.adapters.merging.compression import compress
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.reference import merge_task_vectors
from mergefront.adapters.merging.task_vectors.fused import FusedBatch
from mergefront.adapters.merging.task_vectors.merger import TaskVectorMerger
from mergefront.adapters.merging.tensor_pool import TensorPool
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe

FAMILY = [name for name, method in METHODS.items() if method.consensus is not None]
EXPERTS = ("a", "b", "c")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PATHS: dict[str, dict[str, Any]] = {
    "c": {"compile": True},
    "torch": {"compile": False},
    "c, streamed": {"compile": True, "resident": False},
    "torch, streamed": {"compile": False, "resident": False},
}
Tensors = dict[str, torch.Tensor]

seeds = st.integers(0, 2**31 - 1)
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
weights = st.lists(st.floats(-1.5, 1.5, width=32, allow_subnormal=False), min_size=3, max_size=3)
densities = st.floats(0, 1) | st.sampled_from([0.0, 1e-9, 0.5, 1.0])


def recipe(method: str, weight: list[float], density: float = 1.0, **params: float | str | bool) -> Recipe:
    """The method on as many experts as there are weights; parameters that it does not have are left out."""
    given = {"density": density, **params}
    values = {f"weight[{name}]": w for name, w in zip(EXPERTS, weight, strict=False)}
    values |= {name: value for name, value in given.items() if METHODS[method].parameter(name)}
    return Recipe(method, {name: name for name in EXPERTS[: len(weight)]}, values, "base", seed=3)


def pool(seed: int, sizes: Mapping[str, tuple[int, ...]], grid: bool, *dtypes: torch.dtype) -> tuple[Tensors, Any]:
    """A base and experts of these dtypes in turn; on a grid, equal magnitudes and sums of zero are frequent."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        return (
            torch.randint(-3, 4, shape, generator=generator) / 64 if grid else torch.randn(shape, generator=generator)
        )

    base = {name: draw(shape).to(dtypes[0]) for name, shape in sizes.items()}
    experts = {
        expert: {n: (t.float() + draw(t.shape) / 8).to(dtypes[place % len(dtypes)]) for n, t in base.items()}
        for place, expert in enumerate(EXPERTS, 1)
    }
    return base, experts


def deltas_of(base: Tensors, experts: Mapping[str, Tensors]) -> dict[str, Tensors]:
    return {e: {n: tensor.float() - base[n].float() for n, tensor in held.items()} for e, held in experts.items()}


def reference(made: Recipe, base: Tensors, deltas: Mapping[str, Tensors]) -> Tensors:
    read = CoefficientReader(made)
    return {
        name: merge_task_vectors(
            TensorMerge(name, METHODS[made.method], read(name), tensor), [deltas[model][name] for model in made.models]
        )
        for name, tensor in base.items()
    }


def merged(engine: MergeEngine, made: Recipe, base: Tensors, dtype: torch.dtype) -> tuple[Tensors, float]:
    live = {name: torch.full_like(tensor, 7.0, dtype=dtype) for name, tensor in base.items()}
    return live, engine.merge_into(made, live).delta_l1


@pytest.mark.cases(12)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", FAMILY)
@given(
    seed=seeds, shape=shapes, grid=st.booleans(), weight=weights, density=densities, normalize=st.booleans(),
    dropped=st.floats(0, 0.5), scale=st.floats(-2, 2, allow_subnormal=False),
    rescale=st.sampled_from(["none", "density"]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_a_fast_path_is_the_reference_bit_for_bit(
    method: str, path: str, seed: int, shape: tuple[int, ...], grid: bool, weight: list[float], density: float,
    normalize: bool, dropped: float, scale: float, rescale: str,
) -> None:  # fmt: skip
    if rescale == "density":
        density = 0.25  # dividing by a power of two rounds nothing, wherever it is done
    params = {"normalize": normalize, "lambda": scale, "rescale": rescale, "gamma": dropped, "epsilon": dropped}
    made = recipe(method, weight, density, **params)
    base, experts = pool(seed, {"w": shape}, grid, torch.float32)
    expected = reference(made, base, deltas_of(base, experts))["w"]
    engine = MergeEngine(base, experts, **PATHS[path])
    live, norm = merged(engine, made, base, torch.float32)
    # One expert alone is copied rather than recomputed; a sum of all weights is rounded in another place.
    exact = sum(w != 0 for w in weight) > 1 and not (normalize and METHODS[method].consensus == "none")
    # Weights that nearly cancel out enlarge the rounding of their sum when it is divided by theirs.
    enlarged = max(1.0, sum(map(abs, weight)) / (abs(sum(weight)) or 1.0)) if normalize else 1.0
    assert torch.equal(live["w"], expected) or (
        not exact and torch.allclose(live["w"], expected, 1e-5 * enlarged, 1e-6)
    )
    assert norm == pytest.approx(float((expected - base["w"]).double().abs().sum()), rel=1e-4, abs=1e-5)
    assert torch.equal(dict(engine.iterate(made))["w"], live["w"])


SIZES = {"up": (96, 130), "norm": (33,), "one": (1,), "cube": (4, 5, 6), "long": (1 << 17,)}


@pytest.mark.cases(3)
@pytest.mark.parametrize("method", FAMILY)
@pytest.mark.parametrize("dtypes", [*((dtype,) for dtype in DTYPES), DTYPES], ids=["float32", "bf16", "f16", "mixed"])
def test_both_kernels_are_each_other_bit_for_bit_in_every_dtype(method: str, dtypes: tuple[torch.dtype, ...]) -> None:
    """With the method's own rescaling. The reference rescales before it weighs, and a stream sums norms in another
    order, so that an entry whose weighted sum is zero to the last digit may be given the other sign."""
    base, experts = pool(0, SIZES, False, *dtypes)
    engines = [MergeEngine(base, experts, **options) for options in PATHS.values()]
    assert engines[0].compiled, "compiling failed on this machine; the comparison would be with itself"
    assert not engines[1].compiled
    chosen = [0.7, -0.3, 0.5], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.4, 0.2, -0.6]
    for number, (weight, density) in enumerate(zip(chosen, (0.6, 0.3, 1.0, 0.0), strict=True)):
        made = recipe(method, weight, density, normalize=bool(number % 2))
        expected = reference(made, base, deltas_of(base, experts))
        for dtype in DTYPES:
            lives, norms = zip(*(merged(engine, made, base, dtype) for engine in engines), strict=True)
            assert norms == pytest.approx(norms[:1] * len(norms), rel=1e-5)
            for name, tensor in expected.items():
                c, plain, c_streamed, plain_streamed = (live[name] for live in lives)
                assert torch.equal(c, plain) and torch.equal(c_streamed, plain_streamed), (name, weight, dtype)
                for made_here in (c, c_streamed):
                    off = ~torch.isclose(made_here, tensor.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
                    assert int(off.sum()) <= (2 if METHODS[method].consensus == "sign" else 0), (name, dtype, weight)


@pytest.mark.cases(6)
@pytest.mark.parametrize("form", ["int8", 2])
@pytest.mark.parametrize("method", FAMILY)
@given(seed=seeds, weight=weights, density=densities)
@settings(max_examples=10, deadline=None)
def test_compressed_task_vectors_are_merged_exactly_and_off_by_their_stated_error(
    method: str, form: Any, seed: int, weight: list[float], density: float
) -> None:
    base, experts = pool(seed, {"w": (12, 9), "norm": (5,)}, False, torch.float32)
    deltas = deltas_of(base, experts)
    compressed = {e: {n: compress(d, form).expand() for n, d in held.items()} for e, held in deltas.items()}
    made = recipe(method, weight, density, rescale="none", normalize=False)
    for options in ({"compile": True}, {"compile": False}):
        engine = MergeEngine(base, experts, task_vectors=form, **options)
        live, _ = merged(engine, made, base, torch.float32)
        assert all(torch.equal(live[n], t) for n, t in reference(made, base, compressed).items())
    if method == "task_arithmetic":
        exact, stated = reference(made, base, deltas), engine.task_vector_errors()
        off = sum(float((live[name] - tensor).square().sum()) for name, tensor in exact.items()) ** 0.5
        norms = {e: sum(float(d.square().sum()) for d in held.values()) ** 0.5 for e, held in deltas.items()}
        assert off <= sum(abs(w) * stated[e] * norms[e] for e, w in zip(EXPERTS, weight, strict=True)) + 1e-5


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for rank, name in enumerate(EXPERTS, 2):
        folder = folders[name] = tmp_path_factory.mktemp(name)
        generator = torch.Generator().manual_seed(rank)
        sizes = {"A": (rank, 9), "B": (12, rank)}
        factors = {f"x.lora_{s}.weight": torch.randn(size, generator=generator) for s, size in sizes.items()}
        save_file(factors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 3}))
    return folders


@pytest.mark.cases(8)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", FAMILY)
@given(weight=weights, density=densities)
@settings(max_examples=10, deadline=None)
def test_lora_folders_are_merged_as_the_task_vectors_that_they_are(
    loras: dict[str, Path], method: str, path: str, weight: list[float], density: float
) -> None:
    base = {"x.weight": torch.ones(12, 9), "norm": torch.ones(4)}
    vectors = {name: LoraTaskVector(Checkpoint(folder)) for name, folder in loras.items()}
    deltas = {e: {n: v.delta(n) if n in v.changed() else torch.zeros(4) for n in base} for e, v in vectors.items()}
    made = recipe(method, weight, density, rescale="none", normalize=False)
    live, _ = merged(MergeEngine(base, loras, **PATHS[path]), made, base, torch.float32)
    assert all(torch.equal(live[name], tensor) for name, tensor in reference(made, base, deltas).items())


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "breadcrumbs", "dare_ties", "della"])
def test_torch_compile_is_within_two_units_in_the_last_place(method: str) -> None:
    """What other devices than a CPU use: a compiler may fuse multiply and add. One method for every kind of mask."""
    base, experts = pool(0, {"up": (96, 130)}, False, torch.float32)
    made = recipe(method, [0.7, -0.3, 0.5], 0.4, rescale="none")
    merger = TaskVectorMerger(TensorPool(base, experts, torch.device("cpu"), None, True, True), compile=True)
    out = torch.empty(96, 130)
    merger.merge(TensorMerge("up", METHODS[method], CoefficientReader(made)("up"), base["up"]), out, FusedBatch(None))
    assert merger.compile, "torch.compile failed"
    expected = reference(made, base, deltas_of(base, experts))["up"]
    assert float((out - expected).abs().max()) <= 2 * torch.finfo(torch.float32).eps * float(expected.abs().max())
