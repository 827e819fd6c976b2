"""What a first study takes: memory by the models' headers, time by what this machine does in a moment.

Both are rough on purpose: they tell minutes from days, and what fits from what does not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mergefront.adapters.merging.offload.memory import free_memory
from mergefront.adapters.tasks.conversations import texts_of
from mergefront.adapters.tasks.questions import Question
from mergefront.authoring.models import Models

_CHARACTERS_A_TOKEN = 4
"""Of usual text in usual vocabularies."""
_AT_ONCE = 32
"""Answers that are written side by side: each step reads the weights once for all of them."""
_OVERHEAD = 1.0
"""Seconds of an evaluation that are neither arithmetic nor memory."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


@dataclass(frozen=True)
class Machine:
    """A device, what is free of its memory (bytes), and what it does: multiplications and additions, bytes copied, both
    a second."""

    device: str
    free: int
    operations: float
    copied: float


def this_machine() -> Machine:
    """Measures for a tenth of a second: a product of matrices, and a copy."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    size, dtype = (4096, torch.bfloat16) if on_gpu else (512, torch.float32)
    matrix = torch.rand(size, size, device=device).to(dtype)
    block = torch.zeros((256 if on_gpu else 16) * 2**20, dtype=torch.uint8, device=device)
    product, copy = _seconds(lambda: matrix @ matrix), _seconds(block.clone)
    return Machine(device.type, free_memory(device), 2 * size**3 / product, block.numel() / copy)


def _seconds(work: object) -> float:
    assert callable(work)
    best = float("inf")
    for _ in range(4):  # the first call prepares more than it works
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return max(best, 1e-7)


@dataclass(frozen=True)
class Needs:
    """Bytes of the model that is asked, and of all that its merges are made from, held exactly or as int8."""

    live: int
    exact: int
    int8: int


def memory_needs(models: Models, device: str, dtype: str) -> Needs:
    """A model on a CPU computes in float32; compressed task vectors take half of bfloat16 at most."""
    base, *experts = models.held_bytes()
    live = models.parameters * (4 if device == "cpu" else _BYTES[dtype])
    return Needs(live, base + sum(experts), base + sum(experts) // 2)


def seconds_of_evaluation(models: Models, machine: Machine, questions: Sequence[Question]) -> float:
    """One merge, and the questions put to it: two operations a parameter and token; a step of writing reads all
    weights."""
    weights = models.header.bytes
    merge = sum(models.held_bytes()) / machine.copied
    read, steps = 0, 0.0
    for one in questions:
        asked = sum(map(len, texts_of(one.prompt)))
        if one.new_tokens is None:
            read += sum(asked + len(answer) for answer in one.answers)
        else:
            read += asked
            steps += one.new_tokens
    tokens = read / _CHARACTERS_A_TOKEN + steps
    arithmetic = 2 * models.parameters * tokens / machine.operations
    return _OVERHEAD + merge + arithmetic + steps / _AT_ONCE * weights / machine.copied
