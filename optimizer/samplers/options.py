"""What the samplers' options may be: study files and constructors are checked by the same models.

A default of None is one that the sampler works out; its description says how. Importing this module imports no sampler
and no Optuna.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.sections import Options, read_section

MMMOVariant = Literal["default", "paper"]
FisherScreen = Literal["low", "high", "off"]
Budget = Literal["fast", "quality", "botorch"]
Unexplained = Literal["noise", "roughness"]
Trend = Literal["auto", "none", "quadratic"]
EvoMergingVariant = Literal["default", "paper", "lorahub", "joint"]
CovarianceShape = Literal["auto", "full", "separable"]


class SamplerOptions(Options):
    """Options of a sampler. Numbers of any kind are taken, such as NumPy's, and 3.0 for the whole number 3."""

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if not isinstance(value, Real) or isinstance(value, (bool, int)):
            return value
        number = float(value)
        return int(number) if number.is_integer() else number


class MMMOOptions(SamplerOptions):
    variant: MMMOVariant = Field("default", description="our default, or the published loop")
    n_startup: int | None = Field(
        None,
        ge=0,
        description="Sobol points after the anchors (by default 2, none beside 12 or more anchors that span the space; "
        "10 in variant paper)",
    )
    batch: int | None = Field(
        None, ge=1, description="trials proposed from the same knowledge (by default 1; 5 in variant paper)"
    )
    fisher_screen: FisherScreen = Field(
        "low",
        description="which candidates a round keeps: where models know least (low) or most (high), or the first (off); "
        "variant paper only",
    )
    budget: Budget = Field("fast", description="work per proposal; botorch takes seconds")
    unexplained: Unexplained = Field(
        "noise", description="what the kernel does not explain of values without standard errors"
    )
    trend: Trend = Field(
        "auto",
        description="what scores follow in the large; auto: quadratic for up to 4 weights that a merge adds (from "
        "trial 16 on in every other trial), else none; variant paper and budget botorch have none",
    )

    item_margins: bool = Field(
        True,
        description="shares of right answers are modelled item by item, where margins are known; for up to 4 weights "
        "that a merge adds, up to 4 objectives; variant paper and budget botorch do without",
    )

    @field_validator("trend")
    @classmethod
    def _is_modelled(cls, trend: Trend, info: ValidationInfo) -> Trend:
        if trend == "quadratic" and (info.data.get("variant") == "paper" or info.data.get("budget") == "botorch"):
            raise PydanticCustomError(
                "trend", "the models of variant paper and of budget botorch have no trend; leave one of the two out"
            )
        return trend


_PENALTY = "(by default 0; 0.05 in the other variants)"


class EvoMergingOptions(SamplerOptions):
    variant: EvoMergingVariant = Field(
        "default", description="our default, the published two stages, weights alone, or both at once"
    )
    preferences: Annotated[str, Field(title="a text like maths=0.7,french=0.3")] | None = Field(
        None, description="what several objectives count (by default all alike)"
    )
    top: int | None = Field(
        None, ge=1, description="LoRAs to keep, by their own score (by default 32; all in the other variants)"
    )
    density_penalty: float | None = Field(
        None, ge=0, description=f"factor of mean size of the densities in the loss {_PENALTY}"
    )
    weight_penalty: float | None = Field(
        None, ge=0, description=f"factor of mean size of the weights in the loss {_PENALTY}"
    )
    first_stage: int = Field(400, ge=0, description="trials on densities (variant paper)")
    patience: int = Field(0, ge=0, description="generations without gain that end the first stage")
    population: int = Field(20, ge=2, description="trials per generation of CMA-ES")
    sigma: float = Field(0.05, ge=1e-6, description="initial step of CMA-ES")
    covariance: CovarianceShape = Field(
        "auto", description="shape of CMA-ES's covariance; auto: separable above 30 parameters"
    )
    densities: bool = Field(True, description="whether the default variant searches densities")


class MAPOptions(SamplerOptions):
    n_startup: int | None = Field(
        None,
        ge=2,
        description="trials before the first model (by default (d + 1)(d + 2) / 2 for d parameters, at most 60)",
    )
    nested: bool = Field(False, description="a tournament of pairs instead of the Sobol design, for many experts")
    link: bool = Field(True, description="whether objectives saturate (a sigmoid of the quadratic)")
    refine: int = Field(4, ge=0, description="every how many proposals one goes where models know least")


class CmaEsOptions(SamplerOptions):
    sigma: float = Field(0.2, ge=1e-6, description="initial standard deviation, as a share of each range")
    population_size: int | None = Field(
        None, ge=2, description="trials per generation (by default 4 + 3 log(parameters))"
    )


class TPEOptions(SamplerOptions):
    n_startup_trials: int = Field(10, ge=1, description="random trials before the model")


class NSGAOptions(SamplerOptions):
    population_size: int = Field(50, ge=2, description="trials per generation")


class GPOptions(TPEOptions):
    deterministic_objective: bool = Field(False, description="the same recipe always scores the same")


def check_arguments(options: type[SamplerOptions], given: Mapping[str, Any]) -> None:
    """Raises ``UserError`` with every problem of a constructor's arguments; None stands for a default.

    What else is ``given`` than the options, as in a constructor's ``locals()``, is left alone.
    """
    fields = options.model_fields
    problems = read_section(options, {name: given[name] for name in fields if given[name] is not None})[1]
    if problems:
        raise UserError("; ".join(problems))
