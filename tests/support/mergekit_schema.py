"""What mergekit 0.1.5 documents of its configurations, to hold against what mergefront writes for it.

From its README and docs (merge_methods.md, tokenizer options): the keys, where they may stand, and each method's
parameters. mergekit itself is not installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TASK_VECTORS = {"weight", "lambda", "normalize", "int8_mask"}
PARAMETERS: Mapping[str, set[str]] = {
    "linear": {"weight", "normalize"},
    "slerp": {"t"},
    "nuslerp": {"weight", "nuslerp_row_wise", "nuslerp_flatten"},
    "multislerp": {"weight", "normalize_weights", "eps"},
    "karcher": {"max_iter", "tol"},
    "task_arithmetic": _TASK_VECTORS,
    "ties": {*_TASK_VECTORS, "density", "rescale"},
    "dare_linear": {*_TASK_VECTORS, "density", "rescale"},
    "dare_ties": {*_TASK_VECTORS, "density", "rescale"},
    "della_linear": {*_TASK_VECTORS, "density", "epsilon", "rescale"},
    "della": {*_TASK_VECTORS, "density", "epsilon", "rescale"},
    "breadcrumbs": {*_TASK_VECTORS, "density", "gamma", "rescale"},
    "breadcrumbs_ties": {*_TASK_VECTORS, "density", "gamma", "rescale"},
    "sce": {"select_topk", "int8_mask"},
    "model_stock": {"filter_wise"},
    "nearswap": {"t"},
    "passthrough": {"scale"},
}
_KEYS = {
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template", "name",
}  # fmt: skip
_DTYPES = {"float32", "float16", "bfloat16"}


def faults(config: Mapping[str, Any]) -> list[str]:
    """Why mergekit would not take a configuration as it is meant; empty where it would."""
    return list(_faults(config))


def _faults(config: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"key {key}" for key in config.keys() - _KEYS)
    method = str(config.get("merge_method"))
    if method not in PARAMETERS:
        yield f"method {method}"
        return
    if ("models" in config) == ("slices" in config):
        yield "models or slices"
    yield from (f"{key} {config[key]}" for key in ("dtype", "out_dtype") if config.get(key, "float32") not in _DTYPES)
    if "base_model" in config:
        yield from _reference(config["base_model"])
    yield from _parameters(method, config.get("parameters", {}))
    for entry in config.get("models", ()):
        yield from _source(method, entry, {"model", "parameters"})
    for made in config.get("slices", ()):
        yield from (f"key {key} of a slice" for key in made.keys() - {"sources", "parameters", "base_model"})
        yield from _parameters(method, made.get("parameters", {}))
        for source in made["sources"]:
            yield from _source(method, source, {"model", "parameters", "layer_range"})
            first, end = source["layer_range"]
            if not 0 <= first < end:
                yield f"layer_range {source['layer_range']}"


def _source(method: str, entry: Mapping[str, Any], keys: set[str]) -> Iterator[str]:
    yield from (f"key {key} of a model" for key in entry.keys() - keys)
    yield from _reference(entry["model"])
    yield from _parameters(method, entry.get("parameters", {}))


def _reference(text: str) -> Iterator[str]:
    """``MODEL`` or ``MODEL+LORA``, each perhaps with an ``@`` and a revision."""
    parts = text.split("+")
    if len(parts) > 2 or not all(part and part.count("@") <= 1 for part in parts):
        yield f"reference {text}"


def _parameters(method: str, given: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"parameter {name} of {method}" for name in given.keys() - PARAMETERS[method])
    for name, value in given.items():
        rules = value if isinstance(value, list) else [value]
        for rule in rules:
            inner = rule.get("value") if isinstance(rule, Mapping) else rule
            for number in inner if isinstance(inner, list) else [inner]:
                if not isinstance(number, (int, float)):
                    yield f"{name} {value!r}"
