"""Writing a Hugging Face model folder: tensors as they come, all or nothing.

Shapes and dtypes are known before the first number is, so a file's header is written first and
every tensor is appended and forgotten. The folder appears under its name when it is complete.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mergefront.adapters.checkpoints.header import DTYPES
from mergefront.optimizer.errors import UserError

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 5_000_000_000
_ALIGNMENT = 8
_SAFETENSORS_NAMES = {torch_name: name for name, (_, torch_name) in DTYPES.items()}

Layout = Mapping[str, tuple[tuple[int, ...], "torch.dtype"]]


@contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` at the end, or vanishes on any failure.

    Raises ``UserError`` when ``out`` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; remove it or choose another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_tensors(
    folder: Path, layout: Layout, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write model.safetensors, or shards with an index when the model exceeds ``shard_bytes``.

    ``tensors`` must yield the names of ``layout`` in its order.
    """
    shards = _shards(layout, shard_bytes)
    stream = iter(tensors)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, names, layout, stream)
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        total = sum(_bytes(*entry) for entry in layout.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(layout: Layout, shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, entry in layout.items():
        if shards[-1] and size + _bytes(*entry) > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes(*entry)
    return shards


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return DTYPES[_name(dtype)][0] * math.prod(shape)


def _name(dtype: torch.dtype) -> str:
    return _SAFETENSORS_NAMES[str(dtype).removeprefix("torch.")]


def _write_file(file: Path, names: list[str], layout: Layout, stream: Iterator[tuple[str, torch.Tensor]]) -> None:
    import torch

    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        shape, dtype = layout[name]
        end = offset + _bytes(shape, dtype)
        header[name] = {"dtype": _name(dtype), "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with file.open("wb") as output:
        output.write(struct.pack("<Q", len(text)))
        output.write(text)
        for expected in names:
            name, tensor = next(stream)
            shape, dtype = layout[expected]
            if name != expected or tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise AssertionError(
                    f"expected {expected} {shape} {dtype}, got {name} {tuple(tensor.shape)} {tensor.dtype}"
                )
            if tensor.numel():
                output.write(tensor.contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
