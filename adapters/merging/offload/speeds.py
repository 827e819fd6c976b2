"""How fast bytes move on this machine, measured in a few tens of milliseconds each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

_BLOCK = 1 << 25
"""Bytes of a measurement."""


def copy_speed(device: torch.device) -> float:
    """Bytes read a second by a copy within a device's memory."""
    source = torch.ones(_BLOCK if device.type == "cpu" else 8 * _BLOCK, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return source.numel() / _seconds(lambda: target.copy_(source), device)


def transfer_speed(device: torch.device) -> float:
    """Bytes a second from the host's pinned memory to an accelerator."""
    source = torch.ones(_BLOCK, dtype=torch.uint8)
    source = source.pin_memory() if torch.cuda.is_available() else source
    return source.numel() / _seconds(lambda: source.to(device), device)


def read_speed(file: Path) -> float | None:
    """Bytes read a second from the disk that holds a file; None where it cannot be read.

    The part that is read leaves the system's page cache first, where the system lets it.
    """
    try:
        with open(file, "rb", buffering=0) as stream:
            size = min(_BLOCK, os.fstat(stream.fileno()).st_size)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
            begun = time.perf_counter()
            read = len(stream.read(size))
            return read / max(time.perf_counter() - begun, 1e-9) if read else None
    except OSError:
        return None


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(3):  # the first call prepares more than it works
        begun = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return max(best, 1e-9)
