"""mergekit's YAML, in both directions, for what a recipe can say.

A recipe without blocks becomes ``models`` with one value per parameter; module kinds become
filters; gradient knots become lists; blocks become ``slices``, one per block, because a slice is
mergekit's own way to say "these layers, these numbers".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from mergefront.optimizer.errors import UserError, did_you_mean, unsupported_keys
from mergefront.optimizer.recipes.grouping import CoefficientName, Grouping, knots_of
from mergefront.optimizer.recipes.mergekit.structure import (
    IGNORED_PARAMETERS,
    check_structure,
    plain_value,
    repeated_models,
)
from mergefront.optimizer.recipes.methods import METHODS, MergeMethod

OF_MERGEKIT = frozenset(
    {
        "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp", "della_linear", "della",
        "breadcrumbs", "breadcrumbs_ties", "nuslerp", "multislerp", "karcher", "model_stock", "sce", "ram",
        "ramplus_tl", "nearswap", "passthrough",
    }
)  # fmt: skip
"""The methods that mergekit 0.1.5 has."""
_KNOWN_KEYS = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype", "tokenizer_source", "name",
    "chat_template", "recipe", "compat", "tokenizer", "scope", "carry",
)  # fmt: skip
_RESCALE_SWITCH = {"l1": True, "none": False}
_PER_ENTRY_KEYS = ("model", "parameters", "layer_range")


class Mergeable(Protocol):
    """What a configuration needs to know of a recipe (``mergefront.optimizer.recipes.recipe.Recipe``)."""

    @property
    def method(self) -> str: ...
    @property
    def base_model(self) -> str | None: ...
    @property
    def models(self) -> Mapping[str, str]: ...
    @property
    def params(self) -> Mapping[str, Any]: ...
    @property
    def grouping(self) -> Grouping: ...


def dump(recipe: Mergeable, references: Mapping[str, str]) -> dict[str, Any]:
    """A mergekit configuration that says what ``recipe`` says."""
    method = METHODS[recipe.method]
    where = {name: references.get(name, reference) for name, reference in recipe.models.items()}
    keeps_base = method.needs_base or (method.optional_base and recipe.base_model is not None)
    base = references.get("", recipe.base_model) if keeps_base else None
    if base is None and method.max_models == 2 and not method.optional_base:
        base = next(iter(where.values()))
    config: dict[str, Any] = {"merge_method": recipe.method}
    if base is not None:
        config["base_model"] = base
    if recipe.grouping.starts:
        config["slices"] = [
            _slice(recipe, method, where, base if keeps_base else None, block)
            for block in range(len(recipe.grouping.starts))
        ]
    else:
        config["models"] = [_entry(where[name], _parameters(recipe, method, name, None)) for name in recipe.models]
    common = _parameters(recipe, method, None, None)
    if common:
        config["parameters"] = common
    return config


def _slice(
    recipe: Mergeable, method: MergeMethod, where: Mapping[str, str], base: str | None, block: int
) -> dict[str, Any]:
    starts = recipe.grouping.starts
    end = starts[block + 1] if block + 1 < len(starts) else recipe.grouping.layers
    sources = []
    for name in recipe.models:
        entry = _entry(where[name], _parameters(recipe, method, name, block))
        sources.append({**entry, "layer_range": [starts[block], end]})
    if base is not None and base not in where.values():
        # mergekit wants the base among a slice's sources; with ``models`` it adds it by itself.
        sources.append({"model": base, "layer_range": [starts[block], end]})
    made: dict[str, Any] = {"sources": sources}
    common = _parameters(recipe, method, None, block)
    if common:
        made["parameters"] = common
    return made


def _entry(reference: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"model": reference, "parameters": parameters} if parameters else {"model": reference}


def _parameters(recipe: Mergeable, method: MergeMethod, expert: str | None, block: int | None) -> dict[str, Any]:
    made = {}
    for parameter in method.parameters:
        rules = []
        for kind in (*recipe.grouping.split, None):
            value: Any = knots_of(recipe.params, parameter.name, expert, kind) or None
            if block is not None:
                value = recipe.params.get(str(CoefficientName(parameter.name, expert, kind, ("block", block))), value)
            if value is None and (block is None or expert is not None):
                value = recipe.params.get(str(CoefficientName(parameter.name, expert, kind)))
            if parameter.name == "rescale" and value in _RESCALE_SWITCH:
                value = _RESCALE_SWITCH[str(value)]
            if value is not None:
                rules.append((kind, value))
        if len(rules) == 1 and rules[0][0] is None:
            made[parameter.name] = rules[0][1]
        elif rules:
            made[parameter.name] = [
                {"filter": kind, "value": value} if kind is not None else {"value": value} for kind, value in rules
            ]
    return made


def load(config: str | Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of a ``Recipe`` that says what a mergekit configuration says."""
    content = parse(config)
    if "merge_method" not in content:
        raise UserError("mergekit configuration: the key 'merge_method' is missing")
    method = METHODS[content["merge_method"]]
    reader = _Reader(method, names)
    base = content.get("base_model")
    if content.get("slices"):
        bases = {made.get("base_model", base) for made in content["slices"]}
        if len(bases) > 1:
            raise UserError("mergekit configuration: a recipe has one base_model for all its slices")
        base = next(iter(bases), base)
        reader.read_slices(content["slices"], base)
    elif content.get("models"):
        _refuse_repeated(content["models"])
        for entry in content["models"]:
            reader.read_entry(entry, base, None)
    else:
        raise UserError("mergekit configuration: neither 'models' nor 'slices' is given")
    reader.read_parameters(content.get("parameters") or {}, None, None)
    models = reader.models
    if not method.needs_base and not method.optional_base and method.max_models == 2 and base is not None:
        models = dict(sorted(models.items(), key=lambda item: item[1] != base))
    return {
        "method": method.name,
        "models": models,
        "params": reader.params,
        "base_model": base if method.needs_base or method.optional_base else None,
        "grouping": Grouping(reader.layers, tuple(reader.starts), tuple(reader.split)),
    }


