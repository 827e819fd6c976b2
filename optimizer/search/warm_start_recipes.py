"""The recipes that a study evaluates after its anchors, and recipes of others as points of a space."""

from __future__ import annotations

import optuna

from mergefront.optimizer.recipes.anchors import WarmStartRecipe
from mergefront.optimizer.recipes.grouping import CoefficientName
from mergefront.optimizer.recipes.methods import ParameterValue
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import METHOD, MergeSpace
from mergefront.optimizer.search.attributes import WARM_START_RECIPES


def warm_start_recipes(study: optuna.Study, space: MergeSpace) -> tuple[WarmStartRecipe, ...]:
    """The recipes to evaluate after the anchors, as the study keeps them."""
    made = []
    for entry in study.user_attrs.get(WARM_START_RECIPES, ()):
        recipe = Recipe.from_json(entry["recipe"])
        params = params_in(space, recipe)
        shown = _nearest(space, recipe) if params is None else params
        exact = recipe if params is None else space.recipe(params)
        made.append(WarmStartRecipe(entry["name"], exact, shown, outside_space=params is None))
    return tuple(made)


def params_in(space: MergeSpace, recipe: Recipe) -> dict[str, ParameterValue] | None:
    """The recipe as a point of the space, or None. A coefficient for the whole model counts for each of its parts."""
    direct = space.params(recipe)
    if (
        direct is not None
        or recipe.grouping.positions()
        or recipe.method not in {method.name for method in space.methods}
    ):
        return direct
    params: dict[str, ParameterValue] = {}
    for name, searched in space.searched.items():
        if name == METHOD:
            params[name] = recipe.method
            continue
        whole = _whole(space, name)
        value = recipe.params.get(whole, searched.nearest(1.0) if whole not in recipe.params else None)
        if value is None or not searched.holds(value):
            return None
        params[name] = value
    spread = space.recipe(params).params
    same = {_whole(space, name): value for name, value in spread.items()}
    return params if same == dict(recipe.params) else None


def _whole(space: MergeSpace, name: str) -> str:
    """The name of the same coefficient without block and module kind; the method's own stays."""
    if name == METHOD:
        return name
    parsed = CoefficientName.parse(name, space.models, space.grouping.split)
    return str(CoefficientName(parsed.parameter, parsed.expert))


def _nearest(space: MergeSpace, recipe: Recipe) -> dict[str, ParameterValue]:
    """A point of the space to show a recipe outside it by."""
    params: dict[str, ParameterValue] = {}
    for name, searched in space.searched.items():
        value = recipe.method if name == METHOD else recipe.params.get(name, recipe.params.get(_whole(space, name)))
        params[name] = searched.middle if value is None else searched.nearest(value)
    return params
