"""The quicker library computes what torch computes, and only where it is quicker and no gradient is wanted."""

from __future__ import annotations

import platform
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import linear

from mergefront.adapters.local.linear_layers import fast_linear_layers

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"),
    reason="torch without oneDNN, or without MKL",
)

INPUTS: dict[str, Callable[[], torch.Tensor]] = {
    "rows": lambda: torch.randn(40, 256),
    "batch": lambda: torch.randn(5, 8, 256),
    "every other entry": lambda: torch.randn(5, 8, 512)[..., ::2],
    "transposed": lambda: torch.randn(8, 5, 256).transpose(0, 1),
    "one position of several": lambda: torch.randn(40, 3, 256)[:, -1:],
}


def operators(values: torch.Tensor, layer: torch.nn.Linear) -> set[str]:
    """The operators that computing a layer calls."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen, fast_linear_layers(layer):
        layer(values)
    return {event.key for event in seen.key_averages()}


@pytest.mark.parametrize("made", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_large_layer_is_the_same_up_to_rounding(made: Callable[[], torch.Tensor], bias: bool) -> None:
    layer, values = torch.nn.Linear(256, 512, bias=bias), made()
    with torch.inference_mode():
        expected = layer(values)
        with fast_linear_layers(layer):
            found = layer(values)
        assert "mkldnn::_linear_pointwise" in operators(values, layer)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)


def test_weights_may_change_between_calls() -> None:
    """Every candidate of a search overwrites them in place."""
    layer, values = torch.nn.Linear(256, 512), torch.randn(40, 256)
    with torch.inference_mode(), fast_linear_layers(layer):
        layer(values)
        layer.weight.mul_(2.0)
        assert torch.allclose(
            layer(values), linear(values.double(), layer.weight.double()).float() + layer.bias, atol=1e-5
        )


def test_small_layers_other_precisions_and_gradients_are_left_to_torch() -> None:
    values = torch.randn(40, 256)
    with torch.inference_mode():
        assert "mkldnn::_linear_pointwise" not in operators(values, torch.nn.Linear(256, 64))
        assert "mkldnn::_linear_pointwise" not in operators(values.double(), torch.nn.Linear(256, 512).double())
    layer = torch.nn.Linear(256, 512)
    with fast_linear_layers(layer):
        layer(values).sum().backward()
    assert layer.weight.grad is not None
