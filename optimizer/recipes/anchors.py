"""The recipes that every search evaluates first.

The anchors (base model, each expert alone, the uniform average, task arithmetic at 0.3) fix the
unit system in which objectives are compared, and a merge has to beat them. Those that are points of
the searched space are good first data for the surrogate. Start points come after them: points of the
space whose weights something else than an evaluation recommends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.grouping import CoefficientName, Grouping, parameter_of
from mergefront.optimizer.recipes.methods import MERGE_EXPERTS, METHODS, ParameterValue
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import METHOD, MergeSpace

DEFAULT_ANCHORS = "default"
"""What the anchors are called among a study's start points."""
BASE = "base"
UNIFORM = "uniform average"
TASK_ARITHMETIC = "task arithmetic 0.3"
METRIC_WEIGHTED = "metric-weighted average"
FEWEST, MOST = "fewest experts", "most experts"

_ADDS_WHOLE_TASK_VECTORS = ("task_arithmetic", "dare_linear", "lora_cat")
_SINGLE_EXPERT_EXACT = (*_ADDS_WHOLE_TASK_VECTORS, "ties", "dare_ties", "lora_factor")
"""At density 1 these give an expert back when it alone has weight 1, and the base when none has any."""


@dataclass(frozen=True)
class GivenRecipe:
    """A recipe that is evaluated before the sampler proposes any, under a name.

    ``params`` are its Optuna parameters. When ``outside_space`` is set the recipe is not a point of
    the searched space (an average among ``ties`` candidates, say). ``params`` then holds the same
    coefficients as far as the space has them, for display, and no surrogate may learn from them.
    """

    name: str
    recipe: Recipe
    params: Mapping[str, ParameterValue]
    outside_space: bool


class Anchor(GivenRecipe):
    """A baseline: a recipe that a merge has to beat."""


class WarmStartRecipe(GivenRecipe):
    """A recipe that an earlier search, the user or the experts' weights recommend; merges are not compared with it."""


def expert_anchor(expert: str) -> str:
    """The name of the anchor that is one expert alone."""
    return f"expert {expert}"


def anchors(space: MergeSpace) -> list[Anchor]:
    """The anchors of a space, in the order in which they are evaluated.

    Of mixtures that keep fewer experts: the whole one, and the ends of the searched numbers.
    """
    if space.methods[0] is MERGE_EXPERTS:
        return _of_experts(space)
    experts = list(space.models)
    share = 1.0 / len(experts)
    made = [_anchor(space, BASE, dict.fromkeys(experts, 0.0), "task_arithmetic")]
    made += [
        _anchor(space, expert_anchor(name), {other: float(other == name) for other in experts}, "task_arithmetic")
        for name in experts
    ]
    if len(experts) > 1:
        made.append(_anchor(space, UNIFORM, dict.fromkeys(experts, share), "linear"))
    made.append(_anchor(space, TASK_ARITHMETIC, dict.fromkeys(experts, 0.3), "task_arithmetic"))
    return made


def _of_experts(space: MergeSpace) -> list[Anchor]:
    ends = {
        name: sorted(map(float, searched.choices or (searched.low, searched.high)))
        for name, searched in space.searched.items()
    }
    least: dict[str, ParameterValue] = {name: int(counts[0]) for name, counts in ends.items()}
    most: dict[str, ParameterValue] = {name: int(counts[-1]) for name, counts in ends.items()}
    whole = space.make("task_arithmetic", {f"weight[{name}]": 0.0 for name in space.models}, Grouping())
    return [
        Anchor(BASE, whole, most, True),
        Anchor(FEWEST, space.recipe(least), least, False),
        Anchor(MOST, space.recipe(most), most, False),
    ]


def metric_weighted(space: MergeSpace, own_scores: Mapping[str, float]) -> Anchor | None:
    """The average whose weights are proportional to ``own_scores``, each expert's own score (larger is better).

    It is a point of the space, None where the space has no such point. Metrics-weighted averaging, arXiv
    2504.18580; negative scores count as 0.
    """
    total = sum(max(score, 0.0) for score in own_scores.values())
    if total <= 0 or set(own_scores) != set(space.models):
        return None
    weights = {name: max(score, 0.0) / total for name, score in own_scores.items()}
    anchor = _anchor(space, METRIC_WEIGHTED, weights, "linear")
    if anchor.outside_space:
        try:
            return Anchor(METRIC_WEIGHTED, space.recipe(anchor.params), anchor.params, False)
        except UserError:
            return None
    return anchor


def refuses_weights(space: MergeSpace) -> str | None:
    """Why weights of task vectors say nothing of a space's points; None where they do."""
    weighted = [method.name for method in space.methods if method.parameter("weight") is not None]
    if not weighted:
        methods = " and ".join(method.name for method in space.methods)
        known = ", ".join(dict.fromkeys(parameter_of(name) for name in space.searched if name != METHOD))
        return f"it is a weight per expert, and {methods} takes none (what is searched here: {known})"
    if not any(parameter_of(name) == "weight" for name in space.searched):
        return "it is a weight per expert, and no weight is searched here; give weight a range under merge.space"
    return None


