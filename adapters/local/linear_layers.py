"""Linear layers in float32 on a CPU by oneDNN, where torch itself would take another library.

For float32 torch multiplies matrices with the BLAS that it was built with: on x86 MKL, which takes twice as long as
oneDNN on AMD's processors (docs/benchmarks/evaluation.md). Torch holds both. oneDNN reads the weights in place, so
a merge that changes them needs no further step.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

LEAST_WEIGHTS = 2**16
"""Weights of a layer from which oneDNN is faster for any number of rows: reading the weights takes longest."""
LEAST_PRODUCTS = 2**21
"""Multiplications (rows x weights) from which oneDNN is faster for smaller layers; below, its call costs too much."""


def fast_linear_layers(model: torch.nn.Module) -> AbstractContextManager[object]:
    """Context manager that routes the float32 linear layers of ``model`` to oneDNN; enter it once, without gradients.

    Results change in their last digits at most. Nothing changes without oneDNN or for a model that is not on the CPU.
    """
    operator = _operator()
    parameter = next(model.parameters(), None)
    if operator is None or parameter is None or parameter.device.type != "cpu":
        return nullcontext()
    return _OneDnnLinear(operator)


@cache
def _operator() -> Callable[..., torch.Tensor] | None:
    """oneDNN's linear layer, or None where torch does not have it or has no MKL to be slower than it.

    The operator is private to torch, which calls it in compiled models, so one call tests that it still works.
    """
    packet = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if packet is None or platform.machine() not in ("x86_64", "AMD64"):
        return None
    ones = torch.ones(2, 2)
    try:
        with torch.inference_mode():
            right = torch.equal(packet.default(ones, ones, None, "none", [], ""), 2 * ones)
    except (RuntimeError, TypeError, AttributeError):
        return None
    return packet.default if right else None


class _OneDnnLinear(TorchFunctionMode):
    """Sends linear layers to oneDNN while it is entered, in this thread."""

    def __init__(self, operator: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self._operator = operator

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is linear and not kwargs and _pays(*args[:2]):
            return self._operator(args[0], args[1], args[2] if len(args) > 2 else None, "none", [], "")
        return func(*args, **(kwargs or {}))


def _pays(values: torch.Tensor, weights: torch.Tensor) -> bool:
    return (
        values.dtype == weights.dtype == torch.float32
        and values.device.type == weights.device.type == "cpu"
        and (weights.numel() >= LEAST_WEIGHTS or values.numel() * weights.shape[0] >= LEAST_PRODUCTS)
        and values.dim() > 1
        and type(weights) in (torch.Tensor, torch.nn.Parameter)
        and weights.layout == torch.strided
        and not torch.is_grad_enabled()
    )
