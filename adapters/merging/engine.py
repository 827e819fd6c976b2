"""The resident merge engine: base and experts stay in memory, a candidate is written in place.

A candidate reads K + 1 tensors and writes one; nothing is reloaded, and tensors whose coefficients
did not change since the last merge into the same targets are left as they are. The same engine
streams: with ``resident=False`` tensors come from memory-mapped files one at a time.
"""

from __future__ import annotations

import logging
import shutil
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergefront.adapters.checkpoints import Checkpoint
from mergefront.adapters.merging import compat
from mergefront.adapters.merging.coefficients import CoefficientReader, Coefficients, RecipeLike
from mergefront.adapters.merging.masks import LEVELS, keep_threshold, mask_key, norms_by_level
from mergefront.adapters.merging.ranking import (
    CHUNK,
    EVERY,
    NONE,
    DeltaChunk,
    Rank,
    kept_count,
    rank_in_order,
    row_ranks,
    select_rank,
    sort_magnitudes,
)
from mergefront.adapters.merging.sources import Entry, ExpertSource, check_finite, header_of, open_source
from mergefront.adapters.merging.task_vectors import (
    Fusion,
    Kernel,
    Mode,
    Term,
    compiled_kernel,
    eager_kernel,
    kept_norms,
    pack,
)
from mergefront.optimizer.errors import EvaluationError, UserError, did_you_mean
from mergefront.optimizer.methods import METHODS, MergeMethod

if TYPE_CHECKING:
    from typing import Any, Literal

    import torch

    from mergefront.adapters.merging.sources import Source

_LOG = logging.getLogger(__name__)
_WORTH_COMPILING = 30_000_000
_SMALLEST_NORM = 1e-7
_SMALLEST_SUM = 1e-8


