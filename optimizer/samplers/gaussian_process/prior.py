"""Log-normal priors of a kernel's hyper-parameters, over their logarithms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LogNormal:
    """log x is normal with mean ``log_median`` and standard deviation ``log_sd``."""

    log_median: float
    log_sd: float

    def in_dimension(self, d: int) -> LogNormal:
        """The prior of a lengthscale in [0, 1]^d, where distances between random points grow with sqrt(d)."""
        return LogNormal(self.log_median + 0.5 * math.log(d), self.log_sd)

    def z(self, log_x: Any) -> Any:
        """Standardised logarithms. The log density has the slope -1 - z / log_sd in log x."""
        return (log_x - self.log_median) / self.log_sd

    def log_normalisation(self) -> float:
        """What the log density of one number is lower by than -log x - z^2 / 2."""
        return math.log(self.log_sd * math.sqrt(2 * math.pi))


NOISE = LogNormal(-4.0, 1.0)
"""Of the noise variance, in standardised units: the prior of BoTorch 0.18's ``SingleTaskGP``."""
