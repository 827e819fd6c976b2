"""The merge engine: base and experts stay in memory as far as it goes, a candidate is written in place.

A candidate reads K + 1 tensors and writes one. Tensors whose coefficients did not change since the last merge into the
same targets are left as they are. What the device cannot hold is streamed: fetched from the host's memory or from
memory-mapped files, a portion at a time, while the portion before is merged.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, SupportsFloat

import torch

from mergefront.adapters.merging.coefficients import CoefficientReader, Coefficients, RecipeLike, TensorMerge
from mergefront.adapters.merging.compression import TaskVectorForm
from mergefront.adapters.merging.loras.merger import LoraMerger
from mergefront.adapters.merging.offload.placement import Placement, portions
from mergefront.adapters.merging.offload.prefetch import prefetched
from mergefront.adapters.merging.reference import MergekitMerger
from mergefront.adapters.merging.sources import Source
from mergefront.adapters.merging.task_vectors.c_kernel import load_kernel
from mergefront.adapters.merging.task_vectors.fused import FusedBatch, PendingNorm
from mergefront.adapters.merging.task_vectors.merger import TaskVectorMerger
from mergefront.adapters.merging.tensor_pool import TensorPool
from mergefront.adapters.merging.whole_models.merger import KernelMerger
from mergefront.optimizer.errors import EvaluationError, UserError, did_you_mean
from mergefront.optimizer.recipes.methods import METHODS, MergeMethod

_WORTH_COMPILING = 30_000_000
_ON_CPU, _ELSEWHERE = 1 << 26, 1 << 29
"""Bytes in float32 that are fetched ahead: as many again are merged meanwhile."""
_ROUNDED_AT_ONCE = 1 << 20
"""Entries whose rounded copy stays in a processor's cache: of 2^16, 2^18, 2^20 and whole tensors the quickest."""


class Merger(Protocol):
    """Merges the tensors of one family of methods."""

    def reads(self, coefficients: Coefficients) -> Sequence[str]:
        """The experts whose whole tensors it will ask the pool for."""
        ...

    def merge(self, wanted: TensorMerge, out: torch.Tensor, batch: FusedBatch) -> SupportsFloat:
        """Merge one tensor into ``out`` (contiguous, on the pool's device), now or when ``batch`` runs.

        Returns the L1 norm of merged - base (NaN without a base), known once the batch has run.
        """
        ...


@dataclass(frozen=True)
class MergeReport:
    """What one merge did.

    ``delta_l1`` is the L1 norm of merged - base over all tensors, before the cast to the targets' dtype (NaN without a
    base); ``merged_tensors`` counts those written this time.
    """

    delta_l1: float
    seconds: float
    merged_tensors: int


@dataclass(frozen=True)
class _Written:
    """The last merge into one target: valid while nobody else wrote to it."""

    coefficients: Coefficients
    target: weakref.ref[torch.Tensor]
    version: int
    norm: float

    def holds(self, coefficients: Coefficients, target: torch.Tensor) -> bool:
        """Whether ``target`` still is this merge: the same tensor (an address alone may have been
        used again by another one), not written to since, and the same coefficients."""
        same = self.target() is target and self.version == _version(target)
        return same and self.coefficients == coefficients


@dataclass
class _Merge:
    """One target of a merge: the norm that it has already (``held``), or that of the merge, rounded to ``kept``."""

    name: str
    coefficients: Coefficients
    target: torch.Tensor
    held: float | None = None
    norm: SupportsFloat = float("nan")
    kept: torch.dtype | None = None

    @property
    def place(self) -> tuple[int, str]:
        return self.target.data_ptr(), self.name


