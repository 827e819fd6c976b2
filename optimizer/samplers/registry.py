"""The samplers by name, as data: what a study file may say under ``search``.

Importing this module imports no sampler and no Optuna.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.recipes.merge_rule import UNKNOWN, MergeRule
from mergefront.optimizer.samplers.options import (
    CmaEsOptions,
    EvoMergingOptions,
    GPOptions,
    MAPOptions,
    MMMOOptions,
    NSGAOptions,
    SamplerOptions,
    TPEOptions,
)
from mergefront.optimizer.scores.objectives import COMPUTED, Objective
from mergefront.optimizer.sections import read_section

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler: its name in study files, what it can do, and how it is made.

    ``home`` is "module:class", ``optuna:class`` one of Optuna's own. ``takes`` names what a sampler of ours is given
    of the study besides its seed, space and options; ``fixed`` are constant arguments.
    """

    name: str
    summary: str
    home: str
    options: type[SamplerOptions] = SamplerOptions
    takes: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    joint: bool = False
    """Of Optuna's samplers: whether it samples the parameters of a space together."""
    max_objectives: int | None = None
    most_told: tuple[int, ...] = ()
    """Of Optuna's samplers: of how many finished trials it is shown at most, by the number of objectives from 1 on."""
    sees_pending: bool = False
    """Of Optuna's samplers: whether it looks at running trials."""
    takes_constraints: bool = True
    takes_simplex: bool = True
    """Whether it learns where weights are divided by their sum, and does not ask for one merge again and again."""
    expects_improvement: bool = False

    @property
    def of_optuna(self) -> bool:
        return self.home.startswith("optuna:")


def check_sampler(
    name: str,
    options: Mapping[str, Any],
    objectives: int,
    *,
    constrained: bool = False,
    stops_by_improvement: bool = False,
    simplex: bool = False,
) -> list[str]:
    """Every problem with a choice of sampler for a number of objectives, each a sentence; empty when there is none.

    ``constrained`` says that the study has constraints, ``stops_by_improvement`` that runs end when the sampler
    expects little improvement, ``simplex`` that the space's weights sum to one.
    """
    spec = SAMPLERS.get(name)
    if spec is None:
        return [f"sampler {name!r} is unknown {did_you_mean(name, SAMPLERS)}"]
    problems = [problem for problem in (too_many_objectives(name, objectives),) if problem is not None]
    if constrained and not spec.takes_constraints:
        able = [other.name for other in SAMPLERS.values() if other.takes_constraints]
        problems.append(f"sampler {name!r} does not know constraints; these do: {', '.join(able)}")
    if simplex and not spec.takes_simplex:
        able = [other.name for other in SAMPLERS.values() if other.takes_simplex]
        problems.append(f"sampler {name!r} does not know weights that sum to one; these do: {', '.join(able)}")
    if stops_by_improvement and (not spec.expects_improvement or options.get("variant") == "paper"):
        able = [other.name for other in SAMPLERS.values() if other.expects_improvement]
        problems.append(
            f"sampler {name!r} does not say what improvement it expects, so stop.improvement has no meaning; "
            f"these do, in their default variant: {', '.join(able)}"
        )
    wrong = read_section(spec.options, options)[1]
    return problems + [f"sampler {name!r}: {problem}" for problem in wrong]


def too_many_objectives(name: str, objectives: int) -> str | None:
    """Why a sampler cannot search for so many objectives, and which can; None when it can."""
    spec = SAMPLERS[name]
    if spec.max_objectives is None or objectives <= spec.max_objectives:
        return None
    able = [other.name for other in SAMPLERS.values() if other.max_objectives is None]
    number = "one objective" if spec.max_objectives == 1 else f"up to {spec.max_objectives} objectives"
    return f"sampler {name!r} does {number}, but {objectives} are asked for; any number do: {', '.join(able)}"


def shown_to_sampler(name: str, objectives: int, evaluations: int) -> str | None:
    """What a user should know of a sampler that does not learn from every trial of such a budget; None if it does."""
    most = SAMPLERS[name].most_told
    if not most or evaluations <= most[objectives - 1]:
        return None
    return (
        f"sampler {name!r} learns from {most[objectives - 1]} finished trials at most, chosen to represent all, so "
        "that a proposal stays within 3 GB; mm-mo learns from more"
    )


