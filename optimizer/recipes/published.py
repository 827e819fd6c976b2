"""Merge methods at the coefficients that their papers or released code use (ours, where it says so).

What a comparison without a search evaluates. The baselines (base, experts, uniform average, task arithmetic at 0.3)
are the anchors; these are the methods beside them.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.recipes.anchors import BASE, TASK_ARITHMETIC, UNIFORM, anchors
from mergefront.optimizer.recipes.grouping import Grouping
from mergefront.optimizer.recipes.methods import METHODS, MergeMethod, ParameterValue
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.seeding import derive_seed

Variants = Mapping[str, Mapping[str, ParameterValue]]

_WHOLE: Mapping[str, ParameterValue] = {"weight": 1.0}
_DROPPED: Mapping[str, ParameterValue] = {"density": 0.8, "rescale": "density"}
_CRUMBS: Mapping[str, ParameterValue] = {"weight": 0.3, "density": 0.9, "gamma": 0.01}
_PUBLISHED: Mapping[str, Variants] = {
    "linear": {},
    # Usual scales of several tasks, beside the anchor at 0.3; 1 is the plain sum.
    "task_arithmetic": {"task arithmetic 0.5": {"weight": 0.5}, "task arithmetic 1": _WHOLE},
    # arXiv 2306.01708: the top 20 %, lambda 1.
    "ties": {"ties": {**_WHOLE, "density": 0.2}},
    # The authors' command for language models: drop rate 0.2, rescaled, average. With signs: averaged by TIES.
    "dare_linear": {"dare_linear": _DROPPED},
    "dare_ties": {"dare_ties": {**_DROPPED, **_WHOLE, "normalize": True}},
    # Ours, as DARE's.
    "della_linear": {"della_linear": {"density": 0.8}},
    "della": {"della": {**_WHOLE, "density": 0.8}},
    # The densities of mergekit's examples, the anchor's scale.
    "breadcrumbs": {"breadcrumbs": _CRUMBS},
    "breadcrumbs_ties": {"breadcrumbs_ties": _CRUMBS},
    "slerp": {"slerp": {"t": 0.5}},
    # Ours: a tenth of the entries.
    "sce": {"sce": {"select_topk": 0.1}},
}
"""By method, its variants by label; other methods have one, all of whose coefficients are the registry's defaults."""

NOT_HERE: Mapping[str, tuple[str, ...]] = {
    "MergeBench (arXiv 2505.10833)": ("Fisher merging", "RegMean", "Consensus TA", "Localize-and-Stitch"),
    "the in-the-wild study (arXiv 2511.21437)": (),
}
"""What two studies of merge methods for language models compare and mergefront does not have, by the study."""


@dataclass(frozen=True)
class Published:
    """One merge of a comparison: a method's ``label``, and the experts of a random subset if it is one's."""

    label: str
    recipe: Recipe
    subset: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """Different for each merge of a comparison."""
        return self.label if self.subset is None else f"{self.label} of {' + '.join(self.subset)}"


def comparison_space(space: MergeSpace) -> MergeSpace:
    """A space of the same models whose anchors are the baselines, whatever the study searches."""
    return MergeSpace(
        space.models,
        method="task_arithmetic",
        base_model=space.base_model,
        parameters={"weight": [0, 1]},
        seed=space.seed,
    )


def chosen_methods(words: Iterable[str]) -> list[str]:
    """Method names by what people call them: a method's own name, or a row of the table of a comparison.

    The baselines are in every table, so that their names choose no method. Raises ``UserError`` for other words.
    """
    labels = {label: method for method, variants in _PUBLISHED.items() for label in variants}
    baselines = (BASE, UNIFORM, TASK_ARITHMETIC)
    found: dict[str, None] = {}
    for word in words:
        if word in METHODS or word in labels:
            found[METHODS[labels.get(word, word)].name] = None
        elif word not in baselines:
            raise UserError(
                f"unknown merge method {word!r} {did_you_mean(word, {*METHODS, *labels, *baselines})}; {BASE}, "
                f"experts, {UNIFORM} and {TASK_ARITHMETIC} are in every comparison"
            )
    return list(found)


def published(space: MergeSpace, names: Collection[str]) -> tuple[list[Published], dict[str, str]]:
    """The merges of the methods called ``names``, and why others of them make none, by method."""
    made: list[Published] = []
    left_out = {}
    for name in names:
        method = METHODS[name]
        refused = method.refuses(len(space.models)) or _undecided(method)
        if refused is not None:
            left_out[name] = refused
            continue
        for label, params in _PUBLISHED.get(name, {name: {}}).items():
            made.append(Published(label, space.make(name, _coefficients(method, space, params), Grouping())))
    return made, left_out


def _undecided(method: MergeMethod) -> str | None:
    """Why nobody can say at which coefficients a method is to be tried, or None."""
    given = [*_PUBLISHED.get(method.name, {}).values(), {}][0]
    missing = [p.name for p in method.parameters if p.default is None and p.name != "weight" and p.name not in given]
    return f"{method.name} needs a value for {missing[0]!r}, and none is published" if missing else None


def _coefficients(
    method: MergeMethod, space: MergeSpace, given: Mapping[str, ParameterValue]
) -> dict[str, ParameterValue]:
    """What is published, for each expert; weights that nobody publishes are shares of 1."""
    made: dict[str, ParameterValue] = {}
    for parameter in method.parameters:
        value = given.get(parameter.name)
        if value is None and parameter.name == "weight" and parameter.default is None:
            value = 1.0 / len(space.models)
        if value is None:
            continue
        names = space.models if parameter.scope == "model" else (None,)
        made |= {parameter.name if name is None else f"{parameter.name}[{name}]": value for name in names}
    return made


def of_subsets(space: MergeSpace, names: Collection[str], count: int) -> list[Published]:
    """The baselines that are merges and the methods called ``names``, each over the same random subsets of the experts.

    ``count`` different subsets of at least two (all there are, where that is fewer), the first of more: sizes are
    drawn evenly, as in arXiv 2511.21437. Raises ``UserError`` for fewer than three experts.
    """
    made = []
    for chosen in _subsets(list(space.models), count, space.seed):
        part = MergeSpace(
            {name: space.models[name] for name in chosen},
            method="task_arithmetic",
            base_model=space.base_model,
            parameters={"weight": [0, 1]},
            seed=space.seed,
        )
        baselines = [one for one in anchors(part) if one.name in (UNIFORM, TASK_ARITHMETIC)]
        made += [Published(one.name, one.recipe, chosen) for one in baselines]
        made += [Published(one.label, one.recipe, chosen) for one in published(part, names)[0]]
    return made


def _subsets(models: Sequence[str], count: int, seed: int) -> Iterator[tuple[str, ...]]:
    if len(models) < 3:
        raise UserError(f"--subsets needs at least three experts to choose from, and this study has {len(models)}")
    there = 2 ** len(models) - len(models) - 1
    generator = random.Random(derive_seed(seed, "subsets of experts"))
    seen: set[tuple[str, ...]] = set()
    while len(seen) < min(count, there):
        size = generator.randint(2, len(models))
        chosen = set(generator.sample(list(models), size))
        found = tuple(name for name in models if name in chosen)
        if found not in seen:
            seen.add(found)
            yield found
