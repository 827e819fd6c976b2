"""How far the experts moved the base, in every layer and as a whole: what their weights say before any is merged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from mergefront.adapters.checkpoints.configurations import EVERYTHING
from mergefront.adapters.checkpoints.header import Checkpoint
from mergefront.adapters.checkpoints.stacks import layer_count, text_stacks
from mergefront.adapters.merging.modalities import compose
from mergefront.adapters.merging.sources import ExpertSource, Source, header_of, open_source
from mergefront.adapters.merging.vocabulary import TokenizerChoice, align
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.stacks import Modalities


def opened_alike(
    base: Path, experts: Mapping[str, Path], modalities: Modalities, tokenizer: TokenizerChoice
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """Base and experts with the tensors and the rows that a study merges. Raises ``UserError``."""
    opened = {"": Checkpoint(base), **{name: Checkpoint(path) for name, path in experts.items()}}
    aligned = align(compose(opened, "", modalities).models, "", tokenizer).models
    return aligned[""], {name: aligned[name] for name in experts}


def layer_importance(base: Source, experts: Mapping[str, Source]) -> list[float]:
    """One number per transformer layer, summing to 1: its share of |expert - base|^2, the mean over experts.

    Every expert counts the same, however far it went; one that changes no layer counts nothing. Tensors
    are read one at a time. Raises ``UserError`` for experts that do not fit the base.
    """
    origin = open_source(base)
    header = header_of(origin, "base model")
    layers = layer_count(header)
    inside = [(name, at) for stack in text_stacks(header).values() for at, of in stack.items() for name in of.values()]
    totals = [0.0] * layers
    for name, source in experts.items():
        expert = ExpertSource(name, open_source(source), origin, (EVERYTHING,))
        own = [0.0] * layers
        layer_of = dict(inside)
        for tensor_name, square in _squares(origin, expert, layer_of):
            own[layer_of[tensor_name]] += square
        moved = sum(own)
        if moved > 0:
            totals = [total + value / moved for total, value in zip(totals, own, strict=True)]
    whole = sum(totals)
    return [total / whole for total in totals] if whole > 0 else [1 / layers] * layers


def task_vector_norms(base: Source, experts: Mapping[str, Source]) -> dict[str, float]:
    """|expert - base| (Frobenius) of each expert over all that is merged. Tensors are read one at a time.

    Raises ``UserError`` for experts that do not fit the base.
    """
    origin = open_source(base)
    header = header_of(origin, "base model")
    merged = [name for name in header.tensors if name not in (header.carried or ())]
    found = {}
    for name, source in experts.items():
        expert = ExpertSource(name, open_source(source), origin, (EVERYTHING,))
        found[name] = math.sqrt(sum(square for _, square in _squares(origin, expert, merged)))
    return found


def inverse_norm_weights(norms: Mapping[str, float]) -> dict[str, float]:
    """Weights proportional to 1 / norm that sum to 1, after NAN (arXiv 2505.16148).

    Raises ``UserError`` for an expert that is the base.
    """
    still = [name for name, norm in norms.items() if norm == 0]
    if still:
        raise UserError(f"expert {still[0]!r} does not differ from the base, so it has no inverse norm")
    whole = sum(1 / norm for norm in norms.values())
    return {name: 1 / norm / whole for name, norm in norms.items()}


def _squares(
    origin: Checkpoint | Mapping[str, torch.Tensor], expert: ExpertSource, names: Iterable[str]
) -> Iterator[tuple[str, float]]:
    """The squared norm of an expert's task vector, tensor by tensor."""
    for name in names:
        entry = expert.entry(name)
        if entry is None or not entry.tensor.is_floating_point():
            continue
        delta = entry.tensor.float()
        if not entry.is_delta:
            delta = delta - origin[name].float()
        yield name, float(delta.square().sum())
