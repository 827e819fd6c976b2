"""The samplers by name, as data: what a study file may say under ``search``.

Importing this module imports no sampler and no Optuna.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.recipes.merge_rule import UNKNOWN, MergeRule
from mergefront.optimizer.scores.objectives import Objective

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

SPARSITY_OBJECTIVES = frozenset({"delta_l1"})
"""Objectives that measure the merge itself; every other one is a task score."""


@dataclass(frozen=True)
class SamplerOption:
    """One option of a sampler: a number of type ``kind`` at least ``low``, one of ``choices``, or any text."""

    kind: type[int] | type[float] | type[str] | type[bool]
    summary: str
    low: float | None = None
    choices: tuple[str, ...] = ()

    def problem(self, value: Any) -> str | None:
        """What is wrong with ``value``, or None."""
        if self.choices:
            return None if value in self.choices else f"must be one of {', '.join(self.choices)}"
        if self.kind is bool:
            return None if isinstance(value, bool) else "must be true or false"
        if self.kind is str:
            return None if isinstance(value, str) else "must be text"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (self.kind is int and value != int(value)):
            return f"must be {'a whole number' if self.kind is int else 'a number'}"
        if self.low is not None and value < self.low:
            return f"must be at least {self.low:g}"
        return None


@dataclass(frozen=True)
class SamplerContext:
    """What every sampler is made from besides its own options."""

    seed: int
    search_space: Mapping[str, BaseDistribution] | None
    objectives: tuple[Objective, ...]
    rule: MergeRule = UNKNOWN
    """The merge's arithmetic."""


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler: its name in study files, what it can do, and how it is made."""

    name: str
    summary: str
    make: Callable[[SamplerContext, Mapping[str, Any]], BaseSampler]
    max_objectives: int | None = None
    takes_constraints: bool = True
    expects_improvement: bool = False
    options: Mapping[str, SamplerOption] | None = None


def check_sampler(
    name: str,
    options: Mapping[str, Any],
    objectives: int,
    *,
    constrained: bool = False,
    stops_by_improvement: bool = False,
) -> list[str]:
    """Every problem with a choice of sampler for a number of objectives, each a sentence; empty when there is none.

    ``constrained`` says that the study has constraints, ``stops_by_improvement`` that runs end when the sampler
    expects little improvement.
    """
    spec = SAMPLERS.get(name)
    if spec is None:
        return [f"sampler {name!r} is unknown {did_you_mean(name, SAMPLERS)}"]
    problems = []
    if spec.max_objectives is not None and objectives > spec.max_objectives:
        able = [other.name for other in SAMPLERS.values() if other.max_objectives is None]
        problems.append(
            f"sampler {name!r} does {_counted(spec.max_objectives)}, but {objectives} are asked for; "
            f"any number do: {', '.join(able)}"
        )
    if constrained and not spec.takes_constraints:
        able = [other.name for other in SAMPLERS.values() if other.takes_constraints]
        problems.append(f"sampler {name!r} does not know constraints; these do: {', '.join(able)}")
    if stops_by_improvement and not (spec.expects_improvement and options.get("variant", "default") == "default"):
        able = [other.name for other in SAMPLERS.values() if other.expects_improvement]
        problems.append(
            f"sampler {name!r} does not say what improvement it expects, so stop.improvement has no meaning; "
            f"these do, in their default variant: {', '.join(able)}"
        )
    known = spec.options or {}
    for key, value in options.items():
        if key not in known:
            hint = did_you_mean(key, known) if known else "(it has no options)"
            problems.append(f"sampler {name!r} has no option {key!r} {hint}")
        elif (problem := known[key].problem(value)) is not None:
            problems.append(f"sampler {name!r}: option {key} {value!r} {problem}")
    return problems


def resolved_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's options with the default of every one that is left out."""
    return dict(options)