class MergeEngine:
    """Merges of one base model and a pool of experts.

    ``base`` and every expert are a path, a ``Checkpoint`` or tensors by name; an expert may be a PEFT
    LoRA folder. ``base`` may be None for methods that need none. ``dtype`` is what they are held in
    (default: as stored). ``resident`` copies memory-mapped checkpoints into memory on ``device``; "auto": as far as
    ``max_memory`` goes (bytes by device, ``cpu`` for the host's; default: half of what is free), and streams the rest,
    with the same result. ``compile`` fuses the arithmetic: on a CPU by a kernel
    in C, elsewhere by torch.compile ("auto": there for models worth the seconds it takes). Where mergefront was
    installed without a C compiler torch's operations give the same result. ``compat_mergekit`` computes as
    mergekit does, in the tensors' own dtype; slower, for reproducing its merges bit for bit. ``task_vectors`` holds
    the experts as task vectors of eight bits ("int8") or of a rank (a number) where memory is
    short: approximations, whose errors are in ``task_vector_errors``. ``rounding`` is the dtype whose digits a merge
    keeps in wider targets ("stored": each tensor the base's own), so that live weights are those of a written merge.
    ``devices`` says where each tensor's target lies, where not all are on ``device``: it is merged there.
    ``allow``: see ``compare_models``.

    Raises ``UserError`` for experts that do not fit the base and, naming the tensor, for NaN.
    """

    def __init__(
        self,
        base: Source | None,
        experts: Mapping[str, Source],
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        *,
        resident: bool | Literal["auto"] = "auto",
        compile: bool | Literal["auto"] = "auto",
        check: bool = True,
        compat_mergekit: bool = False,
        task_vectors: TaskVectorForm = "exact",
        rounding: torch.dtype | Literal["stored"] | None = None,
        allow: Collection[str] = (),
        max_memory: Mapping[str, int] | None = None,
        devices: Mapping[str, torch.device] | None = None,
    ) -> None:
        self._rounding = rounding
        self.device = torch.device(device)
        self._pool = TensorPool(
            base, experts, self.device, dtype, resident, check, task_vectors, allow, compat_mergekit,
            max_memory, devices,
        )  # fmt: skip
        self._pool.load()
        self.experts = self._pool.experts
        self.names = self._pool.names
        # torch.compile compiles once per process and set of modes.
        kinds = {self._pool.device_of(name).type for name in self.names}
        is_large = resident is not False and self._pool.size >= _WORTH_COMPILING
        wants_kernel, wants_compiler = (True, is_large) if compile == "auto" else (compile, compile)
        self._kernel = load_kernel() if wants_kernel and "cpu" in kinds else None
        self._family: Merger = (
            MergekitMerger(self._pool)
            if compat_mergekit
            else TaskVectorMerger(self._pool, wants_compiler and kinds != {"cpu"}, self._kernel)
        )
        self._kernels = KernelMerger(self._pool, compat_mergekit)
        self._loras = LoraMerger(self._pool)
        self._written: dict[tuple[int, str], _Written] = {}

    def merge_into(self, recipe: RecipeLike, targets: Mapping[str, torch.Tensor]) -> MergeReport:
        """Write the merge into live tensors, in place; tied targets (one storage, two names) are written once.

        A target whose coefficients are those of the last merge into it is not merged again, unless
        somebody else wrote to it in between (call ``forget`` after writing behind torch's back).
        Raises ``UserError`` for targets that are no tensors of the checkpoint.
        """
        started = time.perf_counter()
        reader = CoefficientReader(recipe)
        self._check_recipe(recipe)
        merges: list[_Merge] = []
        # All are looked at before the first is written: targets that are views of one tensor share its version.
        for name, target in self._distinct(targets).items():
            merge = _Merge(name, reader(name), target)
            known = self._written.pop(merge.place, None)
            merge.held = known.norm if known is not None and known.holds(merge.coefficients, target) else None
            merges.append(merge)
        waiting = {merge.name: merge for merge in merges if merge.held is None}
        batch = FusedBatch(self._kernel)
        with torch.no_grad():
            for names, fetched in prefetched(self._portions(waiting), self._pool.fetch):
                with self._pool.staged(fetched):
                    for name in names:
                        one = waiting[name]
                        one.kept = self._kept(name)
                        one.norm = self._merge_tensor(name, one.coefficients, one.target, batch, one.kept)
                    batch.run()
                del fetched  # before more is fetched
                for name in names:
                    one = waiting[name]
                    _round(name, one.target, one.kept, isinstance(one.norm, PendingNorm) and one.norm.rounded)
        values = [float(merge.norm if merge.held is None else merge.held) for merge in merges]
        for merge, value in zip(merges, values, strict=True):
            version = _version(merge.target)
            if version is not None:
                self._written[merge.place] = _Written(merge.coefficients, weakref.ref(merge.target), version, value)
        return MergeReport(sum(values), time.perf_counter() - started, len(waiting))

    def iterate(
        self, recipe: RecipeLike, names: Iterable[str] | None = None, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The merged tensors one at a time, in new memory (``dtype``: default the base's own)."""
        for name, tensor, _ in self.measured(recipe, names, dtype):
            yield name, tensor

    def measured(
        self, recipe: RecipeLike, names: Iterable[str] | None = None, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, torch.Tensor, float]]:
        """As ``iterate``, each tensor with the L1 norm of merged - base before the cast (NaN without a base)."""
        reader = CoefficientReader(recipe)
        self._check_recipe(recipe)
        batch = FusedBatch(self._kernel)
        for name in names if names is not None else self.names:
            origin = self._pool.origin(name)
            out = torch.empty(
                origin.shape,
                dtype=(dtype or origin.dtype) if origin.is_floating_point() else origin.dtype,
                device=origin.device,
            )
            with torch.no_grad():
                norm = self._merge_tensor(name, reader(name), out, batch, None)
                batch.run()
            yield name, out, float(norm)

    @property
    def placement(self) -> Placement:
        """Where the base's and the experts' tensors are held."""
        return self._pool.placement

    @property
    def compiled(self) -> bool:
        """Whether the CPU's compiled kernel merges."""
        return self._kernel is not None

    def task_vector_errors(self) -> dict[str, float]:
        """By expert, |held - exact| / |exact| of its task vector, over the tensors that are held (Frobenius)."""
        return self._pool.compression_errors()

    def task_vector(self, name: str, expert: str) -> torch.Tensor | None:
        """expert - base of one tensor in float32; None where no merge with this expert changes the tensor."""
        entry = None if self._pool.carries(name) else self._pool.entry(name, expert)
        if entry is None:
            return None
        return entry.tensor.float() if entry.is_delta else entry.tensor.float() - self._pool.origin(name).float()

    def forget(self) -> None:
        """Merge every tensor anew next time: the targets were changed by somebody else."""
        self._written.clear()

    def _check_recipe(self, recipe: RecipeLike) -> None:
        for name in recipe.models:
            if name not in self.experts:
                raise UserError(f"the recipe names the expert {name!r} {did_you_mean(name, self.experts)}")
        method = METHODS[recipe.method]
        if method.needs_base and not self._pool.has_base:
            raise UserError(f"{recipe.method} needs a base model")
        if method.lora is not None:
            self._loras.check(method, tuple(recipe.models))

    def _distinct(self, targets: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One name per storage; for tied tensors the name that the checkpoint has."""
        known = set(self.names)
        sources = self._pool.memory()
        chosen: dict[int, str] = {}
        unknown: dict[int, str] = {}
        for name, target in targets.items():
            place = target.data_ptr()
            if place in sources and target.numel():
                raise UserError(
                    f"target {name!r} is the memory of an expert or of the base; merge into a copy of the model"
                )
            if name in known:
                chosen.setdefault(place, name)
            else:
                unknown[place] = name
        stray = [name for place, name in unknown.items() if place not in chosen]
        if stray:
            raise UserError(f"target {stray[0]!r} is no tensor of the checkpoint {did_you_mean(stray[0], self.names)}")
        return {name: targets[name] for name in chosen.values()}

    def _merge_tensor(
        self, name: str, coefficients: Coefficients, out: torch.Tensor, batch: FusedBatch, kept: torch.dtype | None
    ) -> SupportsFloat:
        """Merge one tensor into ``out``, now or when ``batch`` runs; returns the L1 norm of merged - base.

        A batch that can drops the digits that the dtype ``kept`` does not have.
        """
        base = self._pool.base(name)
        shape = (self._pool.origin(name) if base is None else base).shape
        if out.shape != shape:
            raise UserError(f"target {name!r} is {list(out.shape)}, the checkpoint's tensor {list(shape)}")
        if not out.is_floating_point() or self._pool.carries(name):
            out.copy_(self._pool.origin(name))
            return 0.0
        method = METHODS[coefficients.method]
        device = self._pool.device_of(name)
        direct = out.is_contiguous() and out.device == device
        written = out if direct else torch.empty(shape, dtype=out.dtype, device=device)
        wanted = TensorMerge(name, method, coefficients, base, kept)
        norm = self._merger(method).merge(wanted, written, batch)
        if not direct:
            batch.run()
            out.copy_(written)
        return norm

    def _kept(self, name: str) -> torch.dtype | None:
        return self._pool.origin(name).dtype if self._rounding == "stored" else self._rounding

    def _portions(self, merges: Mapping[str, _Merge]) -> list[dict[str, Sequence[str]]]:
        """Names, each with the experts that are read, in the order of merging: first all that is held, in one portion,
        so that something is fetched meanwhile."""
        if self._pool.holds_all():
            return [dict.fromkeys(merges, ())]
        reads = {
            name: ()
            if self._pool.carries(name)
            else self._merger(METHODS[one.coefficients.method]).reads(one.coefficients)
            for name, one in merges.items()
        }
        sizes = {name: self._pool.bytes_to_fetch(name, experts) for name, experts in reads.items()}
        held = [name for name, size in sizes.items() if not size]
        most = _ON_CPU if self.device.type == "cpu" else _ELSEWHERE
        streamed = portions(((name, size) for name, size in sizes.items() if size), most)
        return [{name: reads[name] for name in names} for names in ([held] if held else []) + list(streamed)]

    def _merger(self, method: MergeMethod) -> Merger:
        if method.lora is not None:
            return self._loras
        return self._kernels if method.consensus is None else self._family


def _version(tensor: torch.Tensor) -> int | None:
    """How often torch saw a tensor change in place, or None where it does not count."""
    return None if tensor.is_inference() else tensor._version


def _round(name: str, target: torch.Tensor, dtype: torch.dtype | None, is_rounded: bool) -> None:
    """Drop the digits of a merged tensor that a narrower dtype would not keep, unless the kernel did.

    Raises ``EvaluationError`` for a merge that float16 cannot hold.
    """
    if dtype is None or not target.is_floating_point() or torch.promote_types(dtype, target.dtype) == dtype:
        return
    if not is_rounded:
        for piece in torch.split(target.view(-1) if target.is_contiguous() else target, _ROUNDED_AT_ONCE):
            piece.copy_(piece.to(dtype))
    if dtype == torch.float16 and not target.isfinite().all():
        raise EvaluationError(
            f"tensor {name!r} of this merge exceeds float16, which it is rounded to; backend: {{dtype: bfloat16}} "
            "holds it",
            kind="not finite",
        )
