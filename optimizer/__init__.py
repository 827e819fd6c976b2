"""The core: recipes, spaces, objectives, samplers and the search loop. No checkpoints, HTTP or SQL.

The samplers' classes are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergefront.optimizer.samplers.evo_merging.sampler import EvoMergingSampler
    from mergefront.optimizer.samplers.map.sampler import MAPSampler
    from mergefront.optimizer.samplers.mmmo.sampler import MMMOSampler

_HOME = {"EvoMergingSampler": "evo_merging", "MAPSampler": "map", "MMMOSampler": "mmmo"}

__all__ = ["EvoMergingSampler", "MAPSampler", "MMMOSampler"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.samplers.{_HOME[name]}.sampler"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
