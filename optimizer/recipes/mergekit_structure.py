"""The structure of a mergekit configuration: which of its parts are mappings, lists, words.

What the parts mean is checked by those who read them; they may rely on the structure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.methods import MethodParameter

IGNORED_PARAMETERS = ("int8_mask", "normalize")
"""Parameters that mergekit-evolve writes for every method, and that change nothing where a method has no such one."""
_SHOWN = 60


def plain_value(value: Any, parameter: MethodParameter) -> Any:
    """A parameter's value as mergekit reads it: switches may be written as numbers, rescale as a switch."""
    of_switch = parameter.name == "rescale" or isinstance((*parameter.choices, None)[0], bool)
    if of_switch and not isinstance(value, str) and value in (0, 1):
        return bool(value) if parameter.name != "rescale" else "l1" if value else "none"
    return value


def check_structure(content: Mapping[str, Any]) -> None:
    """Raises ``UserError`` with every part of a configuration that has the wrong shape."""
    problems = list(_problems(content))
    if problems:
        raise UserError("mergekit configuration:\n" + "\n".join(f"  - {line}" for line in problems))


def _problems(content: Mapping[str, Any]) -> Iterator[str]:
    yield from _reference("merge_method", content.get("merge_method"))
    yield from _reference("base_model", content.get("base_model"))
    if "merge_method" in content and content["merge_method"] is None:
        yield "merge_method is empty; it must be the name of a method"
    seed = content.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        yield f"seed is {_short(seed)}; it must be a whole number of at least 0"
    yield from _parameters("parameters", content.get("parameters"))
    yield from _entries("models", content.get("models"), _model)
    yield from _entries("slices", content.get("slices"), _slice)


def _entries(where: str, entries: Any, problems: Callable[[str, Any], Iterator[str]]) -> Iterator[str]:
    """Of a list, what is wrong with each of its entries; nothing where there is no list."""
    if entries is not None and not isinstance(entries, list):
        yield f"{where} is {_short(entries)}; it must be a list"
        return
    for number, entry in enumerate(entries or ()):
        yield from problems(f"slice {number}" if where == "slices" else where, entry)


def repeated_models(models: Iterable[str]) -> list[str]:
    """What is wrong with a list of models, a line for each that is in it twice."""
    return [
        f"the model {model} is listed twice; list it once, with the sum of the weights"
        for model, times in Counter(models).items()
        if times > 1
    ]


def _slice(where: str, made: Any) -> Iterator[str]:
    if not isinstance(made, Mapping):
        yield f"{where} is {_short(made)}; it must be a mapping"
        return
    yield from _entries(f"{where}: sources", made.get("sources"), _model)
    yield from _parameters(f"{where}: parameters", made.get("parameters"))
    yield from _reference(f"{where}: base_model", made.get("base_model"))


def _model(where: str, entry: Any) -> Iterator[str]:
    if not isinstance(entry, Mapping) or "model" not in entry:
        yield f"{where}: {_short(entry)} must be a mapping with the key 'model'"
        return
    model = entry["model"]
    if not _is_reference(model):
        yield f"{where}: the model {_short(model)} must be a name or path"
    yield from _parameters(f"{where}: {_short(model)}", entry.get("parameters"))
    layers = entry.get("layer_range")
    if layers is not None and not isinstance(layers, list):
        yield f"{where}: layer_range is {_short(layers)}; it must be [first, end)"


def _parameters(where: str, parameters: Any) -> Iterator[str]:
    if parameters is None:
        return
    if not isinstance(parameters, Mapping):
        yield f"{where}: {_short(parameters)} must be a mapping of parameters"
        return
    for name, value in parameters.items():
        if not isinstance(name, str):
            yield f"{where}: the parameter {_short(name)} must be a word"
        rules = value if isinstance(value, list) else [value]
        if isinstance(value, list) and not value:
            yield f"{where}: {name} is an empty list; it must be a number, a gradient or rules"
        with_rules = any(isinstance(rule, Mapping) for rule in rules)
        for rule in rules:
            if isinstance(rule, Mapping):
                inner = rule.get("value")
                if inner is None or isinstance(inner, Mapping) or not set(rule) <= {"filter", "value"}:
                    yield f"{where}: {name}: {_short(rule)} must be a rule, {{filter: ..., value: ...}}"
                elif isinstance(inner, list) and (not inner or any(isinstance(k, (list, Mapping)) for k in inner)):
                    yield f"{where}: {name}: {_short(inner)} must be a gradient, a list of numbers"
                elif not isinstance(rule.get("filter"), (str, type(None))):
                    yield f"{where}: {name}: the filter {_short(rule['filter'])} must be a word"
            elif with_rules or isinstance(rule, list) or rule is None:
                yield f"{where}: {name}: {_short(rule)} must be a number, or a rule {{filter: ..., value: ...}}"


def _reference(where: str, value: Any) -> Iterator[str]:
    if value is not None and not _is_reference(value):
        yield f"{where} is {_short(value)}; it must be a name or path"


def _is_reference(value: Any) -> bool:
    """Whether it can be a name or path: no system has longer ones, nor any with a NUL."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    return all(len(part.encode("utf-8", "replace")) <= 255 for part in value.split("/")) and len(value) <= 4000


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
