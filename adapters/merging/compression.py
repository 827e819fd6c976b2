"""Task vectors in less memory: eight bits per entry, or a low rank.

    int8    groups of 128 entries share a scale s = max|d| / 127; d is stored as round(d / s): 1.03 bytes per
            entry, an error of at most s / 2 per entry
    rank r  a matrix d (m x n) as its r leading singular triples: r (m + n) bfloat16 numbers; vectors, and
            matrices that would not get smaller, stay as they are

Both approximate the experts. Their error is measured while they are made (``CompressionError``); it depends
on the experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from mergefront.optimizer.errors import UserError

GROUP = 128
TaskVectorForm = Literal["exact", "int8"] | int
"""How experts are held: as they are, in eight bits, or (a number) as task vectors of that rank."""


class CompressedDelta(Protocol):
    """A task vector of one tensor in less memory."""

    def expand(self) -> torch.Tensor:
        """The task vector in float32, in its own shape."""
        ...

    def to(self, device: torch.device) -> CompressedDelta:
        """The same on another device."""
        ...


@dataclass(frozen=True)
class Int8Delta:
    """``levels`` (int8, groups x 128, padded with zeros) times ``scales`` (float32, groups)."""

    levels: torch.Tensor
    scales: torch.Tensor
    shape: torch.Size

    def expand(self) -> torch.Tensor:
        whole = self.levels.float().mul_(self.scales.unsqueeze(1)).view(-1)
        return whole[: math.prod(self.shape)].view(self.shape)

    def to(self, device: torch.device) -> Int8Delta:
        return Int8Delta(self.levels.to(device), self.scales.to(device), self.shape)


@dataclass(frozen=True)
class LowRankDelta:
    """``left`` (m x r) times ``right`` (r x n), bfloat16."""

    left: torch.Tensor
    right: torch.Tensor

    def expand(self) -> torch.Tensor:
        return self.left.float() @ self.right.float()

    def to(self, device: torch.device) -> LowRankDelta:
        return LowRankDelta(self.left.to(device), self.right.to(device))


@dataclass(frozen=True)
class PlainDelta:
    """A task vector that is kept as it is."""

    tensor: torch.Tensor

    def expand(self) -> torch.Tensor:
        return self.tensor.float()

    def to(self, device: torch.device) -> PlainDelta:
        return PlainDelta(self.tensor.to(device))


def check_form(form: object) -> None:
    """Raises ``UserError`` unless ``form`` is exact, int8 or a rank of at least 1."""
    if form not in ("exact", "int8") and (type(form) is not int or form < 1):
        raise UserError(f"task_vectors is {form!r}; write exact, int8, or a rank such as 64")


def compress(delta: torch.Tensor, form: Literal["int8"] | int) -> CompressedDelta:
    """A task vector (float32, any shape) in the given form."""
    if form == "int8":
        return to_int8(delta)
    return to_low_rank(delta, form) if _gets_smaller(delta.shape, form) else PlainDelta(delta)


def compressed_bytes(shape: tuple[int, ...], form: Literal["int8"] | int) -> int:
    """Bytes that a task vector of a shape takes in a form."""
    if form == "int8":
        return -(-math.prod(shape) // GROUP) * (GROUP + 4)
    return 2 * form * sum(shape) if _gets_smaller(shape, form) else 4 * math.prod(shape)


def _gets_smaller(shape: Sequence[int], rank: int) -> bool:
    return len(shape) == 2 and rank * sum(shape) < math.prod(shape)


def to_int8(delta: torch.Tensor) -> Int8Delta:
    """Eight bits per entry, rounded to the nearest level of its group."""
    flat = delta.reshape(-1)
    groups = torch.nn.functional.pad(flat, (0, -flat.numel() % GROUP)).view(-1, GROUP)
    scales = groups.abs().amax(dim=1) / 127 if groups.numel() else flat.new_zeros(0)
    levels = (groups / torch.where(scales > 0, scales, 1.0).unsqueeze(1)).round_().to(torch.int8)
    return Int8Delta(levels, scales, delta.shape)


def to_low_rank(delta: torch.Tensor, rank: int) -> LowRankDelta:
    """The nearest matrix of rank ``rank`` (in squared error), singular values shared evenly."""
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    root = s[:rank].sqrt()
    return LowRankDelta((u[:, :rank] * root).to(torch.bfloat16), (root.unsqueeze(1) * v[:rank]).to(torch.bfloat16))


class CompressionError:
    """Relative error of an expert's compressed task vector, summed up tensor by tensor."""

    def __init__(self) -> None:
        self._lost = 0.0
        self._whole = 0.0

    def add(self, delta: torch.Tensor, compressed: CompressedDelta) -> None:
        """Count one tensor."""
        self._lost += float((compressed.expand() - delta).square().sum())
        self._whole += float(delta.square().sum())

    @property
    def relative(self) -> float:
        """|compressed - exact| / |exact|, Frobenius norms over all tensors; 0 for an empty task vector."""
        return math.sqrt(self._lost / self._whole) if self._whole > 0 else 0.0
