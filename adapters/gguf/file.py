"""A GGUF file, planned from headers and written tensor by tensor, all or nothing.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mergefront.adapters.gguf.architectures import Matrix
from mergefront.optimizer.errors import UserError

FloatType = Literal["f16", "f32"]
FLOATS: Mapping[FloatType, type[np.floating[Any]]] = {"f16": np.float16, "f32": np.float32}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the file; ``read`` makes its numbers."""

    name: str
    shape: tuple[int, ...]
    dtype: FloatType
    read: Callable[[], Matrix]


@dataclass(frozen=True)
class GgufPlan:
    """What a file will hold; ``write_keys`` adds everything but tensors to a ``gguf.GGUFWriter``."""

    source: Path
    architecture: str
    write_keys: Callable[[Any], None]
    tensors: Sequence[PlannedTensor]


def write_gguf(plan: GgufPlan, out: Path) -> Path:
    """Write a file; it is there whole or not at all.

    Raises ``UserError`` where it is there already, and for numbers that are not finite in the type they are kept in.
    """
    from gguf import GGUFWriter

    if out.exists():
        raise UserError(f"{out}: exists already; remove it, or choose another place")
    temporary = out.with_name(out.name + ".part")
    writer = GGUFWriter(temporary, plan.architecture)
    plan.write_keys(writer)
    for tensor in plan.tensors:
        dtype = np.dtype(FLOATS[tensor.dtype])
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, int(np.prod(tensor.shape)) * dtype.itemsize)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in plan.tensors:
            with np.errstate(over="ignore"):
                kept = tensor.read().astype(FLOATS[tensor.dtype])
            if not np.isfinite(kept).all():
                raise UserError(f"{plan.source}: {tensor.name} has NaN or infinite entries in {tensor.dtype}")
            writer.write_tensor_data(np.ascontiguousarray(kept))
        writer.close()
        temporary.replace(out)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)
    return out


def imported_gguf() -> None:
    """Raises ``UserError`` without the package ``gguf``."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError('GGUF files need the extra: pip install "mergefront[llama-cpp]"') from None
