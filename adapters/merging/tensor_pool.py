"""The base's and the experts' tensors: held in memory, or read one at a time from memory-mapped files."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal

import torch

from mergefront.adapters.checkpoints.header import Checkpoint
from mergefront.adapters.checkpoints.lora import LoraModule
from mergefront.adapters.checkpoints.names import is_spare_head, is_unread
from mergefront.adapters.checkpoints.quantised import refuse_quantised
from mergefront.adapters.merging.compression import (
    CompressedDelta,
    CompressionError,
    TaskVectorForm,
    check_form,
    compress,
)
from mergefront.adapters.merging.memory import free_memory
from mergefront.adapters.merging.sources import Entry, ExpertSource, Source, check_finite, header_of, open_source
from mergefront.optimizer.errors import UserError


class TensorPool:
    """One base model and a pool of experts that fit it, on one device (see ``MergeEngine`` for the arguments).

    ``fold_loras`` puts LoRAs on the base and rounds the sum to its dtype, as a saved checkpoint of it is; otherwise
    they stay task vectors in float32.
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
    ) -> None:
        if not experts:
            raise UserError("a merge needs at least one expert")
        check_form(form)
        if form != "exact" and base is None:
            raise UserError(f"task_vectors: {form} needs a base model")
        self._form = form
        self._fold = fold_loras
        self._compressed: dict[tuple[str, str], CompressedDelta] = {}
        self._errors = {name: CompressionError() for name in experts}
        self.device = device
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
        self._base: dict[str, torch.Tensor] = {}
        self._entries: dict[tuple[str, str], Entry | None] = {}
        self._checked: set[tuple[str, str]] = set()
        self.resident = self._fits(experts) if resident == "auto" else resident
        for expert in self._experts.values():
            if expert.lora is not None and check:
                for key, tensor in expert.lora.checkpoint.items():
                    check_finite(tensor, f"expert {expert.name!r}", key)
        if self.resident:
            for name in self.names:
                self._load(name)

    @property
    def has_base(self) -> bool:
        """Whether there is a base model."""
        return self._base_source is not None

    @property
    def holds_entries(self) -> bool:
        """Whether ``entry`` returns tensors that are held anyway, rather than ones made for the asker."""
        return self.resident and self._form == "exact"

    @property
    def size(self) -> int:
        """Entries of the base that are held in memory."""
        return sum(tensor.numel() for tensor in self._base.values())

    def memory(self) -> set[int]:
        """Addresses of the tensors that are held, which no merge may overwrite."""
        held = {tensor.data_ptr() for tensor in self._base.values()}
        held.update(entry.tensor.data_ptr() for entry in self._entries.values() if entry is not None)
        return held

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
        """The base's tensor as it is held, or None without a base."""
        if self._base_source is None:
            return None
        if name in self._base:
            return self._base[name]
        tensor = self._base_source[name]
        self._check_finite(tensor, "base model", name)
        return self._settle(tensor, copy=False)

    def entry(self, name: str, expert: str) -> Entry | None:
        """An expert's tensor as it is held, or None where it leaves the base as it is."""
        if (name, expert) in self._entries:
            return self._entries[name, expert]
        if (name, expert) in self._compressed:
            return Entry(self._compressed[name, expert].expand(), True)
        if self.resident:
            return self._keep(name, self._experts[expert])
        entry = self._read_entry(name, self._experts[expert])
        return None if entry is None else self._settled(entry, copy=False)

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
        return a.to(self.device), b.to(self.device)

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
        return None if whole is None else Entry(self._settle(whole, copy=False), False)

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

    def _fits(self, experts: Mapping[str, Source]) -> bool:
        base = self._base_source
        sizes = [base.header.bytes] if isinstance(base, Checkpoint) else []
        for name, source in experts.items():
            opened, lora = open_source(source), self._experts[name].lora
            if lora is not None and isinstance(base, Checkpoint):
                # Its task vector is held in float32.
                sizes.append(sum(4 * math.prod(base.header.tensors[target].shape) for target in lora.changed()))
            elif isinstance(opened, Checkpoint):
                sizes.append(opened.header.bytes)
        # Compressed task vectors take about half of bfloat16 at most.
        needed = sum(sizes) if self._form == "exact" or not sizes else sizes[0] + sum(sizes[1:]) // 2
        return needed < free_memory(self.device) // 2

    def _load(self, name: str) -> None:
        """Copy one tensor of the base and of every expert to where it stays."""
        if self._base_source is not None:
            tensor = self._base_source[name]
            self._check_finite(tensor, "base model", name)
            self._base[name] = self._settle(tensor, copy=True)
        for expert in self._experts.values():
            # A LoRA is small; its task vector is not, and is made when a method asks for it.
            if expert.lora is None:
                self._keep(name, expert)

    def _keep(self, name: str, expert: ExpertSource) -> Entry | None:
        entry = self._read_entry(name, expert)
        if entry is not None and self._form != "exact" and entry.tensor.is_floating_point():
            delta = entry.tensor.to(self.device).float()
            if not entry.is_delta:
                delta = delta - self._base[name].float()
            made = compress(delta, self._form)
            self._errors[expert.name].add(delta, made)
            self._compressed[name, expert.name] = made
            return Entry(made.expand(), True)
        if entry is not None:
            entry = self._settled(entry, copy=isinstance(expert._source, Checkpoint))
        self._entries[name, expert.name] = entry
        return entry

    def _read_entry(self, name: str, expert: ExpertSource) -> Entry | None:
        entry = expert.entry(name)
        if entry is not None:
            self._check_finite(entry.tensor, f"expert {expert.name!r}", name)
        if entry is not None and entry.is_delta and self._fold and self._base_source is not None:
            origin = self._base_source[name]
            return Entry((origin.float() + entry.tensor).to(origin.dtype), False)
        return entry

    def _check_finite(self, tensor: torch.Tensor, owner: str, name: str) -> None:
        if self._check and (owner, name) not in self._checked:
            check_finite(tensor, owner, name)
            self._checked.add((owner, name))

    def _settled(self, entry: Entry, copy: bool) -> Entry:
        """An entry where it stays; a task vector of its own keeps its digits, whatever whole tensors are held in."""
        if entry.is_delta:
            return Entry(entry.tensor.to(self.device).contiguous(), True)
        return Entry(self._settle(entry.tensor, copy), False)

    def _settle(self, tensor: torch.Tensor, copy: bool) -> torch.Tensor:
        dtype = self.dtype if self.dtype is not None and tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(device=self.device, dtype=dtype, copy=copy).contiguous()
