"""The core: recipes, spaces, objectives, samplers and the search loop. No checkpoints, HTTP or SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergefront.optimizer.samplers import __all__ as __all__
from mergefront.optimizer.samplers import __dir__ as __dir__
from mergefront.optimizer.samplers import __getattr__ as __getattr__

if TYPE_CHECKING:
    from mergefront.optimizer.samplers import EvoMergingSampler as EvoMergingSampler
    from mergefront.optimizer.samplers import MAPSampler as MAPSampler
    from mergefront.optimizer.samplers import MMMOSampler as MMMOSampler
