"""Samplers: each a plain ``optuna.samplers.BaseSampler``, usable on any Optuna study.

``registry`` lists them by name without importing any; the classes here are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergefront.optimizer.samplers.evo_merging.sampler import EvoMergingSampler
    from mergefront.optimizer.samplers.map.sampler import MAPSampler
    from mergefront.optimizer.samplers.mmmo.sampler import MMMOSampler

_HOME = {
    "EvoMergingSampler": "mergefront.optimizer.samplers.evo_merging.sampler",
    "MAPSampler": "mergefront.optimizer.samplers.map.sampler",
    "MMMOSampler": "mergefront.optimizer.samplers.mmmo.sampler",
}

__all__ = ["EvoMergingSampler", "MAPSampler", "MMMOSampler"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
