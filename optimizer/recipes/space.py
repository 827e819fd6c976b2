"""The declared set of recipes: which coefficients are searched, in which ranges, how finely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergefront.optimizer.errors import StudyFileError, UserError, did_you_mean
from mergefront.optimizer.foreign_text import LONGEST_NAME, is_name
from mergefront.optimizer.recipes.granularity import grouping_of
from mergefront.optimizer.recipes.grouping import CoefficientName, Grouping, parameter_of
from mergefront.optimizer.recipes.merge_rule import MergeRule, Sparsifier
from mergefront.optimizer.recipes.methods import METHODS, MergeMethod, MethodParameter, ParameterValue
from mergefront.optimizer.recipes.range import Range, extremes, own_ranges, rule_to_json
from mergefront.optimizer.recipes.recipe import Recipe

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_LONGEST_COEFFICIENT = 512
"""Characters that Optuna's tables have room for."""
_ON_SIMPLEX = 1e-6
"""Weights whose sum is that close to one sum to one: they were rounded to ten digits."""
METHOD = "method"
"""The name under which the merge method itself is searched when a space has several."""
SPARSIFIERS: Mapping[str, Sparsifier] = {
    "none": "none",
    "magnitude": "magnitude",
    "breadcrumbs": "magnitude",
    "bernoulli": "bernoulli",
    "rank": "bernoulli",
}
"""What a method's density does to a task vector, by the method's sparsifier."""