def start_point(space: MergeSpace, name: str, weights: Mapping[str, float]) -> WarmStartRecipe:
    """The point of the space that is nearest to whole task vectors with these weights.

    ``weights`` by the names of the space's coefficients (``weight[maths, block 2]``), or by ``weight[maths]`` for all
    of an expert's. For a space that ``refuses_weights`` accepts.
    """
    ones = dict.fromkeys(space.models, 1.0)
    params = _projected(space, ones, "task_arithmetic")
    if METHOD in params and METHODS[str(params[METHOD])].parameter("weight") is None:
        params[METHOD] = next(method.name for method in space.methods if method.parameter("weight") is not None)
    for coefficient, searched in space.searched.items():
        if parameter_of(coefficient) == "weight":
            expert = CoefficientName.parse(coefficient, space.models, space.grouping.split).expert
            common = str(CoefficientName("weight", expert))
            params[coefficient] = searched.nearest(weights[coefficient if coefficient in weights else common])
    params = space.settled(params)
    return WarmStartRecipe(name, space.recipe(params), params, False)


def _anchor(space: MergeSpace, name: str, weights: Mapping[str, float], method: str) -> Anchor:
    params = _projected(space, weights, method)
    same = _same_in_space(space, weights, method, params)
    if same is not None:
        return Anchor(name, same, params, False)
    recipe = space.make(method, {f"weight[{expert}]": weight for expert, weight in weights.items()}, Grouping())
    return Anchor(name, recipe, params, True)


def _same_in_space(
    space: MergeSpace, weights: Mapping[str, float], method: str, params: Mapping[str, ParameterValue]
) -> Recipe | None:
    """The recipe at ``params`` if its merge is exactly the wanted one, else None."""
    recipe = space.recipe(params)
    nonzero = [weight for weight in weights.values() if weight != 0]
    if recipe.method not in _equivalent(method, nonzero):
        return None
    for name, value in recipe.params.items():
        parsed = CoefficientName.parse(name, recipe.models, recipe.grouping.split)
        wanted = _wanted(parsed, value, recipe.method, weights, nonzero)
        if wanted != value and (isinstance(value, str) or abs(float(value) - float(wanted)) > 1e-12):
            return None
    return recipe


def _wanted(
    name: CoefficientName,
    value: ParameterValue,
    method: str,
    weights: Mapping[str, float],
    nonzero: Sequence[float],
) -> ParameterValue:
    """What a coefficient has to be for whole task vectors with these weights; ``value`` if it may be anything."""
    if name.parameter == "weight":
        return weights[name.expert] if name.expert is not None else float("nan")
    if name.parameter in ("density", "lambda") and nonzero:
        return 1.0
    if name.parameter == "normalize" and (len(nonzero) > 1 or method == "linear"):
        return method == "linear"
    return value


def _equivalent(method: str, nonzero: Sequence[float]) -> tuple[str, ...]:
    if not nonzero or (len(nonzero) == 1 and nonzero[0] == 1.0):
        return (*_SINGLE_EXPERT_EXACT, "linear") if nonzero else _SINGLE_EXPERT_EXACT
    if abs(sum(nonzero) - 1.0) < 1e-9:
        return (*_ADDS_WHOLE_TASK_VECTORS, "linear")
    return _ADDS_WHOLE_TASK_VECTORS if method == "task_arithmetic" else ("linear",)


def _projected(space: MergeSpace, weights: Mapping[str, float], method: str) -> dict[str, ParameterValue]:
    """The wanted coefficients as far as the space has them, clipped into its ranges."""
    params: dict[str, ParameterValue] = {}
    for name, searched in space.searched.items():
        if name == METHOD:
            nonzero = [weight for weight in weights.values() if weight != 0]
            wanted = next((m for m in _equivalent(method, nonzero) if m in searched.choices), searched.choices[0])
            params[name] = wanted
            continue
        parsed = CoefficientName.parse(name, space.models, space.grouping.split)
        if parsed.parameter == "weight" and parsed.expert is not None:
            params[name] = searched.nearest(weights[parsed.expert])
        elif parsed.parameter in ("density", "lambda"):
            params[name] = searched.nearest(1.0)
        elif parsed.parameter == "t":
            total = sum(weights.values())
            params[name] = searched.nearest(list(weights.values())[-1] / total if total > 0 else 0.0)
        else:
            params[name] = searched.middle
    return params


def one_of_each_method(space: MergeSpace) -> Iterator[Recipe]:
    """A recipe of every method of the space, its searched coefficients in the middle."""
    for method in space.methods:
        middle = {name: searched.middle for name, searched in space.searched.items() if name != METHOD}
        yield space.recipe({**middle, METHOD: method.name} if METHOD in space.searched else middle)
