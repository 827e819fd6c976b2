"""Which tensors of a pool are held on the device that merges them, which in the host's memory, which are read for every
merge.

    device   held where the live tensor is: nothing moves for a merge
    host     held in the host's memory (pinned) beside an accelerator, and copied there for every merge
    disk     read from its file for every merge: memory-mapped on a CPU

First come, first held: the base, then the experts, tensor by tensor, as far as the memory goes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from mergefront.adapters.merging.offload.memory import free_memory
from mergefront.optimizer.errors import UserError

Tier = Literal["device", "host", "disk"]
TIERS: tuple[Tier, ...] = ("device", "host", "disk")
Key = tuple[str, str]
"""Names of a tensor and of its owner: an expert, or ``BASE``."""
MaxMemory = int | str | Mapping[str, int | str] | None
"""Of every device, or by device (``cpu`` for the host's): bytes, or texts such as 24GB and 24GiB."""
BASE = ""
_CPU = torch.device("cpu")
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Part(NamedTuple):
    """One tensor of the base or of an expert: where it is merged, and the bytes that it takes there."""

    key: Key
    device: torch.device
    bytes: int


class Room:
    """Bytes that may still be held, by device. Without a limit a device's is half of what is free, and a quarter more
    for what is worked out once (``for_tables``)."""

    def __init__(self, devices: Iterable[torch.device], limits: Mapping[str, int]) -> None:
        named = {device_name(device) for device in devices}
        self._left: dict[str, int] = {}
        self._spare: dict[str, int] = {}
        for name in sorted(named | {"cpu"}):
            free = 0 if name in limits else free_memory(torch.device(name))
            self._left[name], self._spare[name] = limits.get(name, free // 2), free // 4

    def take(self, device: torch.device, size: int) -> bool:
        """Whether ``size`` more bytes may be held; they are, then."""
        name = device_name(device)
        if size > self._left[name]:
            return False
        self._left[name] -= size
        return True

    def for_tables(self) -> None:
        """From now on the room is for what is worked out once and kept."""
        for name, spare in self._spare.items():
            self._left[name] += spare


@dataclass(frozen=True)
class Placement:
    """Where every tensor is held, and by device and tier the bytes of the base and of the experts' tensors."""

    tiers: Mapping[Key, Tier]
    base: Mapping[tuple[str, Tier], int]
    experts: Mapping[tuple[str, Tier], int]

    def on(self, wanted: Tier) -> int:
        """Bytes of a tier."""
        return sum(size for held in (self.base, self.experts) for (_, tier), size in held.items() if tier == wanted)

    def of_base(self) -> int:
        """Bytes of the base, wherever it is held."""
        return sum(self.base.values())

    @property
    def streamed(self) -> int:
        """Bytes that come from the host's memory or from disk for every merge."""
        return self.on("host") + self.on("disk")


def place(parts: Iterable[Part], room: Room) -> Placement:
    """Place parts in their order; what is held is taken from the room."""
    tiers: dict[Key, Tier] = {}
    base: Counter[tuple[str, Tier]] = Counter()
    experts: Counter[tuple[str, Tier]] = Counter()
    for key, device, size in parts:
        tier: Tier = "disk"
        if room.take(device, size):
            tier = "device"
        elif device.type != "cpu" and room.take(_CPU, size):
            tier = "host"
        tiers[key] = tier
        (base if key[1] == BASE else experts)[device_name(device), tier] += size
    return Placement(tiers, base, experts)


def device_name(device: torch.device) -> str:
    """``cpu``, or an accelerator with its number: ``cuda:0``."""
    if device.type == "cpu" or device.index is not None:
        return str(device)
    return f"{device.type}:{torch.accelerator.current_device_index() if torch.accelerator.is_available() else 0}"


def memory_limits(given: MaxMemory, devices: Iterable[torch.device]) -> dict[str, int]:
    """Bytes by device: a size holds for each of ``devices``. Raises ``UserError`` for what is no size and no device."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return {device_name(device): _bytes(given) for device in devices}
    limits = {}
    for name, size in given.items():
        if not re.fullmatch(r"cpu|[a-z]+:\d+", name):
            raise UserError(f"max_memory: {name!r} is no device; write cpu, or an accelerator's number as in cuda:0")
        limits[name] = _bytes(size)
    return limits


def _bytes(size: int | str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", str(size).strip().lower())
    if found is None or found[2] not in _UNITS:
        raise UserError(f"max_memory: {size!r} is no size; write it as 24GB, 24GiB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])


def portions(keys: Iterable[tuple[str, int]], most: int) -> Iterator[list[str]]:
    """Names (each with its bytes) in their order, in portions of at most ``most`` bytes, or of one name."""
    portion: list[str] = []
    size = 0
    for name, more in keys:
        if portion and size + more > most:
            yield portion
            portion, size = [], 0
        portion.append(name)
        size += more
    if portion:
        yield portion