def parse(config: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """YAML text or a mapping as a checked mapping; raises ``UserError`` for unknown keys."""
    if isinstance(config, str):
        from mergefront.optimizer.yaml_file import load_yaml

        config = load_yaml(config, "mergekit configuration")
    if not isinstance(config, Mapping):
        raise UserError("mergekit configuration: it must be a mapping with 'merge_method' and 'models'")
    if lines := unsupported_keys(config, _KNOWN_KEYS):
        raise UserError(f"mergekit configuration: {lines[0]}")
    check_structure(config)
    return config


def _refuse_repeated(entries: Any) -> None:
    repeated = repeated_models(str(entry["model"]) for entry in entries)
    if repeated:
        raise UserError(f"mergekit configuration: {repeated[0]}")


class _Reader:
    """Collects experts and flat coefficients while walking a configuration."""

    def __init__(self, method: MergeMethod, names: Mapping[str, str]) -> None:
        self.method = method
        self.names = names
        self.models: dict[str, str] = {}
        self.params: dict[str, Any] = {}
        self.split: list[str] = []
        self.starts: list[int] = []
        self.layers = 0

    def read_entry(self, entry: Any, base: str | None, block: int | None) -> None:
        for key in entry:
            if key not in _PER_ENTRY_KEYS:
                raise UserError(
                    f"mergekit configuration: the key {key!r} of a model is not supported "
                    f"{did_you_mean(str(key), _PER_ENTRY_KEYS)}"
                )
        reference = str(entry["model"])
        parameters = entry.get("parameters") or {}
        if reference == base and (self.method.needs_base or self.method.optional_base) and not parameters:
            return
        self.read_parameters(parameters, self._name(reference), block)

    def _name(self, reference: str) -> str:
        for name, known in self.models.items():
            if known == reference:
                return name
        name = self.names.get(reference) or reference.rstrip("/").rsplit("/", 1)[-1]
        if name in self.models:
            raise UserError(f"mergekit configuration: two models are called {name!r}; give them different folder names")
        self.models[name] = reference
        return name

    def read_slices(self, slices: Any, base: str | None) -> None:
        for block, made in enumerate(slices):
            ranges = {tuple(source.get("layer_range") or ()) for source in made.get("sources") or ()}
            if len(ranges) != 1 or len(next(iter(ranges))) != 2:
                raise UserError(
                    f"mergekit configuration: slice {block}: a recipe needs one layer_range for all its sources"
                )
            start, end = next(iter(ranges))
            if start != self.layers:
                raise UserError(
                    f"mergekit configuration: slice {block} starts at layer {start}, not at {self.layers}; "
                    "a recipe cannot drop, repeat or reorder layers ('mergefront merge' can)"
                )
            self.starts.append(int(start))
            self.layers = int(end)
            _refuse_repeated(made["sources"])
            for source in made["sources"]:
                self.read_entry(source, base, block)
            self.read_parameters(made.get("parameters") or {}, None, block)

    def read_parameters(self, parameters: Mapping[str, Any], expert: str | None, block: int | None) -> None:
        for parameter, value in parameters.items():
            declared = self.method.parameter(parameter)
            if declared is None and parameter in IGNORED_PARAMETERS:
                continue
            if declared is None:
                known = [known.name for known in self.method.parameters]
                raise UserError(
                    f"mergekit configuration: {self.method.name} has no parameter {parameter!r} "
                    f"{did_you_mean(str(parameter), known)}"
                )
            if isinstance(value, Mapping):
                value = [value]
            is_rules = isinstance(value, list) and value and isinstance(value[0], Mapping)
            for rule in value if is_rules else [{"value": value}]:
                kind = rule.get("filter")
                if kind == "*":
                    kind = None
                if kind is not None and kind not in self.split:
                    self.split.append(kind)
                self._set(parameter, expert, kind, block, plain_value(rule["value"], declared))

    def _set(self, parameter: str, expert: str | None, kind: str | None, block: int | None, value: Any) -> None:
        if isinstance(value, list):
            if block is not None:
                raise UserError(f"mergekit configuration: {parameter}: a gradient inside a slice is not a recipe")
            for index, knot in enumerate(value):
                self.params[str(CoefficientName(parameter, expert, kind, ("knot", index)))] = knot
            return
        position = None if block is None else ("block", block)
        self.params.setdefault(str(CoefficientName(parameter, expert, kind, position)), value)
