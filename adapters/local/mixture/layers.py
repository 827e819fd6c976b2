"""The layers of experts of a live model: where they are, and what they do with texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from mergefront.adapters.local.mixture.groups import Expert
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.grouping import layer_of

MOST_TOKENS = 4096
"""Of each layer: as many are looked at, in the order of the texts."""
_ROUTERS = ("gate", "router")
_MATRICES = ("gate_up_proj", "down_proj")


@dataclass
class ExpertLayer:
    """One layer of a live model: the module that holds its experts and their router, and what was seen of it.

    ``block`` is its name in the model, ``parts`` are the experts' and the router's in it. ``tensors`` have an entry or
    a row for each expert, by their names in it; ``usage`` counts the tokens that were sent to each expert; ``inputs``
    has the first ones (``t x h``). Experts and rows are always those of the whole mixture, whatever the live model has
    by now.
    """

    block: str
    module: Any
    parts: tuple[str, str]
    tensors: tuple[str, ...]
    usage: torch.Tensor
    inputs: list[torch.Tensor] = field(default_factory=list)
    whole: dict[str, torch.Tensor] = field(init=False)
    """What the model was loaded with; it stays where it was then."""

    def __post_init__(self) -> None:
        self.whole = {name: _held(self.module, name).detach() for name in self.tensors}

    @property
    def experts(self) -> Any:
        """The experts' module."""
        return getattr(self.module, self.parts[0])

    @property
    def name(self) -> str:
        """The experts' module in the model."""
        return f"{self.block}.{self.parts[0]}"

    @property
    def number(self) -> int:
        """Which layer of the model it is in."""
        return layer_of(f"{self.name}.") or 0

    @property
    def count(self) -> int:
        """How many experts there are."""
        return len(self.usage)

    def expert(self, index: int) -> Expert:
        """One expert's matrices in float32."""
        both, down = (
            self.whole[f"{self.parts[0]}.{name}"][index].to(self.experts.down_proj.device).float() for name in _MATRICES
        )
        gate, up = both.chunk(2)
        return Expert(gate, up, down)

    def tokens(self) -> torch.Tensor:
        """What was seen of the layer's inputs: ``t x h``."""
        return torch.cat(self.inputs)

    def logits(self) -> torch.Tensor:
        """What the router says of these tokens: ``t x e``, before any softmax."""
        tokens = self.tokens().float()
        (rows,) = (
            tensor for name, tensor in self.whole.items() if name.startswith(f"{self.parts[1]}.") and tensor.dim() == 2
        )
        return tokens @ rows.to(tokens.device).float().T

    def outputs(self) -> torch.Tensor:
        """What every expert makes of all these tokens, as one row each: ``e x (t h)``; of the whole mixture alone."""
        self.restore()
        tokens = self.tokens()
        ones = torch.ones(len(tokens), 1, dtype=tokens.dtype, device=tokens.device)
        found = []
        with torch.inference_mode():
            for index in range(self.count):
                chosen = torch.full((len(tokens), 1), index, device=tokens.device)
                found.append(self.experts(tokens, chosen, ones).float().reshape(-1))
        return torch.stack(found)

    def replace(self, experts: Sequence[Expert], rows: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Put other experts into the model; ``rows`` makes the router's tensors (one entry or row per expert) anew.

        All are rounded to the dtypes that the model was loaded in, whatever it computes in by now.
        """
        made = {
            "gate_up_proj": torch.stack([torch.cat([expert.gate, expert.up]) for expert in experts]),
            "down_proj": torch.stack([expert.down for expert in experts]),
        }
        here = made["down_proj"].device
        for name, tensor in self.whole.items():
            part, _, own = name.rpartition(".")
            value = made[own] if part == self.parts[0] else rows(tensor.to(here).float())
            _put(self.module, name, value.to(tensor.dtype))
        self._count(len(experts))

    def restore(self) -> None:
        """Put the whole mixture's experts back."""
        for name, tensor in self.whole.items():
            _put(self.module, name, tensor)
        self._count(self.count)

    def _count(self, number: int) -> None:
        for module in self.module.modules():
            if hasattr(module, "num_experts"):
                module.num_experts = number


def _held(block: Any, name: str) -> torch.Tensor:
    tensor: torch.Tensor = getattr(block.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
    return tensor


def _put(block: Any, name: str, value: torch.Tensor) -> None:
    owner, own = block.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    value = value.to(getattr(owner, own))
    setattr(owner, own, torch.nn.Parameter(value, requires_grad=False) if own in owner._parameters else value)


def expert_layers(model: torch.nn.Module) -> list[ExpertLayer]:
    """The layers of a model whose experts are plain: gate, up and down of each in one tensor, without biases.

    Raises ``UserError`` for a model that has none, and for one whose experts are of another kind.
    """
    found = []
    for name, module in model.named_modules():
        up, down = (getattr(module, part, None) for part in ("gate_up_proj", "down_proj"))
        if not isinstance(up, torch.nn.Parameter) or not isinstance(down, torch.nn.Parameter):
            continue
        block, _, part = name.rpartition(".")
        parent, kind = model.get_submodule(block), type(module).__name__
        called = next((each for each in _ROUTERS if getattr(parent, each, None) is not None), "")
        plain = up.dim() == 3 and up.shape == (len(down), 2 * down.shape[2], down.shape[1])
        around = {
            other: tensor
            for other, tensor in [*parent.named_parameters(), *parent.named_buffers()]
            if other.partition(".")[0] == called or ("." not in other and len(tensor) == len(down))
        }
        rows = [tensor for other, tensor in around.items() if tensor.dim() == 2]
        if not plain or not called or hasattr(module, "down_proj_bias") or getattr(module, "is_transposed", False):
            raise UserError(f"{name}: experts of {kind} are not merged: only gate, up and down alone are")
        if len(rows) != 1 or any(len(tensor) != len(down) for tensor in around.values()):
            raise UserError(
                f"{name}: its router {type(getattr(parent, called)).__name__} has more than one row per expert"
            )
        own = (*(f"{part}.{matrix}" for matrix in _MATRICES), *around)
        found.append(ExpertLayer(block, parent, (part, called), own, torch.zeros(len(down))))
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
