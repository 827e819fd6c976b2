"""The layers of experts of a live model: where they are, and what they do with texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from mergefront.adapters.local.mixture.groups import Expert
from mergefront.optimizer.errors import UserError

MOST_TOKENS = 4096
"""Of each layer: as many are looked at, in the order of the texts."""
_ROUTERS = ("gate", "router")


@dataclass
class ExpertLayer:
    """One layer of a live model: the module of its experts and their router, and what was seen of it.

    ``usage`` counts the tokens that were sent to each expert; ``inputs`` has the first ones (``t x h``).
    """

    name: str
    experts: Any
    router: Any
    usage: torch.Tensor
    inputs: list[torch.Tensor] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many experts there are."""
        return len(self.experts.down_proj)

    def expert(self, index: int) -> Expert:
        """One expert's matrices in float32."""
        gate, up = self.experts.gate_up_proj[index].detach().float().chunk(2)
        return Expert(gate, up, self.experts.down_proj[index].detach().float())

    def tokens(self) -> torch.Tensor:
        """What was seen of the layer's inputs: ``t x h``."""
        return torch.cat(self.inputs)

    def logits(self) -> torch.Tensor:
        """What the router says of these tokens: ``t x e``, before any softmax."""
        rows: torch.Tensor = self.router.weight.detach().float()
        return self.tokens().float() @ rows.T

    def outputs(self) -> torch.Tensor:
        """What every expert makes of all these tokens, as one row each: ``e x (t h)``."""
        tokens = self.tokens()
        ones = torch.ones(len(tokens), 1, dtype=tokens.dtype, device=tokens.device)
        found = []
        with torch.inference_mode():
            for index in range(self.count):
                chosen = torch.full((len(tokens), 1), index, device=tokens.device)
                found.append(self.experts(tokens, chosen, ones).float().reshape(-1))
        return torch.stack(found)

    def replace(self, experts: Sequence[Expert], rows: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Put other experts into the model; ``rows`` makes the router's tensors (one entry or row per expert) anew."""
        parts = [torch.cat([expert.gate, expert.up]) for expert in experts]
        _put(self.experts, "gate_up_proj", torch.stack(parts))
        _put(self.experts, "down_proj", torch.stack([expert.down for expert in experts]))
        for name, tensor in [*self.router.named_parameters(), *self.router.named_buffers()]:
            _put(self.router, name, rows(tensor.detach().float()))


def _put(module: Any, name: str, value: torch.Tensor) -> None:
    held = getattr(module, name)
    value = value.to(held.dtype)
    setattr(module, name, torch.nn.Parameter(value, requires_grad=False) if name in module._parameters else value)


def expert_layers(model: torch.nn.Module) -> list[ExpertLayer]:
    """The layers of a model whose experts are plain: gate, up and down of each in one tensor, without biases.

    Raises ``UserError`` for a model that has none, and for one whose experts are of another kind.
    """
    found = []
    for name, module in model.named_modules():
        up, down = (getattr(module, part, None) for part in ("gate_up_proj", "down_proj"))
        if not isinstance(up, torch.nn.Parameter) or not isinstance(down, torch.nn.Parameter):
            continue
        parent = model.get_submodule(name.rpartition(".")[0])
        router = next((one for each in _ROUTERS if (one := getattr(parent, each, None)) is not None), None)
        plain = up.dim() == 3 and up.shape == (len(down), 2 * down.shape[2], down.shape[1])
        rows = [] if router is None else [*router.named_parameters(), *router.named_buffers()]
        if not plain or not rows or hasattr(module, "down_proj_bias") or getattr(module, "is_transposed", False):
            raise UserError(
                f"{name}: experts of {type(module).__name__} are not merged: only gate, up and down alone are"
            )
        if any(len(tensor) != len(down) for _, tensor in rows):
            raise UserError(f"{name}: its router {type(router).__name__} has more than one row per expert")
        found.append(ExpertLayer(name, module, router, torch.zeros(len(down))))
    if not found:
        raise UserError(f"{type(model).__name__} has no layers of experts in one tensor; merge_experts needs a mixture")
    return found


@contextmanager
def watching(layers: Sequence[ExpertLayer]) -> Iterator[None]:
    """While it lasts, layers note which experts tokens are sent to, and the first tokens themselves."""

    def note(layer: ExpertLayer, given: tuple[Any, ...]) -> None:
        tokens, chosen = given[0].detach(), given[1].detach()
        layer.usage += torch.bincount(chosen.reshape(-1).cpu(), minlength=layer.count)[: layer.count].float()
        room = MOST_TOKENS - sum(len(seen) for seen in layer.inputs)
        if room > 0:
            layer.inputs.append(tokens.reshape(-1, tokens.shape[-1])[:room].clone())

    def hook(layer: ExpertLayer) -> Callable[[Any, tuple[Any, ...]], None]:
        return lambda module, given: note(layer, given)

    hooks = [layer.experts.register_forward_pre_hook(hook(layer)) for layer in layers]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
