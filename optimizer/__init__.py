"""The core: recipes, spaces, objectives, samplers and the search loop. No checkpoints, HTTP or SQL."""

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
    raise AttributeError(f"module 'mergefront.optimizer' has no attribute {name!r}")