def make_sampler(
    name: str,
    *,
    seed: int,
    search_space: Mapping[str, BaseDistribution] | None = None,
    objectives: Sequence[Objective],
    options: Mapping[str, Any] | None = None,
    rule: MergeRule = UNKNOWN,
) -> BaseSampler:
    """The sampler of that name; raises ``UserError`` with everything that ``check_sampler`` finds.

    ``rule`` is the merge's arithmetic (``MergeSpace.merge_rule``).
    """
    problems = check_sampler(name, options or {}, len(objectives))
    if problems:
        raise UserError("; ".join(problems))
    return SAMPLERS[name].make(SamplerContext(seed, search_space, tuple(objectives), rule), options or {})


def _counted(objectives: int) -> str:
    return "one objective" if objectives == 1 else f"up to {objectives} objectives"


def _mm_mo(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    from mergefront.optimizer.samplers.mmmo.sampler import MMMOSampler

    tasks = [i for i, objective in enumerate(context.objectives) if objective.name not in SPARSITY_OBJECTIVES]
    return MMMOSampler(
        seed=context.seed,
        search_space=context.search_space,
        ranges=[objective.range for objective in context.objectives],
        task_objectives=tasks or None,
        rule=context.rule,
        **options,
    )


def _sobol(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    from mergefront.optimizer.samplers.baselines.optuna_samplers import SobolSampler

    return SobolSampler(seed=context.seed, search_space=context.search_space)


def _cma_es(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    from mergefront.optimizer.samplers.baselines.cma_es import CmaEsSampler

    return CmaEsSampler(seed=context.seed, search_space=context.search_space, **options)


def _evo_merging(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    from mergefront.optimizer.samplers.evo_merging.sampler import EvoMergingSampler

    given = dict(options)
    stated = given.pop("preferences", None)
    return EvoMergingSampler(
        seed=context.seed,
        search_space=context.search_space,
        ranges=[objective.range for objective in context.objectives],
        preferences=None if stated is None else _preferences(stated, context.objectives),
        **given,
    )


def _map(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    from mergefront.optimizer.samplers.map.sampler import MAPSampler

    return MAPSampler(
        seed=context.seed,
        search_space=context.search_space,
        ranges=[objective.range for objective in context.objectives],
        **options,
    )


def _preferences(stated: str, objectives: Sequence[Objective]) -> list[float]:
    """``maths=0.7,french=0.3`` as one number per objective; objectives that are not named count nothing."""
    shares = {objective.name: 0.0 for objective in objectives}
    for part in stated.split(","):
        name, _, number = (word.strip() for word in part.partition("="))
        if name not in shares:
            raise UserError(f"preferences: {name!r} is no objective {did_you_mean(name, shares)}")
        try:
            shares[name] = float(number)
        except ValueError:
            raise UserError(f"preferences: {part.strip()!r} must be written like {name}=0.7") from None
    return list(shares.values())


def _optuna(class_name: str, joint: bool, **fixed: Any) -> Callable[[SamplerContext, Mapping[str, Any]], BaseSampler]:
    """Makes one of Optuna's samplers; ``joint`` says that it samples the parameters of a space together."""

    def make(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
        import optuna

        from mergefront.optimizer.samplers.baselines.optuna_samplers import OptunaSampler

        inner = getattr(optuna.samplers, class_name)
        return OptunaSampler(
            lambda seed: inner(seed=seed, **fixed, **options),
            seed=context.seed,
            search_space=context.search_space,
            joint=joint,
        )

    return make


_STARTUP = SamplerOption(int, "random trials before the model", low=1)
_POPULATION = SamplerOption(int, "trials per generation", low=2)

SAMPLERS: Mapping[str, SamplerSpec] = {
    spec.name: spec
    for spec in (
        SamplerSpec(
            "mm-mo",
            "multi-objective Bayesian optimisation of merges: anchors, Gaussian processes, hypervolume improvement",
            _mm_mo,
            expects_improvement=True,
            options={
                "variant": SamplerOption(str, "our default, or the published loop", choices=("default", "paper")),
                "n_startup": SamplerOption(int, "Sobol points after the anchors", low=0),
                "batch": SamplerOption(int, "trials proposed from the same knowledge", low=1),
                "fisher_screen": SamplerOption(str, "which candidates to prefer", choices=("low", "high", "off")),
                "budget": SamplerOption(str, "work per proposal", choices=("fast", "quality", "botorch")),
            },
        ),
        SamplerSpec(
            "evo-merging",
            "pools of LoRAs: signed weights and densities by a surrogate in a trust region, or as published",
            _evo_merging,
            takes_constraints=False,
            options={
                "variant": SamplerOption(
                    str,
                    "our default, the published two stages, weights alone, or both at once",
                    choices=("default", "paper", "lorahub", "joint"),
                ),
                "preferences": SamplerOption(str, "what several objectives count, as in maths=0.7,french=0.3"),
                "top": SamplerOption(int, "LoRAs to keep, by their own score", low=1),
                "density_penalty": SamplerOption(float, "factor of mean |density| in the loss", low=0.0),
                "weight_penalty": SamplerOption(float, "factor of mean |weight| in the loss", low=0.0),
                "first_stage": SamplerOption(int, "trials on densities (variant paper)", low=0),
                "patience": SamplerOption(int, "generations without gain that end the first stage", low=0),
                "population": SamplerOption(int, "trials per generation of CMA-ES", low=2),
                "sigma": SamplerOption(float, "initial step of CMA-ES", low=1e-6),
                "covariance": SamplerOption(str, "of CMA-ES", choices=("auto", "full", "separable")),
                "densities": SamplerOption(bool, "whether the default variant searches densities"),
            },
        ),
        SamplerSpec(
            "map",
            "amortised Pareto fronts: a quadratic surrogate per objective, its front's members evaluated",
            _map,
            takes_constraints=False,
            options={
                "n_startup": SamplerOption(int, "trials before the first model", low=2),
                "nested": SamplerOption(bool, "a tournament of pairs instead of the Sobol design, for many experts"),
                "link": SamplerOption(bool, "whether objectives saturate (a sigmoid of the quadratic)"),
                "refine": SamplerOption(int, "every how many proposals one goes where models know least", low=0),
            },
        ),
        SamplerSpec("random", "independent uniform points", _optuna("RandomSampler", joint=False)),
        SamplerSpec("sobol", "a scrambled Sobol sequence", _sobol),
        SamplerSpec(
            "tpe",
            "Optuna's tree-structured Parzen estimator, each parameter by itself",
            _optuna("TPESampler", joint=False),
            options={"n_startup_trials": _STARTUP},
        ),
        SamplerSpec(
            "tpe-multivariate",
            "Optuna's tree-structured Parzen estimator, parameters together",
            _optuna("TPESampler", joint=True, multivariate=True),
            options={"n_startup_trials": _STARTUP},
        ),
        SamplerSpec(
            "nsga2",
            "Optuna's NSGA-II",
            _optuna("NSGAIISampler", joint=True),
            options={"population_size": _POPULATION},
        ),
        SamplerSpec(
            "nsga3",
            "Optuna's NSGA-III",
            _optuna("NSGAIIISampler", joint=True),
            options={"population_size": _POPULATION},
        ),
        SamplerSpec(
            "gp",
            "Optuna's Gaussian process sampler",
            _optuna("GPSampler", joint=True),
            options={
                "n_startup_trials": _STARTUP,
                "deterministic_objective": SamplerOption(bool, "the same recipe always scores the same"),
            },
        ),
        SamplerSpec(
            "cma-es",
            "covariance matrix adaptation, numeric parameters only",
            _cma_es,
            max_objectives=1,
            takes_constraints=False,
            options={
                "sigma": SamplerOption(float, "initial standard deviation, as a share of each range", low=1e-6),
                "population_size": _POPULATION,
            },
        ),
    )
}
"""Every sampler that a study file can name."""
