"""Devices by the names that a user writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mergefront.optimizer.errors import UserError

if TYPE_CHECKING:
    import torch

DeviceMap = Literal["auto"] | None


@dataclass(frozen=True)
class Devices:
    """The devices of a live model, that of its inputs first; ``offloads`` says that the host's memory and disk take
    what they cannot hold."""

    all: tuple[torch.device, ...]
    offloads: bool

    @property
    def main(self) -> torch.device:
        """Where inputs go."""
        return self.all[0]

    @property
    def is_spread(self) -> bool:
        """Whether layers may lie in several places."""
        return len(self.all) > 1 or self.offloads


def usable_devices(device: str, device_map: DeviceMap = None) -> Devices:
    """The devices of ``cuda:0,cuda:1``, or of one; a ``device`` "auto" is all with ``device_map`` "auto".

    Raises ``UserError`` for a device that torch does not know or cannot use on this machine.
    """
    import torch

    if device == "auto" and device_map == "auto" and torch.accelerator.is_available():
        kind = _accelerator()
        assert kind is not None
        every = [torch.device(kind.type, number) for number in range(torch.accelerator.device_count())]
        return Devices(tuple(every), True)
    named = [name.strip() for name in device.split(",")]
    if len(set(named)) < len(named):
        raise UserError(f"device {device!r} names one device twice")
    if len(named) > 1 and not all(":" in name for name in named):
        raise UserError(f"device {device!r}: of several devices each is an accelerator's number, as in cuda:0,cuda:1")
    return Devices(tuple(_usable(name) for name in named), device_map == "auto")


def _accelerator() -> torch.device | None:
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def _usable(device: str) -> torch.device:
    import torch

    accelerator = _accelerator()
    if device == "auto":
        return torch.device("cpu") if accelerator is None else accelerator
    try:
        where = torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device!r} is unknown; write auto, cpu, cuda or cuda:1") from None
    try:
        torch.zeros(1, device=where)
    except (RuntimeError, AssertionError) as error:  # builds of torch differ in what they raise
        there = ["auto", "cpu"]
        if accelerator is not None:
            there += [f"{accelerator.type}:{number}" for number in range(torch.accelerator.device_count())]
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"device {device!r} cannot be used on this machine ({reason}); write one of {', '.join(there)}"
        ) from None
    return where