class MergeSpace:
    """The recipes that a search may propose.

    ``models``: the experts, as names or ``{name: reference}``. ``method``: one merge method or
    several (then the method is searched too). ``parameters`` maps coefficient names to ranges or
    fixed values: ``{"weight": [0, 1], "density": [0.1, 1], "lambda": 1.0}``; a name such as
    ``weight[maths]`` overrides it for one expert. A parameter that is not mentioned stays at its
    default, and is searched over the method's own range when it has none; without any ``parameters``
    ``density`` is searched too, and everything that the method takes where nothing else would be.
    ``granularity``: "global", "layers", ``{"blocks": n}`` (of equal depth), ``{"starts": [0, ...]}`` (first
    layers, such as ``grouping.blocks_by_importance`` gives) or ``{"blocks": {"language": n, "vision": 0}}`` (per
    stack; 0, or no mention, is one coefficient), with ``layers`` the number of transformer layers, or that of every
    stack by its name (see ``stacks``); ``split``: substrings of tensor names that get coefficients of their own.
    ``simplex``: the experts' weights are proportions, at least 0 and of sum 1 wherever they have values of their own.
    They are searched in [0, 1] each, and a recipe has them divided by their sum (equal shares where all are 0).
    ``seed`` fixes the masks of methods that drop at random.

    Raises ``StudyFileError`` with every problem at once.
    """

    def __init__(
        self,
        models: Sequence[str] | Mapping[str, str],
        *,
        method: str | Sequence[str] = "ties",
        base_model: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        granularity: str | Mapping[str, Any] = "global",
        split: Sequence[str] = (),
        layers: int | Mapping[str, int] = 0,
        seed: int = 0,
        simplex: bool = False,
    ) -> None:
        self.models: dict[str, str] = dict(models) if isinstance(models, Mapping) else {name: name for name in models}
        self.base_model = base_model
        self.granularity = granularity if isinstance(granularity, str) else dict(granularity)
        self.seed = seed
        self.simplex = simplex
        self.given = dict(parameters or {})
        problems: list[str] = []
        self.methods = _methods(method, problems)
        self.grouping = Grouping()
        try:
            self.grouping = grouping_of(granularity, tuple(split), layers)
        except UserError as error:
            problems.append(f"granularity: {error}")
        if not self.models:
            problems.append("models: at least one expert is needed")
        refused = [method.refuses(len(self.models)) for method in self.methods if self.models]
        problems.extend(f"models: {refusal}" for refusal in refused if refusal is not None)
        for name in self.models:
            if not is_name(name) or name != name.strip() or any(character in name for character in "[],"):
                problems.append(
                    f"models: {name[:LONGEST_NAME]!r} is not a usable name; avoid brackets, commas, and spaces at "
                    "its ends"
                )
        self.searched: dict[str, Range] = {}
        self.fixed: dict[str, ParameterValue] = {}
        if not problems:
            self._declare(problems)
        if problems:
            raise StudyFileError("merge space", problems)

    def _declare(self, problems: list[str]) -> None:
        if len(self.methods) > 1:
            self.searched[METHOD] = Range(choices=tuple(method.name for method in self.methods))
        declared: dict[str, MethodParameter] = {}
        for method in self.methods:
            for parameter in method.parameters:
                known = declared.get(parameter.name)
                # What one method can do without is needed all the same where another has no default.
                if known is None or (parameter.default is None and known.default is not None):
                    declared[parameter.name] = parameter
        rules = self._rules(declared, problems)
        self._proportions: list[list[str]] = []
        """The names of the weights that sum to one, group by group."""
        if self.simplex:
            problems.extend(self._no_simplex(rules))
            if "weight" in declared:
                scopes = self._scopes(declared["weight"])
                self._proportions = [
                    [str(CoefficientName("weight", m, *scope)) for m in self.models] for scope in scopes
                ]
        for parameter in declared.values():
            for name in self._names(parameter):
                rule = self._rule_for(name, parameter, rules)
                if isinstance(rule, Range):
                    self.searched[str(name)] = rule
                elif rule is not None:
                    self.fixed[str(name)] = rule
        if not self.searched and not self.given and not problems:
            # karcher, sce and others need no coefficient: then every one that they take is searched.
            for parameter in declared.values():
                self.searched |= {
                    str(name): found for name in self._names(parameter) for found in own_ranges(parameter)
                }
        long = [name for name in self.searched if len(name) > _LONGEST_COEFFICIENT]
        problems.extend(f"space: {name[:60]!r}... is too long to be kept; shorten 'split'" for name in long[:1])
        if not self.searched and not problems:
            problems.append("space: nothing is searched; give at least one coefficient a range such as weight: [0, 1]")

    def unlike(self) -> list[str]:
        """Where methods of the space take a coefficient of one name for different things, a sentence each.

        New studies are refused for it; a stored one goes on with the first method's range.
        """
        problems = []
        for name in dict.fromkeys(map(parameter_of, {**self.searched, **self.fixed})):
            takers = [(method.name, found) for method in self.methods if (found := method.parameter(name)) is not None]
            per_expert = [method for method, parameter in takers if parameter.scope == "model"]
            whole = [method for method, parameter in takers if parameter.scope == "recipe"]
            remedy = f"search these methods in studies of their own, or leave {name} out"
            if per_expert and whole:
                problems.append(
                    f"space: {name} is one number for the whole merge in {', '.join(whole)} and one per expert in "
                    f"{', '.join(per_expert)}; {remedy}"
                )
                continue
            given = [rule for key, rule in self.given.items() if parameter_of(str(key)) == name]
            if not given and len({parameter.search for _, parameter in takers}) > 1:
                ranges = ", ".join(f"{list(parameter.search)} in {method}" for method, parameter in takers)
                problems.append(f"space: {name} has unlike ranges: {ranges}; give it one that is for all")
            for value in {value for rule in given for value in extremes(Range.parse(name, rule))}:
                wrong = [(method, parameter.check(value)) for method, parameter in takers]
                problems.extend(f"space: {said} in {method}; {remedy}" for method, said in wrong if said)
        return problems

    def _no_simplex(self, rules: Mapping[str, Range | ParameterValue]) -> list[str]:
        """Why weights of these methods and with these rules cannot be proportions, a sentence each."""
        found = [
            f"space: simplex: {method.name} has no weights; it is for methods with one per expert, such as linear"
            for method in self.methods
            if method.parameter("weight") is None
        ]
        if len(self.models) < 2:
            found.append("space: simplex: one expert has nothing to share; name at least two, or remove simplex")
        own = [name for name, rule in rules.items() if parameter_of(name) == "weight" and rule != Range()]
        if own:
            found.append(f"space: simplex: weights lie in [0, 1] and sum to one; remove {own[0]!r}")
        return found

    def _rules(self, declared: Mapping[str, MethodParameter], problems: list[str]) -> dict[str, Range | ParameterValue]:
        rules: dict[str, Range | ParameterValue] = {}
        for key, given in self.given.items():
            try:
                name = CoefficientName.parse(str(key), self.models, self.grouping.split)
                parameter = declared.get(name.parameter)
                if parameter is None:
                    used = ", ".join(method.name for method in self.methods)
                    raise UserError(
                        f"space: {name.parameter!r} is no parameter of {used} "
                        f"{did_you_mean(name.parameter, {*declared, 'granularity', 'split', 'simplex'})}"
                    )
                if name.expert is not None and parameter.scope == "recipe":
                    raise UserError(
                        f"space: {parameter.name} is one number for the whole merge; write it without [{name.expert}]"
                    )
                if not any(
                    name.module in (None, kind) and name.position in (None, position)
                    for kind, position in self._scopes(parameter)
                ):
                    first, *others = map(str, self._names(parameter))
                    known = f"{first} to {others[-1]}" if others else first
                    raise UserError(
                        f"space: {key!r} is for what has no coefficient of its own here, with granularity "
                        f"{self.granularity!r}; there is {known}"
                    )
                rule = Range.parse(f"space: {key}", given)
                for value in extremes(rule):
                    wrong = parameter.check(value)
                    if wrong is not None:
                        raise UserError(f"space: {key}: {wrong}")
                rules[str(name)] = rule
            except UserError as error:
                problems.append(str(error))
        return rules

    def _scopes(self, parameter: MethodParameter) -> list[tuple[str | None, tuple[str, int] | None]]:
        """The module kinds and positions for which a parameter has coefficients of its own."""
        fine = parameter.scope == "model" or parameter.default is None
        return self.grouping.scopes() if fine else [(None, None)]

    def _names(self, parameter: MethodParameter) -> Iterator[CoefficientName]:
        owners: list[str | None] = list(self.models) if parameter.scope == "model" else [None]
        for owner in owners:
            for kind, block in self._scopes(parameter):
                yield CoefficientName(parameter.name, owner, kind, block)

    def _rule_for(
        self, name: CoefficientName, parameter: MethodParameter, rules: Mapping[str, Range | ParameterValue]
    ) -> Range | ParameterValue | None:
        for known in _rules_of(name):
            if known in rules:
                return rules[known]
        if parameter.name == "weight" and self.simplex:
            return Range()
        if parameter.default is None or (parameter.name == "density" and not self.given):
            return Range(*parameter.search)
        return None

    def declared_by(self, coefficient: str) -> str | None:
        """The key of ``given`` whose rule a coefficient follows; None where it follows the method's own."""
        keys = {str(CoefficientName.parse(str(key), self.models, self.grouping.split)): key for key in self.given}
        name = CoefficientName.parse(coefficient, self.models, self.grouping.split)
        return next((keys[rule] for rule in _rules_of(name) if rule in keys), None)

    @property
    def dimension(self) -> int:
        """The number of searched coefficients."""
        return len(self.searched)

    @property
    def weights_are_proportions(self) -> bool:
        """Whether every recipe divides by the sum of its weights, which are all searched."""
        fixed = {parameter_of(name) for name in self.fixed}
        searched = {parameter_of(name) for name in self.searched}
        if "weight" not in searched or "weight" in fixed or "normalize" in searched:
            return False
        return all(
            (parameter := method.parameter("normalize")) is not None
            and self.fixed.get("normalize", parameter.default) is True
            for method in self.methods
        )

    @property
    def no_mixtures(self) -> str | None:
        """Why merges of this space stand for no data mixtures (see ``mixture``), or None."""
        if not (self.simplex or self.weights_are_proportions):
            return "the weights are no proportions; search with space: {simplex: true}"
        if len(self.grouping.scopes()) > 1:
            return "weights differ between parts of the model, and data have one share each; use granularity: global"
        return None

    def mixture(self, recipe: Recipe) -> dict[str, float] | None:
        """Every expert's share of the weights in percent; None where they are no shares (a negative one, all zero).

        Where each expert was trained on one source of data, the merge is a proxy of a model that is trained on the
        sources in these shares (arXiv 2602.04937).
        """
        weights = {name: float(recipe.params.get(f"weight[{name}]", 0.0)) for name in self.models}
        total = sum(weights.values())
        if min(weights.values()) < 0.0 or total <= 0.0:
            return None
        return {name: 100.0 * weight / total for name, weight in weights.items()}

    @property
    def merge_rule(self) -> MergeRule:
        """What of the arithmetic shows in the coefficients: of one method all, of several what they share."""
        divided = self.weights_are_proportions
        proportions = divided or self.simplex
        method = self.methods[0]
        if len(self.methods) > 1:
            return MergeRule(proportions, used_by=self._used_by())
        if method.consensus is None or "normalize" in self.searched or proportions != divided:
            return MergeRule(proportions)
        rescale = method.parameter("rescale")
        return MergeRule(
            proportions,
            additive=proportions or self._given("normalize", method) is False,
            sparsifier=SPARSIFIERS[method.sparsifier],
            signs=method.consensus == "sign",
            rescaled=rescale is not None and self._given("rescale", method) != "none",
        )

    def _used_by(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The methods that use each searched parameter that not all of them use."""
        found = {}
        for parameter in dict.fromkeys(parameter_of(name) for name in self.searched if name != METHOD):
            users = tuple(method.name for method in self.methods if method.parameter(parameter) is not None)
            if len(users) < len(self.methods):
                found[parameter] = users
        return tuple(found.items())

    def _given(self, name: str, method: MergeMethod) -> ParameterValue | None:
        parameter = method.parameter(name)
        return None if parameter is None else self.fixed.get(name, parameter.default)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna distributions of the searched coefficients, by the names that Optuna shows."""
        return {name: searched.distribution() for name, searched in self.searched.items()}

    def recipe(self, params: Mapping[str, ParameterValue]) -> Recipe:
        """The recipe at Optuna parameters ``params`` (every searched name must be there).

        Coefficients that the chosen method does not use are left out, so that candidates which
        differ only in those are one and the same recipe.
        """
        missing = [name for name in self.searched if name not in params]
        if missing:
            raise UserError(f"params: {missing[0]!r} is missing (the space has {', '.join(self.searched)})")
        unknown = [name for name in params if name not in self.searched]
        if unknown:
            raise UserError(f"params: the space has no {unknown[0]!r} {did_you_mean(unknown[0], self.searched)}")
        method = METHODS[str(params[METHOD])] if METHOD in self.searched else self.methods[0]
        settled = self.settled(params)
        coefficients = {**self.fixed, **{name: settled[name] for name in self.searched if name != METHOD}}
        used = {name: value for name, value in coefficients.items() if method.parameter(parameter_of(name))}
        return self.make(method.name, used)

    def settled(self, params: Mapping[str, ParameterValue]) -> dict[str, ParameterValue]:
        """``params`` with weights on the simplex, where the space has one: what is stored and shown of a proposal."""
        settled = dict(params)
        for names in self._proportions:
            weights = [float(params[name]) for name in names]
            total = sum(weights)
            if abs(total - 1.0) < _ON_SIMPLEX:
                continue  # what was divided before stays as it is, to the last digit
            shares = [weight / total for weight in weights] if total > 0.0 else [1.0 / len(weights)] * len(weights)
            settled |= {name: float(f"{share:.10g}") for name, share in zip(names, shares, strict=True)}
        return settled

    def make(self, method: str, params: Mapping[str, ParameterValue], grouping: Grouping | None = None) -> Recipe:
        """Any recipe over this space's models, inside the space or not."""
        stochastic = METHODS[method].stochastic
        return Recipe(
            method,
            self.models,
            params,
            self.base_model if METHODS[method].needs_base else None,
            self.grouping if grouping is None else grouping,
            self.seed if stochastic else 0,
        )

    def params(self, recipe: Recipe) -> dict[str, ParameterValue] | None:
        """The inverse of ``recipe``: Optuna parameters, or None when the recipe is not in the space."""
        if recipe.method not in {method.name for method in self.methods} or dict(recipe.models) != self.models:
            return None
        params: dict[str, ParameterValue] = {}
        for name, searched in self.searched.items():
            value = recipe.method if name == METHOD else recipe.params.get(name)
            if value is None:
                value = searched.choices[-1] if searched.choices else searched.nearest(searched.high)
            elif not searched.holds(value):
                return None
            params[name] = value
        return params if self.recipe(params) == recipe else None

    def to_json(self) -> dict[str, Any]:
        """A JSON object that declares the same space."""
        return {
            "models": self.models,
            "method": [method.name for method in self.methods],
            "base_model": self.base_model,
            "parameters": {name: rule_to_json(rule) for name, rule in self.given.items()},
            "ranges": self._ranges(),
            "granularity": self.granularity,
            "split": list(self.grouping.split),
            "layers": {stack.name: stack.layers for stack in self.grouping.stacks} or self.grouping.layers,
            "seed": self.seed,
            **({"simplex": True} if self.simplex else {}),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> MergeSpace:
        """Read what ``to_json`` wrote; "ranges" decide where a method's own ranges are others by now, and where a rule
        that changed nothing was once accepted."""
        rest = dict(content)
        models, ranges = rest.pop("models"), rest.pop("ranges", None)
        try:
            made = cls(models, **rest)
        except StudyFileError:
            if ranges is None:
                raise
            made = cls(models, **{**rest, "parameters": ranges})
        return made if ranges in (None, made._ranges()) else cls(models, **{**rest, "parameters": ranges})

    def _ranges(self) -> dict[str, Any]:
        """Every coefficient of the space, searched or fixed, as a study file writes it."""
        known = {**self.searched, **self.fixed}
        return {name: rule_to_json(rule) for name, rule in known.items() if name != METHOD}


def _rules_of(name: CoefficientName) -> Iterator[str]:
    """The names of the rules that a coefficient follows, the most specific first."""
    for owner in dict.fromkeys((name.expert, None)):
        for kind in dict.fromkeys((name.module, None)):
            for block in dict.fromkeys((name.position, None)):
                yield str(CoefficientName(name.parameter, owner, kind, block))


def _methods(given: str | Sequence[str], problems: list[str]) -> list[MergeMethod]:
    methods = []
    for name in [given] if isinstance(given, str) else given:
        try:
            methods.append(METHODS[name])
        except UserError as error:
            problems.append(f"method: {error}")
    if not methods and not problems:
        problems.append("method: name at least one merge method")
    names = [method.name for method in methods]
    if len(set(names)) != len(names):
        problems.append(f"method: {names} names one method twice")
    return methods
