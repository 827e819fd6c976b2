"""In which dtype a merge is written, and its weights are rounded before it is scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mergefront.adapters.checkpoints.header import DTYPES, CheckpointHeader

FLOATING = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
"""torch's names of the dtypes that weights are merged in, by the name that safetensors has."""


def main_dtype(header: CheckpointHeader) -> str:
    """torch's name of the dtype that most of a checkpoint's weights are stored in ("float32" without any)."""
    entries: Counter[str] = Counter()
    for info in header.tensors.values():
        if info.dtype in FLOATING:
            entries[FLOATING[info.dtype]] += (info.end - info.begin) // DTYPES[info.dtype][0]
    return entries.most_common(1)[0][0] if entries else "float32"


def one_dtype(base: CheckpointHeader, experts: Iterable[CheckpointHeader], dtype: str) -> str | None:
    """``dtype`` where every tensor of a merge gets it, or None where each keeps the dtype that the base stores it in.

    They keep their own where ``dtype`` is what most of the base is stored in and the experts store their tensors as
    the base does: a model in bfloat16 may hold a few tensors in float32 on purpose.
    """
    if dtype != main_dtype(base):
        return dtype
    for expert in experts:
        # A LoRA has no tensors of the base; what it adds is rounded as the base's tensor is.
        shared = [(info, base.tensors[name]) for name, info in expert.tensors.items() if name in base.tensors]
        differs = main_dtype(expert) != dtype or any(own.dtype != origin.dtype for own, origin in shared)
        if expert.kind == "full" and differs:
            return dtype
    return None
