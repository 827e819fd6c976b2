"""Random masks that depend on (seed, tensor name, expert) and on nothing else.

An entry's random number is a hash of its index and a key, so that any part of a tensor can be
computed alone, in any order, on any device, and a fused kernel draws it in registers. The mixer is
the 32-bit finaliser of C. Wellons (hash prospector, public domain) with a second key between its
rounds; its upper 16 bits are the random number.
"""

from __future__ import annotations

import numpy as np
import torch

from mergefront.adapters.merging.task_vectors.task_vector import TaskVector
from mergefront.optimizer.seeding import derive_seed

LEVELS = 1 << 16
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
    if end < 1 << 31:
        return torch.arange(start, end, dtype=torch.int32, device=device)
    return (torch.arange(start, end, dtype=torch.int64, device=device) & 0x7FFFFFFF).to(torch.int32)


class KeptNorms:
    """The L1 norm that a random mask keeps of one task vector, for every threshold at the price of a look-up.

    Small task vectors (n entries) keep their entries' random numbers in order (n), large ones a sum for each of
    the 65536 thresholds.
    """

    def __init__(self, delta: TaskVector, keys: tuple[int, int]) -> None:
        table = np.zeros(LEVELS if delta.size > LEVELS else 0)
        levels, magnitudes = np.zeros(0, dtype=np.int32), np.zeros(0)
        for start, entries in delta.stretches():
            part = entries.abs().double()
            drawn = random_levels(entry_index(start, start + len(part), part.device), *keys)
            if len(table):
                table += torch.bincount(drawn, weights=part, minlength=LEVELS).cpu().numpy()
            else:
                levels = np.concatenate([levels, drawn.cpu().numpy()])
                magnitudes = np.concatenate([magnitudes, part.cpu().numpy()])
        order = np.argsort(levels, kind="stable")
        self._levels = None if len(table) else levels[order]
        sums = np.concatenate([[0.0], np.cumsum(table if len(table) else magnitudes[order])])
        self._sums = sums.astype(np.float32) if len(table) else sums

    @staticmethod
    def bytes_of(size: int) -> int:
        """Bytes of the table of a task vector of ``size`` entries."""
        return 4 * (LEVELS + 1) if size > LEVELS else 12 * size + 8

    @property
    def whole(self) -> float:
        """L1 norm of the task vector."""
        return float(self._sums[-1])

    def below(self, threshold: int) -> float:
        """L1 norm of the entries whose random number is below ``threshold``."""
        place = threshold if self._levels is None else self._levels.searchsorted(threshold)
        return float(self._sums[place])
