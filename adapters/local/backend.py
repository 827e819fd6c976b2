"""The local backend: merges are written in place into one live model; nothing goes to disk.

backend = LocalBackend(model, base_state, {"maths": state, "french": state})      # any torch module
backend = LocalBackend.from_checkpoints("models/base", {"maths": "models/maths"})  # Hugging Face folders
with backend.apply(recipe) as merged: ...
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from mergefront.adapters.checkpoints.dtypes import FLOATING
from mergefront.adapters.checkpoints.header import Checkpoint, CheckpointHeader
from mergefront.adapters.checkpoints.live_names import Assembly, live_names
from mergefront.adapters.local.devices.usable import DeviceMap, Devices, usable_devices
from mergefront.adapters.merging.modalities import Composition
from mergefront.adapters.merging.vocabulary import Alignment
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from mergefront.adapters.local.loading import Spread
    from mergefront.adapters.merging.compression import TaskVectorForm
    from mergefront.adapters.merging.engine import MergeReport
    from mergefront.adapters.merging.offload.placement import MaxMemory
    from mergefront.adapters.merging.sources import Source
    from mergefront.adapters.merging.tensor_pool import TensorPool

_log = logging.getLogger(__name__)
_BASE = ""
"""The base's name among the models that are aligned; no expert is called so."""


