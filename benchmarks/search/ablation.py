"""MM-MO with another kernel, for the ablation: other samplers of the tables with names of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergefront.optimizer.samplers.gaussian_process.kernel import SMOOTH, Kernel
from mergefront.optimizer.samplers.mmmo.sampler import MMMOSampler

KERNELS: Mapping[str, Kernel] = {"squared exponential": SMOOTH}


class OtherKernel(MMMOSampler):
    """With the kernel of that name in ``KERNELS``."""

    def __init__(self, kernel: str, **options: Any) -> None:
        super().__init__(**options)
        self._kernel = KERNELS[kernel]
