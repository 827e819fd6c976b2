"""The base's and the experts' tensors: held on the device, in the host's memory, or read for every merge."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import torch

from mergefront.adapters.checkpoints.header import DTYPES, Checkpoint
from mergefront.adapters.checkpoints.lora import LoraModule
from mergefront.adapters.checkpoints.names import is_spare_head, is_unread
from mergefront.adapters.checkpoints.quantised import refuse_quantised
from mergefront.adapters.merging.compression import (
    CompressedDelta,
    CompressionError,
    TaskVectorForm,
    check_form,
    compress,
    compressed_bytes,
)
from mergefront.adapters.merging.offload.factored import FactoredDelta, factored, factored_bytes
from mergefront.adapters.merging.offload.placement import BASE, Key, Part, Placement, Room, device_name, place
from mergefront.adapters.merging.offload.prefetch import own_streams, read_pages
from mergefront.adapters.merging.sources import Entry, ExpertSource, Source, check_finite, header_of, open_source
from mergefront.optimizer.errors import UserError

Held = Entry | FactoredDelta | CompressedDelta | None
"""An expert's tensor as it is held; None where it leaves the base as it is."""
Size = tuple[tuple[int, ...], int]
"""A tensor's shape, and bytes of an entry."""
_UNLIMITED = 1 << 62
_ABSENT = object()


