"""Merging one tensor by a method that has a kernel of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any, TypeAlias

import torch

from mergefront.adapters.checkpoints.names import matrices_of
from mergefront.adapters.merging.coefficients import Coefficients, TensorMerge
from mergefront.adapters.merging.offload.memory import stretch
from mergefront.adapters.merging.task_vectors.fused import FusedBatch
from mergefront.adapters.merging.task_vectors.task_vector import TaskVector
from mergefront.adapters.merging.tensor_pool import TensorPool
from mergefront.adapters.merging.whole_models.linear import merge_as_mergekit
from mergefront.adapters.merging.whole_models.spectral import Core
from mergefront.optimizer.recipes.methods import METHODS, MergeMethod

_IN_FLOAT32 = frozenset({"linear", "slerp", "metrics_weighted", "widen"})
"""Methods whose kernels run in float32 with ``compat: mergekit`` too: mergekit's own do, or it has none."""

Scales: TypeAlias = tuple[tuple[str, float], ...]
"""Every expert with a number."""
_Piece: TypeAlias = slice | int | EllipsisType
"""A stretch of a tensor's entries, one matrix of a stack, or the whole."""


class KernelMerger:
    """Kernel methods on a pool; what a method prepares per tensor and pool is kept where there is room.

    ``compat_mergekit`` computes in the tensors' own dtype where mergekit 0.1.5 does, rounding for rounding.
    """

    def __init__(self, pool: TensorPool, compat_mergekit: bool) -> None:
        self._pool = pool
        self._compat = compat_mergekit
        self._prepared: dict[tuple[str, str, tuple[str, ...], str], Any] = {}

    def reads(self, coefficients: Coefficients) -> Sequence[str]:
        """See ``engine.Merger``. Matrices of LoRAs may be merged by their factors."""
        if not METHODS[coefficients.method].of_matrices:
            return coefficients.models
        scales = _scales(METHODS[coefficients.method], coefficients)
        return [model for model, scale in scales if scale != 0 and not self._pool.is_lora(model)]

    def merge(self, wanted: TensorMerge, out: torch.Tensor, batch: FusedBatch) -> torch.Tensor:
        """Merge one tensor into ``out`` (see ``engine.Merger``)."""
        method, coefficients, base = wanted.method, wanted.coefficients, wanted.base
        if method.of_matrices:
            return self._merge_matrices(wanted, out)
        arguments: dict[str, Any] = dict(coefficients.per_model) | dict(coefficients.shared)
        if "lambda" in arguments:
            arguments["lambda_"] = arguments.pop("lambda")
        kernel = merge_as_mergekit if self._compat and method.name == "linear" else method.load_kernel()
        entries = [self._pool.entry(wanted.name, model) for model in coefficients.models]
        own_dtype = self._compat and method.name not in _IN_FLOAT32
        norm = torch.zeros((), dtype=torch.float64)
        for piece in self._pieces(wanted, out.shape):
            origin = None if base is None else _cut(base, piece)
            if origin is not None and not own_dtype:
                origin = origin.float()
            tensors = []
            for entry in entries:
                if entry is None:
                    assert origin is not None
                    tensors.append(origin)
                    continue
                tensor = _cut(entry.tensor, piece)
                tensor = tensor if own_dtype else tensor.float()
                tensors.append(tensor + origin if entry.is_delta and origin is not None else tensor)
            merged = kernel(tensors, origin if coefficients.with_base else None, **arguments)
            _cut(out, piece).copy_(merged)
            if origin is None:
                norm = torch.full((), float("nan"), dtype=torch.float64)
            else:
                norm = norm + (merged.float() - origin.float()).abs().sum().double().cpu()
        return norm

    def _pieces(self, wanted: TensorMerge, shape: torch.Size) -> Sequence[_Piece]:
        """What of one tensor its method's kernel gets at once."""
        size, method = shape.numel(), wanted.method
        if method.elementwise and not self._compat:
            step = stretch(self._pool.device_of(wanted.name))
            return [slice(start, min(start + step, size)) for start in range(0, size, step)]
        if method.matrix_wise and len(shape) > 2 and (matrices := matrices_of(wanted.name, shape)):
            return range(matrices)
        return [...] if size else []

    def _merge_matrices(self, wanted: TensorMerge, out: torch.Tensor) -> torch.Tensor:
        """Merge the matrices of one tensor, or the mean where it is none (see ``MergeMethod.of_matrices``)."""
        method, origin, scale = wanted.method, wanted.origin.float(), float(wanted.coefficients.of_recipe("lambda"))
        is_matrix = method.of_tables and origin.dim() == 2
        matrices = 1 if is_matrix else matrices_of(wanted.name, origin.shape)
        scales = _scales(method, wanted.coefficients) if matrices else _weights(wanted.coefficients)
        if not any(weight and self._pool.changes(wanted.name, model) for model, weight in scales):
            out.copy_(wanted.origin)
            return torch.zeros((), dtype=torch.float64)
        core = self._core(wanted, scales) if matrices == 1 and not any(_switches(wanted).values()) else None
        if core is not None:
            merged = core.left @ self._merge_matrix(wanted, 0, core.deltas) @ core.right.T
        else:
            deltas = self._task_vectors(wanted, origin.shape, scales)
            if matrices == 0:
                merged = torch.stack(deltas).mean(dim=0)
            elif origin.dim() == 2:
                merged = self._merge_matrix(wanted, 0, deltas)
            else:
                merged = torch.stack(
                    [self._merge_matrix(wanted, index, [delta[index] for delta in deltas]) for index in range(matrices)]
                )
        result = origin + scale * merged
        out.copy_(result)
        change: torch.Tensor = (result - origin).abs().sum().double().cpu()
        return change

    def _merge_matrix(self, wanted: TensorMerge, index: int, deltas: Sequence[torch.Tensor]) -> torch.Tensor:
        """The merged task vector of one matrix of a tensor."""
        method, arguments = wanted.method, dict[str, Any](wanted.coefficients.shared)
        del arguments["lambda"]
        if method.weighs:
            arguments["weight"] = dict(wanted.coefficients.per_model)["weight"]
        prepare = method.load_prepare()
        if prepare is not None:
            arguments["prepared"] = self._prepare(wanted, index, prepare, deltas, wanted.origin.shape[-2:])
        merged: torch.Tensor = method.load_kernel()(deltas, **arguments)
        return merged

    def _task_vectors(self, wanted: TensorMerge, shape: torch.Size, scales: Scales) -> list[torch.Tensor]:
        """Every expert's task vector by its scale, in float32."""
        made = []
        for model, weight in scales:
            entry = self._pool.entry(wanted.name, model) if weight != 0 else None
            if entry is None:
                made.append(torch.zeros(shape, device=wanted.origin.device))
            else:
                made.append(weight * TaskVector(entry, wanted.origin).part(0, entry.tensor.numel()).view(shape))
        return made

    def _core(self, wanted: TensorMerge, scales: Scales) -> Core | None:
        """The task vectors in the space of their factors, where all are of LoRAs and their ranks are few.

        The products are never made, and a decomposition costs what their ranks cost (Core Space, arXiv 2509.17786).
        """
        none = wanted.origin.float().flatten(1)[:, :0], wanted.origin.float()[:0]
        factors = []
        for model, weight in scales:
            if weight == 0:
                factors.append(none)
                continue
            if self._compat or not self._pool.is_lora(model):
                return None
            module = self._pool.lora_module(wanted.name, model)
            if self._pool.beside_factors(wanted.name, model) is not None or (module and not module.is_linear):
                return None
            if module is not None:
                a, b = self._pool.lora_factors(module, model)
                factors.append((weight * module.scaling * b, a))
            else:
                factors.append(none)
        if not 0 < sum(len(a) for _, a in factors) < min(wanted.origin.shape):
            return None
        return Core.of(factors)

    def _prepare(
        self,
        wanted: TensorMerge,
        index: int,
        prepare: Callable[..., Any],
        deltas: Sequence[torch.Tensor],
        shape: torch.Size,
    ) -> Any:
        """What a method computes once per matrix and pool, kept where there is room."""
        given = _switches(wanted)
        place = (wanted.method.name, wanted.name, wanted.coefficients.models, f"{index} {given}")
        if place in self._prepared:
            return self._prepared[place]
        made = prepare(deltas, shape, **given)
        if self._pool.keeps(self._pool.device_of(wanted.name), _bytes(made)):
            self._prepared[place] = made
        return made


