"""Compiled and eager arithmetic give the same merge."""

from __future__ import annotations

import pytest
import torch

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.methods import METHODS
from mergefront.optimizer.recipe import Recipe

FAMILY = [name for name, method in METHODS.items() if method.consensus is not None]
EXPERTS = ("a", "b", "c")


def pool(dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"up": (96, 130), "norm": (33,), "one": (1,), "square": (40, 40)}
    base = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    experts = {
        expert: {
            name: (tensor.float() + 0.1 * torch.randn(tensor.shape, generator=generator)).to(dtype)
            for name, tensor in base.items()
        }
        for expert in EXPERTS
    }
    return base, experts


def recipe(method: str, normalize: bool, density: float) -> Recipe:
    params: dict[str, float | bool] = {f"weight[{name}]": w for name, w in zip(EXPERTS, (0.7, -0.3, 0.5), strict=True)}
    if METHODS[method].parameter("density"):
        params["density"] = density
    return Recipe(method, {name: name for name in EXPERTS}, {**params, "normalize": normalize}, "base")


@pytest.mark.slow
@pytest.mark.parametrize("method", FAMILY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_is_eager(method: str, dtype: torch.dtype) -> None:
    """float32 within 2 units in the last place of the largest term (a compiler may fuse multiply and add, and an
    entry near a sign election's tie keeps its side); bfloat16 equal but for entries where that moves the rounding."""
    base, experts = pool(dtype)
    compiled = MergeEngine(base, experts, compile=True)
    for normalize, density in ((False, 0.6), (True, 0.3)):
        made = recipe(method, normalize, density)
        live = {name: torch.empty_like(tensor) for name, tensor in base.items()}
        report = compiled.merge_into(made, live)
        assert compiled._family.compile, "compiling failed on this machine; the comparison would be with itself"
        plain = {name: torch.empty_like(tensor) for name, tensor in base.items()}
        eager = MergeEngine(base, experts, compile=False).merge_into(made, plain)
        assert report.delta_l1 == pytest.approx(eager.delta_l1, rel=1e-5)
        for name, tensor in plain.items():
            error = (live[name].float() - tensor.float()).abs().max()
            unit = torch.finfo(dtype).eps * tensor.float().abs().max()
            assert float(error) <= 2 * float(unit), name
            assert float((live[name] != tensor).float().mean()) < (0.005 if dtype == torch.bfloat16 else 1.0)
