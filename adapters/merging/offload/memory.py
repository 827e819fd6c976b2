"""How much memory is free where tensors are held, how much was used, and how much of a tensor is worked on at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

_UNKNOWN = 1 << 62
_ON_CPU, _ELSEWHERE = 3 << 13, 1 << 26


def stretch(device: torch.device) -> int:
    """How many entries to work on at once, so that intermediate results fit into memory, or the cache.

    On a CPU below the 32768 entries from which torch splits an operation over threads: on a busy machine waiting for
    those threads costs more than they save. A GPU gets many entries, so that it does not wait for the next call.
    """
    return _ON_CPU if device.type == "cpu" else _ELSEWHERE


def free_memory(device: torch.device) -> int:
    """Bytes of memory that are free on a device, page cache included; a large number where torch does not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return int(psutil.virtual_memory().available) if device.type == "cpu" else _UNKNOWN


def peak_memory(device: torch.device) -> Callable[[], int | None]:
    """From now on: a function that says how many bytes were in use at most, everything that is held included.

    On a CPU the process's own, whose record starts anew; None where the system does not say.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: int(torch.cuda.max_memory_allocated(device))
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return lambda: None
    return _peak_of_process


def _peak_of_process() -> int | None:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
