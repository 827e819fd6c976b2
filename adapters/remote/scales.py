"""A recipe as one number per model, for servers that hold whole LoRAs and add them up.

A server computes ``base + sum_i s_i * LoRA_i``, exactly what task arithmetic means and what the average of
whole experts with weights that sum to 1 comes down to. Every other method does more to the tensors than
a scale can say and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping

from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.recipes.grouping import CoefficientName
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe

ADDING_METHODS = ("task_arithmetic", "linear", "dare_linear", "lora_cat")
"""Methods that can be a weighted sum of whole LoRAs (``dare_linear`` only at density 1)."""


def lora_scales(recipe: Recipe, copies: Mapping[str, Container[float]] | None = None) -> dict[str, float]:
    """The scale of each model's LoRA, or of the copy of it at the recipe's density; see ``not_a_sum``.

    Raises ``UserError`` for a method or granularity that is no weighted sum, ``EvaluationError`` (kind
    "weights") when a normalised recipe's weights cancel.
    """
    problem = not_a_sum(recipe, copies)
    if problem is not None:
        raise UserError(problem)
    weights = model_weights(recipe)
    if _value(recipe, "normalize", recipe.method == "linear"):
        total = math.fsum(weights.values())
        if abs(total) < 1e-8:
            if any(weights.values()):
                raise EvaluationError(f"the weights sum to {total:g}; a normalised sum needs another", kind="weights")
            return weights
        weights = {name: weight / total for name, weight in weights.items()}
    factor = _value(recipe, "lambda", 1.0)
    return {name: float(factor) * weight for name, weight in weights.items()}


def model_weights(recipe: Recipe) -> dict[str, float]:
    return {name: float(recipe.coefficient("weight", name, "")) for name in recipe.models}


def densities(recipe: Recipe) -> dict[str, float]:
    """The share of each model's task vector, or of its LoRA's A, that the recipe keeps; steps of 0.1 end in 0.3, not in
    0.30000000000000004."""
    if METHODS[recipe.method].parameter("density") is None:
        return dict.fromkeys(recipe.models, 1.0)
    return {name: round(float(recipe.coefficient("density", name, "")), 9) for name in recipe.models}


def not_a_sum(recipe: Recipe, copies: Mapping[str, Container[float]] | None = None) -> str | None:
    """Why a recipe is no weighted sum of whole LoRAs, or None when it is one.

    ``copies`` are the densities at which a server holds a copy of a model's LoRA with the small entries of A dropped,
    as ``lora_cat`` drops them.
    """
    if recipe.method not in ADDING_METHODS:
        return (
            f"{recipe.method} cannot be done by scaling whole LoRAs, which is all that this server does; "
            "use task_arithmetic (or linear)"
        )
    for name in recipe.params:
        parsed = CoefficientName.parse(name, recipe.models, recipe.grouping.split)
        if parsed.position is not None or parsed.module is not None:
            return f"{name}: the server has one scale for a whole LoRA; use granularity: global and no split"
    for name, density in densities(recipe).items():
        if density != 1.0 and not (recipe.method == "lora_cat" and density in (copies or {}).get(name, ())):
            return (
                f"density[{name}] is {density:g}: a server cannot drop entries of a LoRA; fix density: 1 or leave it "
                "out, or for lora_cat on llama.cpp give it a copy (mergefront gguf --density)"
            )
    if recipe.method == "linear" and not _value(recipe, "normalize", True):
        total = math.fsum(model_weights(recipe).values())
        if abs(total - 1.0) > 1e-9:
            return f"linear without normalize scales the base too (the weights sum to {total:g}); use task_arithmetic"
    return None


def single_model(recipe: Recipe) -> str | None:
    """The name of the one model that a recipe is, ``""`` for the base model, None for a real merge."""
    try:
        scales = lora_scales(recipe)
    except (UserError, EvaluationError):
        return None
    used = {name: scale for name, scale in scales.items() if scale != 0.0}
    if not used:
        return ""
    if len(used) == 1 and abs(next(iter(used.values())) - 1.0) < 1e-12:
        return next(iter(used))
    return None


def _value(recipe: Recipe, parameter: str, otherwise: float | bool) -> float | bool:
    declared = METHODS[recipe.method].parameter(parameter)
    if declared is None:
        return otherwise if parameter == "normalize" else 1.0
    value = recipe.coefficient(parameter, None, "")
    assert isinstance(value, (int, float, bool))
    return value