@dataclass(frozen=True)
class MergeReport:
    """What one merge did. ``delta_l1`` is the L1 norm of merged - base over all tensors, before the cast

    to the targets' dtype (NaN without a base); ``merged_tensors`` counts those written this time.
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


class MergeEngine:
    """Merges of one base model and a pool of experts.

    ``base`` and every expert are a path, a ``Checkpoint`` or tensors by name; an expert may be a PEFT
    LoRA folder. ``base`` may be None for methods that need none. ``dtype`` is what they are held in
    (default: as stored). ``resident`` copies memory-mapped checkpoints into memory on ``device``
    ("auto": if they take less than half of what is free). ``compile`` fuses the arithmetic with
    torch.compile ("auto": for models worth the seconds it takes, where a C++ compiler is at hand);
    eager arithmetic gives the same result. ``compat_mergekit`` computes as mergekit does, in the tensors' own
    dtype; slower, for reproducing its merges bit for bit.

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
    ) -> None:
        import torch

        if not experts:
            raise UserError("a merge needs at least one expert")
        self.device = torch.device(device)
        self.dtype = dtype
        self._check = check
        self._compat = compat_mergekit
        opened = None if base is None else open_source(base)
        base_header = None if opened is None else header_of(opened, "base model")
        if base_header is not None and base_header.kind == "lora":
            raise UserError(f"base model {base_header.path} is a LoRA; the base must be a whole checkpoint")
        self._base_source = opened
        self._experts = {name: ExpertSource(name, open_source(source), base_header) for name, source in experts.items()}
        self.experts = tuple(self._experts)
        first = next(iter(self._experts.values()))
        self.names: tuple[str, ...] = tuple(opened if opened is not None else first.names())
        if opened is None:
            self._check_same_names()
        self._base: dict[str, torch.Tensor] = {}
        self._entries: dict[tuple[str, str], Entry | None] = {}
        self._orders: dict[tuple[str, str], torch.Tensor] = {}
        self._ranks: dict[tuple[str, str, int], Rank] = {}
        self._mask_norms: dict[tuple[str, str, tuple[int, int]], torch.Tensor] = {}
        self._row_ranks: dict[tuple[str, str], torch.Tensor] = {}
        self._prepared: dict[tuple[str, str, tuple[str, ...]], Any] = {}
        self._written: dict[tuple[int, str], _Written] = {}
        self.resident = self._fits(experts) if resident == "auto" else resident
        if self.resident:
            for name in self.names:
                self._load(name)
        self._compile = self._worth_compiling() if compile == "auto" else compile

    # -- tensors ---------------------------------------------------------------------------------

    def _check_same_names(self) -> None:
        first, *others = self._experts.values()
        names = set(first.names())
        for other in others:
            differing = sorted(names ^ set(other.names()))
            if differing:
                raise UserError(
                    f"experts {first.name!r} and {other.name!r} do not have the same tensors: {differing[0]}"
                )
            for name in names:
                shapes = [list(expert.entry(name).tensor.shape) for expert in (first, other)]  # type: ignore[union-attr]
                if shapes[0] != shapes[1]:
                    raise UserError(f"{name} is {shapes[0]} in expert {first.name!r} and {shapes[1]} in {other.name!r}")

    def _fits(self, experts: Mapping[str, Source]) -> bool:
        if self.device.type != "cpu":
            import torch

            free, _ = torch.cuda.mem_get_info(self.device) if self.device.type == "cuda" else (1 << 62, 0)
        else:
            free = _free_memory()
        base = self._base_source
        sizes = [base.header.bytes] if isinstance(base, Checkpoint) else []
        one = sizes[0] if sizes else 0
        for source in experts.values():
            opened = open_source(source)
            if isinstance(opened, Checkpoint):
                sizes.append(one if opened.header.kind == "lora" else opened.header.bytes)
        return sum(sizes) < free // 2

    def _load(self, name: str) -> None:
        """Copy one tensor of the base and of every expert to where it stays."""
        if self._base_source is not None:
            tensor = self._base_source[name]
            if self._check:
                check_finite(tensor, "base model", name)
            self._base[name] = self._settle(tensor, copy=True)
        for expert in self._experts.values():
            entry = self._read_entry(name, expert)
            if entry is not None:
                entry = Entry(self._settle(entry.tensor, copy=isinstance(expert._source, Checkpoint)), entry.is_delta)
            self._entries[name, expert.name] = entry

    def _read_entry(self, name: str, expert: ExpertSource) -> Entry | None:
        entry = expert.entry(name)
        if entry is not None and self._check:
            check_finite(entry.tensor, f"expert {expert.name!r}", name)
        if entry is not None and entry.is_delta:
            import torch

            # A task vector of its own needs no more digits than the base it is added to.
            base = self._base_source[name] if self._base_source is not None else entry.tensor
            entry = Entry(entry.tensor.to(torch.bfloat16 if base.dtype == torch.bfloat16 else torch.float32), True)
        return entry

    def _settle(self, tensor: torch.Tensor, copy: bool) -> torch.Tensor:
        dtype = self.dtype if self.dtype is not None and tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(device=self.device, dtype=dtype, copy=copy).contiguous()

    def base_tensor(self, name: str) -> torch.Tensor | None:
        """The base's tensor as it is held, or None without a base."""
        if self._base_source is None:
            return None
        if name in self._base:
            return self._base[name]
        tensor = self._base_source[name]
        if self._check:
            check_finite(tensor, "base model", name)
        return self._settle(tensor, copy=False)

    def _entry(self, name: str, expert: str) -> Entry | None:
        if (name, expert) in self._entries:
            return self._entries[name, expert]
        entry = self._read_entry(name, self._experts[expert])
        return None if entry is None else Entry(self._settle(entry.tensor, copy=False), entry.is_delta)

    # -- merging ---------------------------------------------------------------------------------

    def merge_into(self, recipe: RecipeLike, targets: Mapping[str, torch.Tensor]) -> MergeReport:
        """Write the merge into live tensors, in place; tied targets (one storage, two names) are written once.

        A target whose coefficients are those of the last merge into it is not merged again, unless
        somebody else wrote to it in between (call ``forget`` after writing behind torch's back).
        Raises ``UserError`` for targets that are no tensors of the checkpoint.
        """
        import torch

        started = time.perf_counter()
        reader = CoefficientReader(recipe)
        self._check_recipe(recipe)
        norms: list[torch.Tensor | float] = []
        updates: list[tuple[tuple[int, str], Coefficients, torch.Tensor]] = []
        with torch.no_grad():
            for name, target in self._distinct(targets).items():
                coefficients = reader(name)
                place = (target.data_ptr(), name)
                known = self._written.get(place)
                if known is not None and known.holds(coefficients, target):
                    norms.append(known.norm)
                    continue
                self._written.pop(place, None)
                norms.append(self._merge_tensor(name, coefficients, target))
                updates.append((place, coefficients, target))
        values = [float(norm) for norm in norms]
        written = iter(value for value, norm in zip(values, norms, strict=True) if not isinstance(norm, float))
        for (place, coefficients, target), value in zip(updates, written, strict=True):
            version = _version(target)
            if version is not None:
                self._written[place] = _Written(coefficients, weakref.ref(target), version, value)
        return MergeReport(sum(values), time.perf_counter() - started, len(updates))

    def iterate(
        self, recipe: RecipeLike, names: Iterable[str] | None = None, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The merged tensors one at a time, in new memory (``dtype``: default the base's own)."""
        import torch

        reader = CoefficientReader(recipe)
        self._check_recipe(recipe)
        for name in names if names is not None else self.names:
            origin = self.base_tensor(name)
            if origin is None:
                entry = self._entry(name, self.experts[0])
                assert entry is not None
                origin = entry.tensor
            out = torch.empty(
                origin.shape,
                dtype=(dtype or origin.dtype) if origin.is_floating_point() else origin.dtype,
                device=origin.device,
            )
            with torch.no_grad():
                self._merge_tensor(name, reader(name), out)
            yield name, out

    def forget(self) -> None:
        """Merge every tensor anew next time: the targets were changed by somebody else."""
        self._written.clear()

    def _check_recipe(self, recipe: RecipeLike) -> None:
        for name in recipe.models:
            if name not in self._experts:
                raise UserError(f"the recipe names the expert {name!r} {did_you_mean(name, self.experts)}")
        if METHODS[recipe.method].needs_base and self._base_source is None:
            raise UserError(f"{recipe.method} needs a base model")

    def _distinct(self, targets: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One name per storage; for tied tensors the name that the checkpoint has."""
        known = set(self.names)
        sources = {tensor.data_ptr() for tensor in self._base.values()}
        sources.update(entry.tensor.data_ptr() for entry in self._entries.values() if entry is not None)
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

    def _merge_tensor(self, name: str, coefficients: Coefficients, out: torch.Tensor) -> torch.Tensor:
        """Merge one tensor into ``out``; returns the L1 norm of merged - base (float64 scalar)."""
        import torch

        base = self.base_tensor(name)
        shape = base.shape if base is not None else self._entry(name, self.experts[0]).tensor.shape  # type: ignore[union-attr]
        if out.shape != shape:
            raise UserError(f"target {name!r} is {list(out.shape)}, the checkpoint's tensor {list(shape)}")
        if not out.is_floating_point():
            self._copy_buffer(name, base, out)
            return torch.zeros((), dtype=torch.float64)
        method = METHODS[coefficients.method]
        written = (
            out
            if out.is_contiguous() and out.device == self.device
            else torch.empty(shape, dtype=out.dtype, device=self.device)
        )
        if method.consensus is not None and not self._compat:
            assert base is not None
            norm = self._merge_task_vectors(name, method, coefficients, base, written)
        else:
            norm = self._merge_with_kernel(name, method, coefficients, base, written)
        if written is not out:
            out.copy_(written)
        return norm.double()

    def _copy_buffer(self, name: str, base: torch.Tensor | None, out: torch.Tensor) -> None:
        entry = self._entry(name, self.experts[0])
        source = base if base is not None else entry.tensor if entry is not None else None
        assert source is not None
        out.copy_(source)

    # -- the task-vector family ------------------------------------------------------------------

    def _merge_task_vectors(
        self, name: str, method: MergeMethod, coefficients: Coefficients, base: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        import torch

        weights = dict(zip(coefficients.models, coefficients.of_models("weight"), strict=True))
        scale = float(coefficients.of_recipe("lambda"))
        normalize = bool(coefficients.of_recipe("normalize"))
        # Experts in the order of their names, so that permuting them changes nothing, rounding included.
        terms = [
            term
            for model in sorted(coefficients.models)
            if (weights[model] != 0 or self._compile)
            and (term := self._term(name, method, coefficients, model, base)) is not None
        ]
        if not terms or not any(term.weight for term in terms) or scale == 0 or not base.numel():
            out.copy_(base)
            return torch.zeros((), dtype=torch.float64)
        divisor = sum(float(weight) for weight in weights.values())
        if abs(divisor) < _SMALLEST_SUM:
            divisor = 1.0
        fusion = Fusion(
            tuple(term.mode for term in terms),
            tuple(term.is_delta for term in terms),
            method.consensus == "sign",
            normalize,
        )
        numbers, integers = pack(terms, scale, divisor, base.device)
        kernel = self._kernel(fusion, base.numel())
        norm = kernel(
            _flat(base),
            [_flat(term.tensor) for term in terms],
            [term.row_ranks for term in terms if term.row_ranks is not None],
            numbers,
            integers,
            _flat(out),
        )
        whole = _whole_expert(terms, scale, divisor if normalize and method.consensus != "sign" else None, normalize)
        if whole is not None:
            out.view(-1).copy_(whole)
        return norm

    def _kernel(self, fusion: Fusion, size: int) -> Kernel:
        if not self._compile or size < 2:
            return eager_kernel(fusion)

        def guarded(*arguments: object) -> torch.Tensor:
            try:
                return compiled_kernel(fusion)(*arguments)
            except Exception as error:
                _LOG.warning("torch.compile failed, merging eagerly from now on (slower, same result): %s", error)
                self._compile = False
                return eager_kernel(fusion)(*arguments)

        return guarded

    def _term(
        self, name: str, method: MergeMethod, coefficients: Coefficients, model: str, base: torch.Tensor
    ) -> Term | None:
        """One expert's part, or None when it leaves the base as it is."""
        entry = self._entry(name, model)
        if entry is None:
            return None
        place = coefficients.models.index(model)
        weight = float(coefficients.of_models("weight")[place])
        tensor = entry.tensor.view(-1)
        size = tensor.numel()
        if method.sparsifier == "none":
            return Term(tensor, entry.is_delta, "all", weight, weight)
        density = float(coefficients.of_models("density")[place])
        delta = _delta_of(entry, base)
        if method.sparsifier in ("magnitude", "breadcrumbs"):
            term = self._ranked_term(name, method, coefficients, entry, delta, weight, density, place)
        else:
            term = self._random_term(name, method, coefficients, entry, delta, weight, density, place)
        rescale = coefficients.of_recipe("rescale")
        nothing_dropped = term.mode == "all" or (term.least is EVERY and term.mode == "largest")
        if rescale == "none" or nothing_dropped or density <= 0 or density >= 1:
            return term
        factor = 1 / density if rescale == "density" else self._norm_ratio(name, model, term, delta, size)
        return term._replace(factor=weight * factor)

    def _ranked_term(
        self,
        name: str,
        method: MergeMethod,
        coefficients: Coefficients,
        entry: Entry,
        delta: DeltaChunk,
        weight: float,
        density: float,
        place: int,
    ) -> Term:
        """Keep by rank of magnitude: the largest, or (breadcrumbs) those below the ``gamma`` largest."""
        tensor, model = entry.tensor.view(-1), coefficients.models[place]
        size = tensor.numel()
        kept = kept_count(density, size) if method.sparsifier == "magnitude" else min(int(density * size), size)
        dropped = 0
        if method.sparsifier == "breadcrumbs" and density < 1:
            gamma = float(coefficients.of_models("gamma")[place])
            dropped = min(int(gamma * size), size - kept)
        least = (
            NONE
            if kept == 0
            else EVERY
            if dropped + kept == size
            else self._rank(name, model, delta, size, dropped + kept)
        )
        above = self._rank(name, model, delta, size, dropped) if dropped and kept else NONE
        if method.sparsifier == "magnitude":
            mode: Mode = "all" if least is EVERY and not self._compile else "largest"
        else:
            mode = "window"
        return Term(tensor, entry.is_delta, mode, weight, weight, least, above)

    def _random_term(
        self,
        name: str,
        method: MergeMethod,
        coefficients: Coefficients,
        entry: Entry,
        delta: DeltaChunk,
        weight: float,
        density: float,
        place: int,
    ) -> Term:
        """Keep at random: every entry alike (DARE), or large ones more often within their row (DELLA)."""
        tensor, model = entry.tensor.view(-1), coefficients.models[place]
        keys = mask_key(coefficients.seed, name, model)
        threshold = keep_threshold(density)
        if threshold == LEVELS and not self._compile:
            return Term(tensor, entry.is_delta, "all", weight, weight)
        if method.sparsifier == "bernoulli" or threshold in (0, LEVELS):
            return Term(tensor, entry.is_delta, "random", weight, weight, keys=keys, threshold=threshold)
        epsilon = min(float(coefficients.of_models("epsilon")[place]), 0.999 * density, 0.999 * (1 - density))
        row = entry.tensor.shape[1] if entry.tensor.dim() > 1 else tensor.numel()
        start, slope = (density - epsilon, 2 * epsilon / (row - 1)) if row > 1 else (density, 0.0)
        if (name, model) not in self._row_ranks or not self.resident:
            self._row_ranks[name, model] = row_ranks(delta(0, tensor.numel()).view(entry.tensor.shape))
        ranks = self._row_ranks[name, model] if self.resident else self._row_ranks.pop((name, model))
        return Term(
            tensor,
            entry.is_delta,
            "ranked",
            weight,
            weight,
            keys=keys,
            row_ranks=ranks,
            start=start * LEVELS,
            slope=slope * LEVELS,
        )

    def _norm_ratio(self, name: str, model: str, term: Term, delta: DeltaChunk, size: int) -> float:
        """L1 norm of the task vector over that of what is kept of it; 1 where either vanishes."""
        if term.mode != "random" or not self.resident or size < LEVELS:
            whole, kept = kept_norms(term, delta, size)
        else:
            place = (name, model, term.keys)
            if place not in self._mask_norms:
                self._mask_norms = {known: table for known, table in self._mask_norms.items() if known[:2] != place[:2]}
                self._mask_norms[place] = norms_by_level(delta, size, term.keys)
            table = self._mask_norms[place]
            whole, kept = float(table[-1]), float(table[term.threshold - 1])
        return 1.0 if min(whole, kept) < _SMALLEST_NORM else whole / kept

    def _rank(self, name: str, model: str, delta: DeltaChunk, size: int, k: int) -> Rank:
        """The k-th largest magnitude of a task vector: from its order, sorted once, or by selection when streaming."""
        known = self._ranks.get((name, model, k))
        if known is not None:
            return known
        if self.resident and (name, model) not in self._orders:
            self._orders[name, model] = sort_magnitudes(delta, size, self.device)
        order = self._orders.get((name, model))
        rank = select_rank(delta, size, k) if order is None else rank_in_order(order, delta, k)
        if self.resident:
            self._ranks[name, model, k] = rank
        return rank

    # -- every other method ----------------------------------------------------------------------

    def _merge_with_kernel(
        self, name: str, method: MergeMethod, coefficients: Coefficients, base: torch.Tensor | None, out: torch.Tensor
    ) -> torch.Tensor:
        import torch

        arguments: dict[str, Any] = dict(coefficients.per_model) | dict(coefficients.shared)
        if "lambda" in arguments:
            arguments["lambda_"] = arguments.pop("lambda")
        if method.consensus is None:
            kernel = compat.linear if self._compat and method.name == "linear" else method.load_kernel()
        else:
            place = (name, coefficients.models, coefficients.seed)

            def kernel(tensors: Sequence[torch.Tensor], origin: torch.Tensor, **parameters: Any) -> torch.Tensor:
                return compat.merge_task_vectors(method, tensors, origin, parameters, place)

        prepare = method.load_prepare()
        entries = [self._entry(name, model) for model in coefficients.models]
        own_dtype = self._compat and method.name not in compat.IN_FLOAT32
        flat = method.elementwise and not self._compat
        size = out.numel()
        stretch = CHUNK if flat and self.device.type == "cpu" else max(size, 1)
        norm = torch.zeros((), dtype=torch.float64)
        for start in range(0, size, stretch):
            part = slice(start, min(start + stretch, size))
            origin = None if base is None else _cut(base, part, flat)
            if origin is not None and not own_dtype:
                origin = origin.float()
            tensors = []
            for entry in entries:
                if entry is None:
                    assert origin is not None
                    tensors.append(origin)
                    continue
                tensor = _cut(entry.tensor, part, flat)
                tensor = tensor if own_dtype else tensor.float()
                tensors.append(tensor + origin if entry.is_delta and origin is not None else tensor)
            if prepare is not None:
                arguments["prepared"] = self._prepare(name, coefficients, prepare, tensors, origin)
            merged = kernel(tensors, origin if coefficients.with_base else None, **arguments)
            _cut(out, part, flat).copy_(merged)
            if origin is None:
                norm = torch.full((), float("nan"), dtype=torch.float64)
            else:
                norm = norm + (merged.float() - origin.float()).abs().sum().double().cpu()
        return norm

    def _prepare(
        self,
        name: str,
        coefficients: Coefficients,
        prepare: Callable[..., Any],
        tensors: Sequence[torch.Tensor],
        base: torch.Tensor | None,
    ) -> Any:
        """What a method computes once per tensor and pool, kept when resident."""
        place = (coefficients.method, name, coefficients.models)
        if place in self._prepared:
            return self._prepared[place]
        made = prepare(tensors, base)
        if self.resident:
            self._prepared[place] = made
        return made

    def _worth_compiling(self) -> bool:
        if self.device.type == "cpu" and shutil.which("g++") is None and shutil.which("clang++") is None:
            return False
        return self.resident and sum(tensor.numel() for tensor in self._base.values()) >= _WORTH_COMPILING


def _cut(tensor: torch.Tensor, part: slice, flat: bool) -> torch.Tensor:
    return tensor.view(-1)[part] if flat else tensor


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as one dimension, and no view: torch.compile guards views at a cost per call."""
    import torch

    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), tensor.storage_offset(), (tensor.numel(),), (1,))


def _delta_of(entry: Entry, base: torch.Tensor) -> DeltaChunk:
    flat, origin = entry.tensor.view(-1), base.view(-1)
    if entry.is_delta:
        return lambda start, end: flat[start:end].float()
    return lambda start, end: flat[start:end].float() - origin[start:end].float()


def _whole_expert(terms: list[Term], scale: float, divisor: float | None, normalize: bool) -> torch.Tensor | None:
    """The expert itself when the recipe says so: base + (expert - base) would lose its last digit."""
    active = [term for term in terms if term.weight]
    if len(active) != 1:
        return None
    (term,) = active
    kept_whole = (
        term.mode == "all"
        or (term.mode == "largest" and term.least is EVERY)
        or (term.mode == "random" and term.threshold == LEVELS)
    )
    if divisor is None:
        divisor = term.weight if normalize else 1.0
    whole = not term.is_delta and kept_whole and term.factor * scale / divisor == 1.0
    return term.tensor if whole else None


def _version(tensor: torch.Tensor) -> int | None:
    """How often torch saw a tensor change in place, or None where it does not count."""
    return None if tensor.is_inference() else tensor._version


def _free_memory() -> int:
    """Bytes of memory that are free, page cache included; a large number where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 40


__all__ = ["EvaluationError", "MergeEngine", "MergeReport"]
