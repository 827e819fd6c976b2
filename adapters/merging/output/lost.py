"""What a merge lost of its experts, as one LoRA each (Twin-Merging, arXiv 2406.15479).

Of each linear layer the difference between expert and merge is cut to its leading singular directions. The merge and
an expert's LoRA are then the expert, as far as the rank reaches. Embeddings, heads, norms and the experts inside a
mixture have no LoRA; the share of the difference that is kept counts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from mergefront.adapters.checkpoints.header import Checkpoint, CheckpointHeader, read_json
from mergefront.adapters.checkpoints.names import matrices_of
from mergefront.adapters.merging.loras.pool import Factors, write_factors
from mergefront.adapters.merging.output.directory import as_result
from mergefront.adapters.merging.output.plan import BASE, MergePlan
from mergefront.optimizer.errors import UserError

_EXACT = 2048
"""Up to so many rows or columns a matrix is decomposed whole; above, its leading directions are found by iteration."""
_MORE, _ITERATIONS = 16, 8
"""Of that iteration: directions beside those that are wanted, and rounds."""


_OF_MIXTURES = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Layers of a model with experts in one tensor whose LoRAs peft 0.21 takes for those of the experts."""
_REFUSED = {kind: frozenset({"out_proj"}) for kind in ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")}
"""By model type, layers of which peft 0.21 takes no LoRA, since recurrent kernels read their weights themselves."""


class Lost(NamedTuple):
    """The LoRA of one expert: its folder's bytes, and which share of |expert - merge|^2 it holds."""

    bytes: int
    kept: float


def write_lost(plan: MergePlan, merged: Path, out: Path, rank: int) -> dict[str, Lost]:
    """Write a LoRA on the model in ``merged`` for each expert of its plan, in folders of ``out`` called as they are.

    Raises ``UserError`` for a rank below 1, and for a model of which transformers does not know the layers.
    """
    if rank < 1:
        raise UserError(f"--twin is {rank}; the rank of the experts' LoRAs must be at least 1")
    whole = Checkpoint(merged)
    linear = _layers_with_loras(whole.header)
    if not linear:
        raise UserError(
            f"--twin: {plan.reference.header.path} has no layer that PEFT has plain LoRAs for (torch.nn.Linear, in one "
            "tensor): Conv1D layers and experts that are stored together have none"
        )
    found = {}
    for expert in dict.fromkeys(key for part in plan.parts for key in part.models if key != BASE):
        factors, kept, all_of_it = {}, 0.0, 0.0
        for name, difference in _differences(plan, whole, expert):
            energy = float(difference.double().square().sum())
            all_of_it += energy
            if name in linear and energy > 0:
                factors[linear[name]], held = truncated(difference, rank)
                kept += held
        if not factors:
            raise UserError(f"--twin: the merge is expert {expert!r} in every linear layer, so that it lost nothing")
        write_factors(factors, out / expert, _task_type(merged), None)
        size = sum(file.stat().st_size for file in (out / expert).iterdir())
        found[expert] = Lost(size, kept / all_of_it)
    return found


def _layers_with_loras(header: CheckpointHeader) -> dict[str, str]:
    """The stored tensors that peft loads a LoRA for, each with its name in the live model."""
    left_out = _REFUSED.get(header.config.get("model_type", ""), frozenset())
    if any(matrices_of(name, tensor.shape) > 1 for name, tensor in header.live.items()):
        left_out |= _OF_MIXTURES
    return {
        stored: live
        for live, tensor in header.live.items()
        if tensor.is_linear
        and (stored := tensor.whole) is not None
        and matrices_of(stored, tensor.shape) == 1
        and live.split(".")[-2] not in left_out
    }


def _differences(plan: MergePlan, merged: Checkpoint, expert: str) -> Iterator[tuple[str, torch.Tensor]]:
    for part in plan.parts:
        if expert in part.models:
            own = as_result(plan, part, expert)
            for name in own:
                tensor = own[name]
                if tensor.is_floating_point() and tensor.shape == merged[name].shape:
                    yield name, tensor.float() - merged[name].float()


def truncated(matrix: torch.Tensor, rank: int) -> tuple[Factors, float]:
    """The nearest product b a of the rank to a matrix (Eckart and Young), and the sum of its squares.

    Singular values are shared evenly between both.
    """
    if min(matrix.shape) <= _EXACT:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(matrix, min(rank + _MORE, *matrix.shape), niter=_ITERATIONS)
        right = right.T
    values = values[:rank]
    root = values.sqrt()
    return Factors(root.unsqueeze(1) * right[:rank], left[:, :rank] * root), float(values.double().square().sum())


def _task_type(folder: Path) -> str | None:
    """PEFT's name of what the model in a folder does; None where PEFT need not know."""
    architecture = str((read_json(folder / "config.json").get("architectures") or [""])[0])
    return "CAUSAL_LM" if architecture.endswith(("ForCausalLM", "LMHeadModel")) else None