def _switches(wanted: TensorMerge) -> dict[str, Any]:
    """The method's parameters that are chosen; the one who looks at entries says what is no core's."""
    chosen = {parameter.name for parameter in wanted.method.parameters if parameter.choices}
    return {name: value for name, value in wanted.coefficients.shared if name in chosen}


def _bytes(prepared: Any) -> int:
    """Of all tensors of what a method prepared."""
    if isinstance(prepared, tuple):
        return sum(map(_bytes, prepared))
    return prepared.nbytes if isinstance(prepared, torch.Tensor) else 0


def _cut(tensor: torch.Tensor, piece: _Piece) -> torch.Tensor:
    return tensor.view(-1)[piece] if isinstance(piece, slice) else tensor[piece]


def _weights(coefficients: Coefficients) -> Scales:
    """Every expert's weight, 1 under a method without weights."""
    weights = dict(coefficients.per_model).get("weight", (1.0,) * len(coefficients.models))
    return tuple(zip(coefficients.models, map(float, weights), strict=True))


def _scales(method: MergeMethod, coefficients: Coefficients) -> Scales:
    """What task vectors are multiplied by before a method sees them: 1 where it weighs them itself."""
    return tuple((model, 1.0) for model in coefficients.models) if method.weighs else _weights(coefficients)
