"""How much memory is free where tensors are held, and how much of a tensor is worked on at once."""

from __future__ import annotations

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
    """Bytes of memory that are free on a device, page cache included; a large number where the system does not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return _UNKNOWN
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _UNKNOWN