class LocalBackend:
    """A live model and the weights from which its merges are made.

    ``model`` is any ``torch.nn.Module``; ``base`` and every expert are a state dict of it or a
    checkpoint's path (an expert may be a PEFT LoRA folder). ``apply`` overwrites the model's weights:
    after a search it holds the last merge that was tried. With a ``tokenizer`` (or
    processor) the model is a transformers model and ``apply`` yields a ``LanguageModel``, otherwise the module itself;
    ``folder`` has the files that say how it pools texts.
    ``dtype`` is what base and experts are held in (default: as they are); the arithmetic is float32,
    or mergekit's own with ``compat_mergekit``. ``max_memory`` bounds what the live model, the base and the experts take
    together: 24GB, or {"cuda:0": "20GB", "cpu": "60GB"}. ``waiting`` has the tensors of a model that accelerate runs
    whose own are on the meta device. ``task_vectors``, ``rounding`` and ``allow``: see
    ``MergeEngine``.

    Raises ``UserError`` when the weights do not fit the model or each other.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        base: Source,
        experts: Mapping[str, Source],
        *,
        tokenizer: Any = None,
        folder: Path | None = None,
        dtype: torch.dtype | None = None,
        compat_mergekit: bool = False,
        task_vectors: TaskVectorForm = "exact",
        rounding: torch.dtype | Literal["stored"] | None = None,
        allow: Collection[str] = (),
        max_memory: MaxMemory = None,
        waiting: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        import torch

        from mergefront.adapters.merging.engine import MergeEngine
        from mergefront.adapters.merging.offload.placement import memory_limits
        from mergefront.adapters.merging.sources import header_of, open_source

        live = _live_tensors(model) | dict(waiting or {})
        places = {tensor.data_ptr() for tensor in live.values() if tensor.numel()}
        device = next((tensor.device for tensor in live.values()), torch.device("cpu"))
        self._targets = _targets(model, live, header_of(open_source(base), "base model"))
        devices = {name: target.device for name, target in self._targets.stored.items()}
        limits = memory_limits(max_memory, [device, *devices.values()])
        for name, size in _bytes_by_device(live).items():
            if name in limits:
                limits[name] = max(0, limits[name] - size)
        self.model = model
        self.engine = MergeEngine(
            _apart(base, places),
            {name: _apart(expert, places) for name, expert in experts.items()},
            device,
            dtype,
            compat_mergekit=compat_mergekit,
            task_vectors=task_vectors,
            rounding=rounding,
            allow=allow,
            max_memory=limits,
            devices=devices,
        )
        self._lock = threading.Lock()
        self._owner: int | None = None
        model.eval()
        self._asked: Any = model
        if tokenizer is not None:
            from mergefront.adapters.local.asked import asked_model

            self._asked = asked_model(model, tokenizer, folder)

    @classmethod
    def from_checkpoints(
        cls,
        base: str | PathLike[str],
        experts: Mapping[str, str | PathLike[str]],
        *,
        device: str = "auto",
        device_map: DeviceMap = None,
        max_memory: MaxMemory = None,
        dtype: str = "auto",
        compute: str = "auto",
        compat_mergekit: bool = False,
        task_vectors: TaskVectorForm = "exact",
        allow: Collection[str] = (),
        tokenizer_source: str | Mapping[str, Any] | None = None,
        scope: str | None = None,
        carry: Mapping[str, str] | None = None,
        for_text: bool = True,
        headless: bool = False,
    ) -> LocalBackend:
        """Hugging Face folders: the base's model is made once, experts may be whole checkpoints or LoRAs.

        ``device`` "auto" is the accelerator where there is one; "cuda:0,cuda:1" spreads the live model's layers over
        several, and ``device_map`` "auto" over them (or all), the host's memory and disk.
        ``dtype`` is what merged weights are rounded to, as an export writes them ("float32", "bfloat16", "float16";
        "auto": what most of the base is stored in).
        ``compute`` is what the live model computes in ("auto": ``dtype``, float32 on a CPU). ``tokenizer_source``
        says whose tokens merges have, as a study file does (default: all must have the same); the live model gets
        rows for them. ``scope`` "language" merges the stack of text alone, and ``carry`` has the expert that each tower
        is taken from: {"vision": "A", "audio": "B"}. The live model is of the class that the base's configuration
        names (or that of the model with a place for all towers); ``for_text`` gives a base without a head one,
        ``headless`` takes it from one that has one (for vectors of texts).
        Raises ``UserError`` for folders that are no models and for experts that do not fit.
        """
        import torch

        from mergefront.adapters.local.loading import compose_model, load_model
        from mergefront.adapters.merging.output.metadata import describe

        weights = _weights(base, experts, device, device_map, dtype, compute, tokenizer_source, scope, carry)
        aligned, composition, spread = weights.aligned, weights.composition, weights.spread(max_memory)
        waiting: dict[str, torch.Tensor] = {}
        if composition.is_scoped:
            folders = [one.path for one in composition.models.values()]
            described = describe(composition, aligned, aligned.models[_BASE].header.config, folders)
            model, tokenizer = compose_model(aligned.models[_BASE], described, weights.computing, for_text, headless)
        else:
            model, tokenizer, waiting = load_model(Path(base), weights.computing, aligned, for_text, headless, spread)
        if spread is None:
            model.to(weights.devices.main)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        with torch.no_grad():
            return cls(
                model,
                aligned.models[_BASE],
                {name: aligned.models[name] for name in experts},
                tokenizer=tokenizer,
                folder=composition.frame if composition.is_scoped else Path(base),
                compat_mergekit=compat_mergekit,
                task_vectors=task_vectors,
                rounding=weights.rounding,
                allow=allow,
                max_memory=max_memory,
                waiting=waiting,
            )

    @property
    def experts(self) -> tuple[str, ...]:
        """The names of the experts that recipes may use."""
        return self.engine.experts

    @property
    def stored(self) -> Mapping[str, torch.Tensor]:
        """Where merges are written, by the names of the checkpoint's tensors: mostly views of live parameters."""
        return self._targets.stored

    @property
    def live(self) -> Any:
        """The live model as ``apply`` yields it, whatever merge it holds."""
        return self._asked

    def apply(self, recipe: Recipe) -> LocalMerge:
        """The merge of a recipe, made when the returned context is entered.

        One merge is applied at a time: another thread waits, and a second one inside the first is an error.
        """
        return LocalMerge(self, recipe)

    def compare(self, written: Checkpoint) -> tuple[int, list[str]]:
        """How many tensors a written model has, and the names of those that are not what the live merge is now.

        Inside the block of ``apply``. A tied tensor that the folder leaves out is the one that it is tied to.
        """
        import torch

        live = self._targets.stored
        differing = [
            name for name in written if name in live and not torch.equal(written[name].to(live[name]), live[name])
        ]
        there = {live[name].data_ptr() for name in written if name in live}
        lost = [name for name, target in live.items() if name not in written and target.data_ptr() not in there]
        return len(written), differing + lost

    def _enter(self, recipe: Recipe) -> MergeReport:
        if self._owner == threading.get_ident():
            raise RuntimeError("a merge is applied already; leave its block before applying the next one")
        self._lock.acquire()
        self._owner = threading.get_ident()
        try:
            report = self.engine.merge_into(recipe, self._targets.stored)
            self._targets.assemble(self.model)
            return report
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        self._owner = None
        self._lock.release()