class TensorPool:
    """One base model and a pool of experts that fit it (see ``MergeEngine`` for the arguments).

    ``devices`` has the device on which each tensor is merged, where not all are on ``device``. ``fold_loras`` puts
    LoRAs on the base and rounds the sum, or what takes the base's place, to its dtype, as a saved checkpoint of it is;
    otherwise they stay task vectors in float32. Nothing is read before it is asked for, or ``load`` is called.
    ``names`` are the checkpoint's tensors, ``experts`` the experts' names. Raises ``UserError`` for
    experts that do not fit the base and, naming the tensor, for NaN.
    """

    def __init__(
        self,
        base: Source | None,
        experts: Mapping[str, Source],
        device: torch.device,
        dtype: torch.dtype | None,
        resident: bool | Literal["auto"],
        check: bool,
        form: TaskVectorForm = "exact",
        allow: Collection[str] = (),
        fold_loras: bool = False,
        limits: Mapping[str, int] | None = None,
        devices: Mapping[str, torch.device] | None = None,
    ) -> None:
        if not experts:
            raise UserError("a merge needs at least one expert")
        check_form(form)
        if form != "exact" and base is None:
            raise UserError(f"task_vectors: {form} needs a base model")
        self._form = form
        self._fold = fold_loras
        self._errors = {name: CompressionError() for name in experts}
        self._measured: set[Key] = set()
        self.device = device
        self._devices = devices or {}
        self.dtype = dtype
        self._check = check
        opened = None if base is None else open_source(base)
        base_header = None if opened is None else header_of(opened, "base model")
        if base_header is not None and base_header.kind == "lora":
            raise UserError(f"base model {base_header.path} is a LoRA; the base must be a whole checkpoint")
        unfit = [] if base_header is None else refuse_quantised(base_header, f"base model {base_header.path}")
        if unfit:
            raise UserError("\n".join(unfit))
        self._base_source = opened
        self._experts: dict[str, ExpertSource] = {}
        reference = opened
        for name, source in experts.items():
            tensors = open_source(source)
            self._experts[name] = ExpertSource(name, tensors, reference, allow)
            reference = tensors if reference is None else reference
        assert reference is not None
        self.experts = tuple(self._experts)
        self.names: tuple[str, ...] = tuple(reference)
        self._carried = frozenset(name for name in self.names if self._is_carried(name, reference))
        self._sizes = {name: _size(reference, name, dtype) for name in self.names}
        self._checked: set[tuple[str, str]] = set()
        self._on_device: dict[Key, Held] = {}
        self._on_host: dict[Key, Held] = {}
        self._staged: Mapping[Key, Held] = {}
        self._is_held = False
        used = {device, *self._devices.values()}
        chosen = limits or {}
        if resident != "auto":
            chosen = dict.fromkeys(map(device_name, (*used, torch.device("cpu"))), _UNLIMITED if resident else 0)
        self._room = Room(used, chosen)
        self.placement: Placement = place(self._parts(), self._room)
        self._room.for_tables()
        named = {BASE: opened, **{name: expert.source for name, expert in self._experts.items()}}
        self._of_caller = {
            tensor.data_ptr()
            for owner, source in named.items()
            if isinstance(source, Mapping) and not hasattr(source, "header")
            for name, tensor in source.items()
            if self.placement.tiers.get((name, owner)) != "device"
        }

    def load(self) -> None:
        """Read what is to be held: of every whole model; a LoRA's task vector is made when a method asks for it."""
        for expert in self._experts.values():
            if expert.lora is not None and self._check:
                for key, tensor in expert.lora.checkpoint.items():
                    check_finite(tensor, f"expert {expert.name!r}", key)
        for (name, owner), tier in self.placement.tiers.items():
            if tier != "disk" and (owner == BASE or self._experts[owner].lora is None):
                self._fetch((name, owner))

    @property
    def has_base(self) -> bool:
        """Whether there is a base model."""
        return self._base_source is not None

    @property
    def size(self) -> int:
        """Entries of the base."""
        return sum(math.prod(shape) for shape, _ in self._sizes.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._sizes[name][0]

    def largest_file(self) -> Path | None:
        """The largest file that tensors are read from; None where all are in memory."""
        opened = [self._base_source, *(expert.source for expert in self._experts.values())]
        files = {file for one in opened for file in (one.header.files if isinstance(one, Checkpoint) else ())}
        return max(files, key=lambda file: file.stat().st_size, default=None)

    def device_of(self, name: str) -> torch.device:
        """Where a tensor is merged."""
        return self._devices.get(name, self.device)

    def holds_all(self) -> bool:
        """Whether the device holds every tensor as it is merged."""
        if not self._is_held:
            self._is_held = all(self._is_as_merged(key) for key in self.placement.tiers)
        return self._is_held

    def bytes_to_fetch(self, name: str, experts: Sequence[str]) -> int:
        """Bytes in float32 of what has to be made or moved for the merge of a tensor with these experts."""
        absent = sum(not self._is_as_merged(key) for key in self._wanted(name, experts))
        return 4 * math.prod(self._sizes[name][0]) * absent

    def _is_as_merged(self, key: Key) -> bool:
        return isinstance(self._on_device.get(key, _ABSENT), Entry | FactoredDelta | None)

    def fetch(self, wanted: Mapping[str, Sequence[str]]) -> dict[Key, Held]:
        """What merges of these tensors, each with some experts, need and the device does not hold. For any thread."""
        keys = [key for name, experts in wanted.items() for key in self._wanted(name, experts)]
        with torch.no_grad(), own_streams({self.device, *self._devices.values()}):
            return {key: self._fetch(key) for key in keys if key not in self._on_device}

    def _wanted(self, name: str, experts: Sequence[str]) -> list[Key]:
        return [key for owner in (BASE, *experts) if (key := (name, owner)) in self.placement.tiers]

    @contextmanager
    def staged(self, fetched: Mapping[Key, Held]) -> Iterator[None]:
        """Within the block what was fetched is taken as if it were held."""
        for held in fetched.values():
            if isinstance(held, Entry) and held.tensor.is_cuda:
                # It was copied by another thread's stream, and its memory is free when this one has done with it.
                held.tensor.record_stream(torch.cuda.current_stream(held.tensor.device))
        self._staged = fetched
        try:
            yield
        finally:
            self._staged = {}

    def keeps(self, device: torch.device, size: int) -> bool:
        """Whether there is room to keep something of ``size`` bytes that was worked out once; it is taken, then."""
        return self._room.take(device, size)

    def memory(self) -> set[int]:
        """Addresses of the tensors that are merged from, which no merge may overwrite: held ones, and the caller's."""
        held = {held.tensor.data_ptr() for held in self._on_device.values() if isinstance(held, Entry)}
        return held | self._of_caller

    def origin(self, name: str) -> torch.Tensor:
        """The base's tensor, or without a base the first expert's."""
        base = self.base(name)
        if base is not None:
            return base
        entry = self.entry(name, self.experts[0])
        assert entry is not None
        return entry.tensor

    def carries(self, name: str) -> bool:
        """Whether every merge has the origin's tensor: integers, buffers that no model reads, towers beside a text."""
        return name in self._carried

    def base(self, name: str) -> torch.Tensor | None:
        """The base's tensor, or None without a base."""
        if self._base_source is None:
            return None
        held = self._find((name, BASE))
        assert isinstance(held, Entry)
        return held.tensor

    def changes(self, name: str, expert: str) -> bool:
        """Whether an expert has a tensor of its own, or a part of one, without looking at it."""
        return (name, expert) in self.placement.tiers

    def entry(self, name: str, expert: str) -> Entry | None:
        """An expert's tensor, or None where it leaves the base as it is; what is held in less memory is made anew."""
        held = self._find((name, expert))
        if held is None or isinstance(held, Entry):
            return held
        return self._folded(name, Entry(held.expand(), True), expert)

    def found(self, name: str, expert: str) -> Entry | FactoredDelta | None:
        """As ``entry``, with the factors of what is a product of factors."""
        held = self._find((name, expert))
        return held if isinstance(held, FactoredDelta) and not self._fold else self.entry(name, expert)

    def is_factored(self, name: str, expert: str) -> bool:
        """Whether an expert's tensor is held as the factors of a product."""
        lora = self._experts[expert].lora
        return self._form == "exact" and lora is not None and factored_bytes(lora, name) is not None

    def compression_errors(self) -> dict[str, float]:
        """Relative error of every expert's task vector as it is held (0 where it is exact)."""
        return {name: error.relative for name, error in self._errors.items()}

    def is_lora(self, expert: str) -> bool:
        """Whether an expert is a PEFT LoRA folder."""
        return self._experts[expert].lora is not None

    def lora_module(self, name: str, expert: str) -> LoraModule | None:
        """What a LoRA says about one tensor of the base, or None where it does not adapt it."""
        lora = self._experts[expert].lora
        return None if lora is None else lora.contents.modules.get(name)

    def lora_factors(self, module: LoraModule, expert: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r x in) and B (out x r) of one module in float32."""
        lora = self._experts[expert].lora
        assert lora is not None
        a, b = lora.factors(module)
        device = self.device_of(module.target)
        return a.to(device), b.to(device)

    def stacked_experts(self, expert: str) -> str | None:
        """The first tensor of all experts that a LoRA adapts, or None."""
        lora = self._experts[expert].lora
        return None if lora is None else next(iter(lora.contents.stacked), None)

    def beside_factors(self, name: str, expert: str) -> Entry | None:
        """What a LoRA changes in one tensor of the base otherwise than by factors, or None."""
        lora = self._experts[expert].lora
        assert lora is not None
        if name not in lora.contents.modules:
            return self.entry(name, expert)
        whole = lora.replacement(name)
        return None if whole is None else Entry(self._settle(whole, name, copy=False), False)

    def _is_carried(self, name: str, reference: Checkpoint | Mapping[str, torch.Tensor]) -> bool:
        if isinstance(reference, Checkpoint):
            info = reference.header.tensors[name]
            shape, numbers = info.shape, info.dtype in ("F64", "F32", "F16", "BF16")
            numbers = numbers and name not in (reference.header.carried or ())
            is_spare = is_spare_head(name, reference.header.config)
        else:
            shape, numbers, is_spare = tuple(reference[name].shape), reference[name].is_floating_point(), False
        # Without a base there is nothing to stand in for what an expert lacks.
        lacking = (self._base_source is None or is_spare) and not all(
            expert.lora is not None or expert.has(name) for expert in self._experts.values()
        )
        return not numbers or is_unread(name, shape) or lacking

    def _parts(self) -> Iterator[Part]:
        """The base's tensors, then the experts', with the bytes that holding them takes."""
        if self._base_source is not None:
            for name in self.names:
                yield Part((name, BASE), self.device_of(name), self._bytes(name))
        for name in self.names:
            for expert in self._experts.values():
                size = self._bytes_of(name, expert)
                if size is not None:
                    yield Part((name, expert.name), self.device_of(name), size)

    def _bytes(self, name: str) -> int:
        shape, item_bytes = self._sizes[name]
        return math.prod(shape) * item_bytes

    def _bytes_of(self, name: str, expert: ExpertSource) -> int | None:
        """Bytes of an expert's tensor as it is held; None where it has none. Tensors in memory are not copied."""
        shape, item_bytes = self._sizes[name]
        whole = expert.whole(name)
        if whole is None and (expert.lora is None or name not in expert.lora.contents.targets):
            return None
        if self._form != "exact" and name not in self._carried:
            return compressed_bytes(shape, self._form)
        if isinstance(whole, torch.Tensor) and whole.device == self.device_of(name):
            return 0
        if expert.lora is not None and (size := factored_bytes(expert.lora, name)) is not None:
            return size
        is_delta = whole is None and not self._fold
        return math.prod(shape) * (4 if is_delta else item_bytes)

    def _find(self, key: Key) -> Held:
        for held in (self._on_device, self._staged):
            if key in held:
                return held[key]
        return self._fetch(key)

    def _fetch(self, key: Key) -> Held:
        """A tensor on the device, from the host's memory or its source; it stays where its placement says."""
        if key in self._on_host:
            return _moved(self._on_host[key], self.device_of(key[0]))
        tier = self.placement.tiers.get(key)
        held = None if tier is None else self._made(key, copy=tier == "device")
        if tier == "device":
            self._on_device[key] = held
        elif tier == "host":
            self._on_host[key] = _pinned(held)
        return held

    def _made(self, key: Key, copy: bool) -> Held:
        """A tensor on its device, from its source; ``copy`` says that it stays, so that the file may go."""
        name, owner = key
        if owner == BASE:
            assert self._base_source is not None
            tensor = self._base_source[name]
            self._check_finite(tensor, "base model", name)
            return Entry(self._settle(tensor, name, copy), False)
        expert = self._experts[owner]
        if self._form == "exact" and expert.lora is not None:
            delta = factored(expert.lora, name, self._sizes[name][0])
            if delta is not None:
                return delta.to(self.device_of(name))
        entry = self._read_entry(name, expert)
        if entry is None:
            return None
        if self._form != "exact" and entry.tensor.is_floating_point():
            return self._compressed(key, entry, self._form)
        if entry.is_delta:
            # A task vector of its own keeps its digits, whatever whole tensors are held in.
            return Entry(entry.tensor.to(self.device_of(name)).contiguous(), True)
        return Entry(self._settle(entry.tensor, name, copy and expert.is_mapped), False)

    def _compressed(self, key: Key, entry: Entry, form: Literal["int8"] | int) -> CompressedDelta:
        delta = entry.tensor.to(self.device_of(key[0])).float()
        if not entry.is_delta:
            origin = self._find((key[0], BASE))
            assert isinstance(origin, Entry)
            delta = delta - origin.tensor.float()
        made = compress(delta, form)
        if key not in self._measured:
            self._measured.add(key)
            self._errors[key[1]].add(delta, made)
        return made

    def _read_entry(self, name: str, expert: ExpertSource) -> Entry | None:
        entry = expert.entry(name)
        if entry is None:
            return None
        self._check_finite(entry.tensor, f"expert {expert.name!r}", name)
        return self._folded(name, entry, expert.name)

    def _folded(self, name: str, entry: Entry, expert: str) -> Entry:
        if not self._fold or self._base_source is None or not (entry.is_delta or self.is_lora(expert)):
            return entry
        origin = self._base_source[name]
        whole = origin.float() + entry.tensor if entry.is_delta else entry.tensor
        return Entry(whole.to(origin.dtype), False)

    def _check_finite(self, tensor: torch.Tensor, owner: str, name: str) -> None:
        if self._check and (owner, name) not in self._checked:
            check_finite(tensor, owner, name)
            self._checked.add((owner, name))

    def _settle(self, tensor: torch.Tensor, name: str, copy: bool) -> torch.Tensor:
        dtype = self.dtype if self.dtype is not None and tensor.is_floating_point() else tensor.dtype
        settled = tensor.detach().to(device=self.device_of(name), dtype=dtype, copy=copy).contiguous()
        if settled.data_ptr() == tensor.data_ptr() and settled.device.type == "cpu":
            read_pages(settled)
        return settled


def _size(source: Checkpoint | Mapping[str, torch.Tensor], name: str, dtype: torch.dtype | None) -> Size:
    """Shape and bytes of an entry as it is held, from the header where there is one."""
    header = getattr(source, "header", None)
    if header is None:
        shape, stored = tuple(source[name].shape), source[name].dtype
    else:
        info = header.tensors[name]
        shape, stored = info.shape, getattr(torch, DTYPES[info.dtype][1])
    held = dtype if dtype is not None and stored.is_floating_point else stored
    return shape, held.itemsize


def _moved(held: Held, device: torch.device) -> Held:
    if isinstance(held, Entry):
        return Entry(held.tensor.to(device), held.is_delta)
    return None if held is None else held.to(device)


def _pinned(held: Held) -> Held:
    """In the host's memory, pinned where the system lets it be, so that it is copied at full speed."""
    on_host = _moved(held, torch.device("cpu"))
    if isinstance(on_host, Entry) and torch.cuda.is_available():
        with suppress(RuntimeError):
            return Entry(on_host.tensor.pin_memory(), on_host.is_delta)
    return on_host