def resolved_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's options with the default of every one that is left out, where that is a value of its own."""
    fields = SAMPLERS[name].options.model_fields
    resolved = {option: field.default for option, field in fields.items()} | dict(options)
    return {option: value for option, value in resolved.items() if value is not None}


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

    One of Optuna's refuses too many objectives when it is asked for a proposal: a study that was begun before that was
    refused can still be read.

    ``rule`` is the merge's arithmetic (``MergeSpace.merge_rule``).
    """
    of_optuna = name in SAMPLERS and SAMPLERS[name].of_optuna
    problems = check_sampler(name, options or {}, 1 if of_optuna else len(objectives))
    if problems:
        raise UserError("; ".join(problems))
    spec = SAMPLERS[name]
    common = {"seed": seed, "search_space": search_space}
    given = {**spec.fixed, **(options or {})}
    if spec.of_optuna:
        return _of_optuna(spec, given, **common)
    scores = [i for i, objective in enumerate(objectives) if objective.name not in COMPUTED]
    study = {
        "ranges": [objective.range for objective in objectives],
        "task_objectives": scores or None,
        "rule": rule,
    }
    if "preferences" in given:
        given["preferences"] = _preferences(given["preferences"], objectives)
    return _sampler_class(spec)(**common, **{key: study[key] for key in spec.takes}, **given)


def _sampler_class(spec: SamplerSpec) -> type[BaseSampler]:
    module, _, class_name = spec.home.partition(":")
    found = import_module("optuna.samplers" if spec.of_optuna else f"{__package__}.{module}")
    sampler_class: type[BaseSampler] = getattr(found, class_name)
    return sampler_class


def _of_optuna(spec: SamplerSpec, given: Mapping[str, Any], **common: Any) -> BaseSampler:
    from mergefront.optimizer.samplers.baselines.optuna_samplers import OptunaSampler

    inner: Callable[..., BaseSampler] = _sampler_class(spec)
    return OptunaSampler(
        lambda seed: inner(seed=seed, **given),
        joint=spec.joint,
        most_told=spec.most_told,
        refusal=partial(too_many_objectives, spec.name),
        sees_pending=spec.sees_pending,
        **common,
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


SAMPLERS: Mapping[str, SamplerSpec] = {
    spec.name: spec
    for spec in (
        SamplerSpec(
            "mm-mo",
            "multi-objective Bayesian optimisation of merges: anchors, Gaussian processes, hypervolume improvement",
            "mmmo.sampler:MMMOSampler",
            MMMOOptions,
            takes=("ranges", "task_objectives", "rule"),
            expects_improvement=True,
        ),
        SamplerSpec(
            "evo-merging",
            "pools of LoRAs: signed weights and densities by a surrogate in a trust region, or as published",
            "evo_merging.sampler:EvoMergingSampler",
            EvoMergingOptions,
            takes=("ranges",),
            takes_constraints=False,
            takes_simplex=False,
        ),
        SamplerSpec(
            "map",
            "amortised Pareto fronts: a quadratic surrogate per objective, its front's members evaluated",
            "map.sampler:MAPSampler",
            MAPOptions,
            takes=("ranges",),
            takes_constraints=False,
            takes_simplex=False,
        ),
        SamplerSpec("random", "independent uniform points", "optuna:RandomSampler"),
        SamplerSpec("sobol", "a scrambled Sobol sequence", "baselines.optuna_samplers:SobolSampler"),
        SamplerSpec(
            "tpe",
            "Optuna's tree-structured Parzen estimator, each parameter by itself",
            "optuna:TPESampler",
            TPEOptions,
            sees_pending=True,
        ),
        SamplerSpec(
            "tpe-multivariate",
            "Optuna's tree-structured Parzen estimator, parameters together",
            "optuna:TPESampler",
            TPEOptions,
            sees_pending=True,
            fixed={"multivariate": True},
            joint=True,
        ),
        SamplerSpec("nsga2", "Optuna's NSGA-II", "optuna:NSGAIISampler", NSGAOptions, joint=True),
        SamplerSpec("nsga3", "Optuna's NSGA-III", "optuna:NSGAIIISampler", NSGAOptions, joint=True),
        SamplerSpec(
            "gp",
            "Optuna's Gaussian process sampler",
            "optuna:GPSampler",
            GPOptions,
            joint=True,
            max_objectives=3,
            # Its acquisition takes 2048 x 128 x (boxes above the front) x objectives numbers, several times.
            most_told=(320, 160, 64),
            sees_pending=True,
        ),
        SamplerSpec(
            "cma-es",
            "covariance matrix adaptation, numeric parameters only",
            "baselines.cma_es:CmaEsSampler",
            CmaEsOptions,
            max_objectives=1,
            takes_constraints=False,
        ),
    )
}
"""Every sampler that a study file can name."""
