"""What the samplers' options may be, as data: study files and constructors are checked by the same tables.

Importing this module imports no sampler and no Optuna.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from mergefront.optimizer.errors import UserError

MMMOVariant = Literal["default", "paper"]
FisherScreen = Literal["low", "high", "off"]
Budget = Literal["fast", "quality", "botorch"]
Unexplained = Literal["noise", "roughness"]
EvoMergingVariant = Literal["default", "paper", "lorahub", "joint"]
CovarianceShape = Literal["auto", "full", "separable"]


@dataclass(frozen=True)
class SamplerOption:
    """One option of a sampler: a number of type ``kind`` at least ``low``, one of ``choices``, or any text.

    ``default`` says in words what is taken where the constructor has no value of its own.
    """

    kind: type[int] | type[float] | type[str] | type[bool]
    summary: str
    low: float | None = None
    choices: tuple[str, ...] = ()
    default: str = ""

    def problem(self, value: Any) -> str | None:
        """What is wrong with ``value``, or None."""
        if self.choices:
            return None if value in self.choices else f"must be one of {', '.join(self.choices)}"
        if self.kind is bool:
            return None if isinstance(value, bool) else "must be true or false"
        if self.kind is str:
            return None if isinstance(value, str) else "must be text"
        number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (self.kind is int and value != int(value)):
            return f"must be {'a whole number' if self.kind is int else 'a number'}"
        if self.low is not None and value < self.low:
            return f"must be at least {self.low:g}"
        return None


Options = Mapping[str, SamplerOption]

MM_MO: Options = {
    "variant": SamplerOption(str, "our default, or the published loop", choices=get_args(MMMOVariant)),
    "n_startup": SamplerOption(
        int,
        "Sobol points after the anchors",
        low=0,
        default="2 (none beside 12 or more anchors that span the space); 10 in variant paper",
    ),
    "batch": SamplerOption(int, "trials proposed from the same knowledge", low=1, default="1; 5 in variant paper"),
    "fisher_screen": SamplerOption(
        str, "among near ties, prefer where models know least (low) or most (high)", choices=get_args(FisherScreen)
    ),
    "budget": SamplerOption(str, "work per proposal; botorch takes seconds", choices=get_args(Budget)),
    "unexplained": SamplerOption(
        str, "what the kernel does not explain of values without standard errors", choices=get_args(Unexplained)
    ),
}
_PENALTY = "0; 0.05 in the other variants"
EVO_MERGING: Options = {
    "variant": SamplerOption(
        str,
        "our default, the published two stages, weights alone, or both at once",
        choices=get_args(EvoMergingVariant),
    ),
    "preferences": SamplerOption(str, "what several objectives count, as in maths=0.7,french=0.3", default="all alike"),
    "top": SamplerOption(int, "LoRAs to keep, by their own score", low=1, default="32; all in the other variants"),
    "density_penalty": SamplerOption(
        float, "factor of mean size of the densities in the loss", low=0.0, default=_PENALTY
    ),
    "weight_penalty": SamplerOption(float, "factor of mean size of the weights in the loss", low=0.0, default=_PENALTY),
    "first_stage": SamplerOption(int, "trials on densities (variant paper)", low=0),
    "patience": SamplerOption(int, "generations without gain that end the first stage", low=0),
    "population": SamplerOption(int, "trials per generation of CMA-ES", low=2),
    "sigma": SamplerOption(float, "initial step of CMA-ES", low=1e-6),
    "covariance": SamplerOption(
        str, "shape of CMA-ES's covariance; auto: separable above 30 parameters", choices=get_args(CovarianceShape)
    ),
    "densities": SamplerOption(bool, "whether the default variant searches densities"),
}
MAP: Options = {
    "n_startup": SamplerOption(
        int, "trials before the first model", low=2, default="(d + 1)(d + 2) / 2 for d parameters, at most 60"
    ),
    "nested": SamplerOption(bool, "a tournament of pairs instead of the Sobol design, for many experts"),
    "link": SamplerOption(bool, "whether objectives saturate (a sigmoid of the quadratic)"),
    "refine": SamplerOption(int, "every how many proposals one goes where models know least", low=0),
}
CMA_ES: Options = {
    "sigma": SamplerOption(float, "initial standard deviation, as a share of each range", low=1e-6),
    "population_size": SamplerOption(int, "trials per generation", low=2, default="4 + 3 log(parameters)"),
}
TPE: Options = {"n_startup_trials": SamplerOption(int, "random trials before the model", low=1)}
NSGA: Options = {"population_size": SamplerOption(int, "trials per generation", low=2)}
GP: Options = {
    **TPE,
    "deterministic_objective": SamplerOption(bool, "the same recipe always scores the same"),
}


def check_arguments(options: Options, given: Mapping[str, Any]) -> None:
    """Raises ``UserError`` with every problem of a constructor's arguments; None stands for a default.

    What else is ``given`` than the options, as in a constructor's ``locals()``, is left alone.
    """
    problems = [
        f"{name} {given[name]!r} {problem}"
        for name, option in options.items()
        if given[name] is not None and (problem := option.problem(given[name])) is not None
    ]
    if problems:
        raise UserError("; ".join(problems))
