"""A LoRA's task vector of one tensor as its factors: as exact as the product, and a hundredth of its size."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mergefront.adapters.checkpoints.lora import LoraModule, LoraTaskVector, StackedExperts


@dataclass(frozen=True)
class FactoredDelta:
    """``scaling`` * ``left`` @ ``right`` for each of the E matrices of a tensor: left (E x m x r), right (E x r x n).

    ``shape`` is that of the tensor, whose entries are those of the products in order. The factors are held as they are
    stored, and multiplied in float32.
    """

    left: torch.Tensor
    right: torch.Tensor
    scaling: float
    shape: torch.Size

    @property
    def columns(self) -> int:
        """Entries of a row."""
        return self.right.shape[2]

    @property
    def bytes(self) -> int:
        """Bytes of the factors."""
        return self.left.nbytes + self.right.nbytes

    @property
    def device(self) -> torch.device:
        return self.left.device

    def to(self, device: torch.device) -> FactoredDelta:
        """The same on another device."""
        return FactoredDelta(self.left.to(device), self.right.to(device), self.scaling, self.shape)

    def in_float32(self) -> FactoredDelta:
        """With contiguous factors in float32."""
        left, right = (factor.to(torch.float32).contiguous() for factor in (self.left, self.right))
        return FactoredDelta(left, right, self.scaling, self.shape)

    def expand(self) -> torch.Tensor:
        """The task vector in float32, in its own shape."""
        left, right = self.left.float(), self.right.float()
        product = left @ right if len(left) > 1 else left[0] @ right[0]
        return product.mul_(self.scaling).view(self.shape)

    def part(self, start: int, end: int) -> torch.Tensor:
        """The entries from ``start`` to before ``end``, flat, in float32: products of their rows alone."""
        rows, columns = self.left.shape[1], self.columns
        first, last = start // columns, -(-end // columns)
        made = []
        for matrix in range(first // rows, -(-last // rows)):
            own = slice(max(first - matrix * rows, 0), min(last - matrix * rows, rows))
            made.append((self.left[matrix, own].float() @ self.right[matrix].float()).mul_(self.scaling).view(-1))
        whole = made[0] if len(made) == 1 else torch.cat(made)
        return whole[start - first * columns : end - first * columns]

    def at(self, index: torch.Tensor) -> torch.Tensor:
        """About the entries of these indices (int64, k): their sums over the rank are in an order of their own."""
        row, column = index // self.columns, index % self.columns
        matrix, rank = row // self.left.shape[1], self.right.shape[1]
        left = self.left.float().reshape(-1, rank).index_select(0, row)
        right = self.right.float().transpose(1, 2).reshape(-1, rank)
        return (left * right.index_select(0, matrix * self.columns + column)).sum(dim=1) * self.scaling


def factored(lora: LoraTaskVector, name: str, shape: tuple[int, ...]) -> FactoredDelta | None:
    """What a LoRA adds to a base's tensor, or None where that is no product of factors alone.

    The factors are views of the LoRA's file as far as they can be.
    """
    if name in lora.contents.whole:
        return None
    matrices = _stacked(lora, lora.contents.stacked.get(name)) or _module(lora, lora.contents.modules.get(name))
    return None if matrices is None else FactoredDelta(*matrices, torch.Size(shape))


def factored_bytes(lora: LoraTaskVector, name: str) -> int | None:
    """Bytes of the factors of a tensor, from the header; None where ``factored`` finds none."""
    contents, tensors = lora.contents, lora.checkpoint.header.tensors
    found = contents.modules.get(name) or contents.stacked.get(name)
    if found is None or name in contents.whole:
        return None
    parts = found.part.experts if isinstance(found, LoraModule) and found.part is not None else 1
    return sum(tensors[key].end - tensors[key].begin for key in (found.a, found.b)) // parts


def _module(lora: LoraTaskVector, module: LoraModule | None) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    if module is None:
        return None
    a, b = lora.stored_factors(module)
    left, right = (a.T, b.T) if module.transposed else (b, a)
    return left.unsqueeze(0), right.unsqueeze(0), module.scaling


def _stacked(lora: LoraTaskVector, stacked: StackedExperts | None) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    if stacked is None:
        return None
    each_a, each_b = lora.stored_experts(stacked)
    left, right = (each_a, each_b) if stacked.transposed else (each_b, each_a)
    if stacked.transposed:
        left, right = left.transpose(1, 2), right.transpose(1, 2)
    return left, right, stacked.scaling