class LocalMerge:
    """A recipe applied to a ``LocalBackend`` (see ``AppliedMerge``): a context that yields the merged model."""

    def __init__(self, backend: LocalBackend, recipe: Recipe) -> None:
        self._backend = backend
        self._recipe = recipe
        self._report: MergeReport | None = None

    def __enter__(self) -> Any:
        self._report = self._backend._enter(self._recipe)
        return self._backend._asked

    def __exit__(self, *_: object) -> None:
        self._backend._leave()

    @property
    def report(self) -> MergeReport:
        """What the merge did; known once the context was entered."""
        if self._report is None:
            raise RuntimeError("the merge is made when its context is entered; it has no report before")
        return self._report

    @property
    def delta_l1(self) -> float:
        """L1 norm of merged minus base weights, from the merge pass itself (NaN without a base)."""
        return self.report.delta_l1

    @property
    def seconds(self) -> float:
        """Wall time of the merge."""
        return self.report.seconds


def _live_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's parameters and persistent buffers by name, as the live tensors themselves."""
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if hasattr(tensor, "data_ptr")}


def _bytes_by_device(live: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Bytes of live tensors by the names of their devices, those of one memory counted once."""
    from mergefront.adapters.merging.offload.placement import device_name

    sizes: dict[str, int] = {}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in live.values()}
    for storage in storages.values():
        name = device_name(storage.device)
        sizes[name] = sizes.get(name, 0) + storage.nbytes()
    return sizes


@dataclass(frozen=True)
class _Targets:
    """Where merges are written: stored names, and views of live tensors or, for those that a live tensor is computed
    from (see ``Assembly``), tensors of their own."""

    stored: Mapping[str, torch.Tensor]
    assemblies: tuple[Assembly, ...]

    def assemble(self, model: torch.nn.Module) -> None:
        """Compute the live tensors that no stored one is a view of."""
        import torch

        if self.assemblies:
            live = model.state_dict()
            with torch.no_grad():
                for assembly in self.assemblies:
                    for name, tensor in assembly.make(self.stored, model).items():
                        live[name].copy_(tensor)


def _targets(model: torch.nn.Module, live: Mapping[str, torch.Tensor], base: CheckpointHeader) -> _Targets:
    """Raises ``UserError`` where base and model do not have the same tensors."""
    import torch

    stored = {name: info.shape for name, info in base.tensors.items()}
    names = live_names(model, stored)
    problems = names.problems()
    unexpected = names.unexpected(base.config, stored)
    if unexpected is not None and not hasattr(model, "base_model_prefix"):
        problems.append(f"the model has no tensor {names.ignored[0]!r}, which the base has")
    elif unexpected is not None:
        _log.warning("%s", unexpected)
    if problems:
        raise UserError("; ".join(problems) + "; the base must be the model's whole checkpoint, of its own class")
    position = {name: number for number, name in enumerate(live)}
    views = {
        name: place.of(live[place.live].detach())
        for name, place in sorted(names.places.items(), key=lambda named: position[named[1].live])
    }
    computed = {
        name: torch.empty(stored[name], dtype=live[assembly.live].dtype, device=live[assembly.live].device)
        for assembly in names.assemblies
        for name in assembly.names
    }
    return _Targets(views | computed, names.assemblies)


def _apart(source: Source, places: set[int]) -> Source:
    """``source`` with copies of what shares the live model's memory, which merging overwrites."""
    if not isinstance(source, Mapping) or hasattr(source, "header"):
        return source
    return {
        name: tensor.detach().clone() if tensor.data_ptr() in places else tensor.detach()
        for name, tensor in source.items()
    }


@dataclass(frozen=True)
class _Weights:
    """What a backend's merges are made from, the device, and the dtypes that they are computed in and rounded to."""

    devices: Devices
    composition: Composition
    aligned: Alignment
    computing: torch.dtype
    rounding: torch.dtype | Literal["stored"]

    def spread(self, max_memory: MaxMemory) -> Spread | None:
        """How the live model is spread over several places; None where it lies on one device."""
        from mergefront.adapters.local.loading import Spread
        from mergefront.adapters.merging.offload.placement import memory_limits

        if not self.devices.is_spread:
            return None
        if self.composition.is_scoped:
            raise UserError(
                "scope: a model composed of several folders runs on one device; name one, without device_map"
            )
        if self.aligned.rows != self.aligned.was:
            raise UserError("tokenizer_source: embeddings of other rows lie on one device; leave device_map out")
        return Spread(self.devices, memory_limits(max_memory, self.devices.all))


class _WeightOptions(TypedDict, total=False):
    """Those of ``LocalBackend.from_checkpoints`` that say which weights there are, and where."""

    device: str
    device_map: DeviceMap
    dtype: str
    compute: str
    tokenizer_source: str | Mapping[str, Any] | None
    scope: str | None
    carry: Mapping[str, str] | None


def _weights(
    base: str | PathLike[str],
    experts: Mapping[str, str | PathLike[str]],
    device: str = "auto",
    device_map: DeviceMap = None,
    dtype: str = "auto",
    compute: str = "auto",
    tokenizer_source: str | Mapping[str, Any] | None = None,
    scope: str | None = None,
    carry: Mapping[str, str] | None = None,
) -> _Weights:
    """See ``LocalBackend.from_checkpoints``; nothing but headers is read."""
    import torch

    from mergefront.adapters.merging.sources import open_models

    devices = usable_devices(device, device_map)
    opened = open_models(base, experts, dtype, tokenizer_source, scope, carry)
    written = _dtype("dtype", opened.dtype)
    computing = written if compute == "auto" else _dtype("compute", compute)
    if compute == "auto" and devices.main.type == "cpu":
        computing = torch.float32
    rounding: torch.dtype | Literal["stored"] = written if opened.rounds_all else "stored"
    return _Weights(devices, opened.composition, opened.aligned, computing, rounding)


def planned_pool(
    base: str | PathLike[str],
    experts: Mapping[str, str | PathLike[str]],
    *,
    max_memory: MaxMemory = None,
    compat_mergekit: bool = False,
    task_vectors: TaskVectorForm = "exact",
    allow: Collection[str] = (),
    for_text: bool = True,
    headless: bool = False,
    **told: Unpack[_WeightOptions],
) -> tuple[TensorPool, dict[str, int]]:
    """The pool of ``LocalBackend.from_checkpoints`` before anything is loaded, and the bytes of the live model by
    device, and under ``disk``."""
    from mergefront.adapters.local.loading import live_bytes
    from mergefront.adapters.merging.offload.memory import free_memory
    from mergefront.adapters.merging.offload.placement import device_name, memory_limits
    from mergefront.adapters.merging.tensor_pool import TensorPool

    weights = _weights(base, experts, **told)
    models, used = weights.aligned.models, weights.devices
    stored = {name: info.shape for name, info in models[_BASE].header.tensors.items()}
    spread = weights.spread(max_memory)
    devices: dict[str, torch.device] = {}
    if spread is None:
        entries = sum(math.prod(shape) for shape in stored.values())
        live = {device_name(used.main): entries * weights.computing.itemsize}
    else:
        live, devices = live_bytes(Path(base), stored, weights.computing, for_text, headless, spread)
    limits = memory_limits(max_memory, used.all)
    for where in {used.main, *used.all, *devices.values()}:
        name, taken = device_name(where), live.get(device_name(where), 0)
        limits[name] = max(0, limits[name] - taken) if name in limits else max(0, free_memory(where) - taken) // 2
    of_experts = {expert: models[expert] for expert in experts}
    pool = TensorPool(
        models[_BASE], of_experts, used.main, None, "auto", False, task_vectors, allow, compat_mergekit, limits, devices
    )
    return pool, live


def _dtype(what: str, dtype: str) -> torch.dtype:
    import torch

    if dtype not in FLOATING.values():
        raise UserError(f"{what} {dtype!r} must be one of auto, {', '.join(FLOATING.values())}")
    made: torch.dtype = getattr(torch, dtype)
    return made
