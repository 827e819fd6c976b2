"""PEFT LoRAs as GGUF.

llama.cpp multiplies by ``request scale * alpha / rank`` with one alpha for the whole file, so that
differences between modules (alpha or rank patterns, rsLoRA) are folded into B. The file then means
exactly what PEFT means, and scale s in a request is weight s in a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from mergefront.adapters.checkpoints.header import CheckpointHeader, TensorInfo, read_array
from mergefront.adapters.checkpoints.lora import LoraModule, read_lora
from mergefront.adapters.gguf.architectures import Architecture, Matrix, gguf_name
from mergefront.adapters.gguf.file import FloatType, GgufPlan, PlannedTensor
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.methods import kept_count

CONVERTER = "convert_lora_to_gguf.py"


def plan_lora(
    header: CheckpointHeader, base_config: Mapping[str, Any], dtype: FloatType = "f16", density: float = 1.0
) -> GgufPlan:
    """A LoRA of the model whose config.json is ``base_config``, or what ``lora_cat`` takes of it at a ``density``.

    Raises ``UserError`` for a LoRA that llama.cpp cannot apply and for an architecture that is not written.
    """
    architecture = Architecture.of(base_config, CONVERTER)
    modules = _modules(header)
    alpha = modules[0].scaling * modules[0].rank
    if not np.isfinite(alpha) or alpha == 0:
        raise UserError(f"{header.path}: lora_alpha is {alpha:g}; the LoRA has no effect")

    def write_keys(writer: Any) -> None:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)

    def b(name: str, module: str, share: float) -> Matrix:
        return architecture.ordered(module, read_array(header.tensors[name])) * np.float32(share)

    tensors = []
    for module in modules:
        target = module.target.removesuffix(".weight")
        name = f"{gguf_name(target)}.weight"
        share = module.scaling * module.rank / alpha
        reads = {"lora_a": (module.a, partial(_largest, header.tensors[module.a], density))}
        reads["lora_b"] = (module.b, partial(b, module.b, target, share))
        for side, (stored, read) in reads.items():
            tensors.append(PlannedTensor(f"{name}.{side}", header.tensors[stored].shape, dtype, read))
    return GgufPlan(header.path, architecture.name, write_keys, tensors)


def _largest(tensor: TensorInfo, density: float) -> Matrix:
    """A matrix without its smallest entries; of equal ones the first are kept."""
    matrix = read_array(tensor).copy()
    dropped = np.argsort(-np.abs(matrix), axis=None, kind="stable")[kept_count(density, matrix.size) :]
    matrix.flat[dropped] = 0
    return matrix


def _modules(header: CheckpointHeader) -> list[LoraModule]:
    """The adapted linear layers by name. Raises ``UserError`` where the file could not say what the LoRA does."""
    contents = read_lora(header)
    modules = contents.modules
    if contents.beyond_matrices is not None:
        raise UserError(f"{header.path}: it also changes biases or whole modules ({contents.beyond_matrices})")
    if not modules:
        raise UserError(f"{header.path}: holds no LoRA matrices")
    for module in modules.values():
        if not module.is_linear:
            raise UserError(
                f"{header.path}: {module.target} is an embedding, a convolution or stored transposed; it is not written"
            )
    return [modules[target] for target in sorted(modules)]
