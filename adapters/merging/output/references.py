"""References to models as a mergekit configuration writes them: a path, or ``model+lora``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mergefront.adapters.hub.places import ModelPlaces, Preview
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.recipe import Recipe

_NO_MODELS = ("base", "union")
"""What a tokenizer's source may be beside a model."""


class ModelReference(NamedTuple):
    """A whole model, and the LoRA on it where there is one."""

    model: str
    lora: str | None = None

    def __str__(self) -> str:
        return self.model if self.lora is None else f"{self.model}+{self.lora}"


def read_reference(text: str, folders: Sequence[Path]) -> ModelReference:
    """A reference taken apart, every part of it absolute where it exists in one of ``folders``.

    A ``+`` in the path of something that exists belongs to the path.
    """
    whole = _found(text, folders)
    if whole is not None:
        return ModelReference(whole)
    pairs = [(text[:at], text[at + 1 :]) for at, letter in enumerate(text) if letter == "+"]
    for pair in pairs:
        model, lora = (_found(part, folders) for part in pair)
        if model is not None and lora is not None:
            return ModelReference(model, lora)
    if not pairs:
        return ModelReference(text)
    model, lora = (_found(part, folders) or part for part in pairs[0])
    return ModelReference(model, lora)


def given_references(recipe: Recipe, base_model: str | None) -> dict[str, str]:
    """The models as they are written, by the experts' names, the base's by ``""`` and first."""
    return {**({} if base_model is None else {"": base_model}), **recipe.models}


def model_paths(recipe: Recipe, base_model: str | None, places: ModelPlaces) -> dict[str, str]:
    """Folders by the experts' names, the base's by ``""``; absolute where they exist, what is no path here stays."""
    return {
        name: str(places.folder(reference) if places.commit(reference) else read_reference(reference, (places.root,)))
        for name, reference in given_references(recipe, base_model).items()
    }


def mergekit_references(recipe: Recipe, base_model: str | None, places: ModelPlaces) -> dict[str, str]:
    """References as they hold anywhere: ``model_paths``, names on the Hub with their commits, and a LoRA as mergekit's
    ``base+lora``.

    Raises ``UserError`` for a LoRA without a base model.
    """
    given, made = given_references(recipe, base_model), dict[str, str]()
    for name, path in model_paths(recipe, base_model, Preview(places.root, places.commits)).items():
        pinned = places.pinned(given[name])
        made[name] = pinned or (str(places.folder(given[name])) if places.commit(given[name]) else path)
        if name and os.path.exists(os.path.join(path, "adapter_config.json")):
            if base_model is None:
                raise UserError(f"expert {name!r} is a LoRA, and the study names no base model to put it on")
            made[name] = f"{made['']}+{made[name]}"
    return made


def map_references(config: Any, change: Callable[[str], str]) -> Any:
    """A mergekit configuration with every model reference changed; a tokenizer's "base" and "union" are none."""
    if isinstance(config, Mapping):
        made: dict[Any, Any] = {}
        for key, value in config.items():
            if key in ("tokenizer_source", "source") and isinstance(value, str):
                made[key] = value if value in _NO_MODELS else change(value)
            elif key == "tokenizer_source" and isinstance(value, Mapping) and value.get("model") in _NO_MODELS:
                made[key] = {**map_references(value, change), "model": value["model"]}
            elif key in ("model", "base_model") and isinstance(value, str):
                made[key] = change(value)
            elif key == "carry" and isinstance(value, Mapping):
                made[key] = {tower: change(str(owner)) for tower, owner in value.items()}
            elif key == "recipe" and isinstance(value, Mapping) and isinstance(value.get("models"), Mapping):
                models = {name: change(str(reference)) for name, reference in value["models"].items()}
                made[key] = {**value, "models": models}
            else:
                made[key] = map_references(value, change)
        return made
    if isinstance(config, list):
        return [map_references(entry, change) for entry in config]
    return config


def tokenizer_keys(chosen: str | Mapping[str, Any], references: Mapping[str, str]) -> dict[str, Any]:
    """A study's ``tokenizer_source``, whose models are named by ``references``, as mergekit writes it; transplants are
    mergefront's own."""
    if isinstance(chosen, str):
        return {"tokenizer_source": references.get(chosen, chosen)}
    rest = {key: value for key, value in chosen.items() if key != "model"}
    if "tokens" in rest:
        rest["tokens"] = {token: _token_rule(rule, references) for token, rule in rest["tokens"].items()}
    model = references.get(chosen["model"], chosen["model"])
    if "transplant" in chosen:
        return {"tokenizer_source": {"model": model, **rest}}
    return {"tokenizer": {"source": model, **rest}}


def _token_rule(rule: Mapping[str, Any], references: Mapping[str, str]) -> dict[str, Any]:
    """A rule of one token with its model's reference: here mergekit takes "base" for a model of that name."""

    def reference(model: str) -> str:
        return references.get("" if model == "base" and "base" not in references else model, model)

    source = rule["source"]
    if isinstance(source, str):
        return {**rule, "source": reference(source)}
    return {**rule, "source": {**source, "model": reference(source["model"])} if "model" in source else source}


def _found(path: str, folders: Sequence[Path]) -> str | None:
    # os.path answers False where Path raises: for a path that is too long or has an unknown user in it.
    candidates = (folder / os.path.expanduser(path) for folder in folders)
    found = next((candidate for candidate in candidates if path and os.path.exists(candidate)), None)
    return None if found is None else str(found.resolve())
