"""Random masks that depend on (seed, tensor name, expert) and on nothing else.

An entry's random number is a hash of its index and a key, so that any part of a tensor can be
computed alone, in any order, on any device, and a fused kernel draws it in registers. The mixer is
the 32-bit finaliser of C. Wellons (hash prospector, public domain) with a second key between its
rounds; its upper 16 bits are the random number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mergefront.optimizer.seeding import derive_seed

if TYPE_CHECKING:
    import torch

LEVELS = 1 << 16
_CHUNK = 3 << 13
_FIRST = 0x7FEB352D
_SECOND = 0x846CA68B - (1 << 32)


def mask_key(seed: int, tensor_name: str, expert: str) -> tuple[int, int]:
    """Two 32-bit keys (as signed integers) of one expert's mask on one tensor."""
    number = derive_seed(seed, "mask", tensor_name, expert)
    low, high = number & 0xFFFFFFFF, number >> 32
    return _signed(low), _signed(high)


def _signed(number: int) -> int:
    return number - (1 << 32) if number >= 1 << 31 else number


def keep_threshold(density: float) -> int:
    """Random numbers below this are kept: density in steps of 2^-16, at least one step when positive."""
    if density <= 0:
        return 0
    return max(1, min(LEVELS, round(density * LEVELS)))


def random_levels(index: torch.Tensor, key_1: torch.Tensor | int, key_2: torch.Tensor | int) -> torch.Tensor:
    """Random integers in [0, 65536), one per entry of ``index`` (int32, n), as int32."""
    mixed = index ^ key_1
    mixed = mixed ^ ((mixed >> 16) & 0xFFFF)
    mixed = mixed * _FIRST
    mixed = mixed ^ ((mixed >> 15) & 0x1FFFF)
    mixed = (mixed ^ key_2) * _SECOND
    return (mixed >> 16) & 0xFFFF


def entry_index(start: int, end: int, device: torch.device) -> torch.Tensor:
    """Indices of entries within their tensor as int32 (they wrap above 2^31)."""
    import torch

    if end < 1 << 31:
        return torch.arange(start, end, dtype=torch.int32, device=device)
    return (torch.arange(start, end, dtype=torch.int64, device=device) & 0x7FFFFFFF).to(torch.int32)


def norms_by_level(delta: Callable[[int, int], torch.Tensor], size: int, keys: tuple[int, int]) -> torch.Tensor:
    """L1 norm kept by every threshold from 1 to 65536 (float32), so that a density costs one look-up."""
    import torch

    table = torch.zeros(LEVELS, dtype=torch.float64)
    for start in range(0, size, _CHUNK):
        magnitude = delta(start, min(start + _CHUNK, size)).abs()
        index = entry_index(start, start + magnitude.numel(), magnitude.device)
        levels = random_levels(index, *keys)
        table += torch.bincount(levels.cpu(), weights=magnitude.double().cpu(), minlength=LEVELS)
    return table.cumsum(0).float()
