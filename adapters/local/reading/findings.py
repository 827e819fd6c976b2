"""What is known before a run of models that are asked for classes or vectors of texts, from their files alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergefront.adapters.local.reading.pipeline import Pipeline, read_pipeline
from mergefront.optimizer.errors import UserError

_HEAD_OF_CLASSES = "ForSequenceClassification"


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that a config.json names, in the order of their scores.

    Raises ``UserError`` for a model without a head of classes, and for one that does not choose one of several.
    """
    architecture = str((config.get("architectures") or ["no class"])[0])
    if not architecture.endswith(_HEAD_OF_CLASSES):
        raise UserError(
            f"type classify asks a model with a head of classes (...{_HEAD_OF_CLASSES}), and the base model is "
            f"{architecture}; give the experts' classifier, trained as little as you have it, as base_model"
        )
    named = config.get("id2label")
    if isinstance(named, Mapping) and all(str(key).isdigit() for key in named):
        labels = tuple(str(name) for _, name in sorted((int(key), name) for key, name in named.items()))
    else:
        labels = tuple(f"LABEL_{number}" for number in range(int(config.get("num_labels") or 2)))
    kind = config.get("problem_type")
    if len(labels) < 2 or kind in ("regression", "multi_label_classification"):
        said = kind or "a head of one number"
        raise UserError(f"type classify asks for one class of several, and the base model has {said}; use type: python")
    return labels


def pooling_findings(base: Path, config: Mapping[str, Any], experts: Mapping[str, Path]) -> tuple[Pipeline, list[str]]:
    """How a base's texts become vectors, and what is worth a warning: experts that were trained otherwise.

    Raises ``UserError`` for modules and models that are not known here.
    """
    if config.get("is_encoder_decoder"):
        raise UserError("type embed reads encoders and decoders, and the base model is both; use type: python")
    ours = read_pipeline(base)
    warnings = []
    for name, folder in experts.items():
        if not (folder / "modules.json").is_file():
            continue
        theirs = read_pipeline(folder)
        if (theirs.modes, len(theirs.steps), theirs.prompts) != (ours.modes, len(ours.steps), ours.prompts):
            remedy = "give the base the expert's modules.json and its folders if merges should be read so"
            warnings.append(
                f"expert {name} is read otherwise than the base (pooling {described(theirs)}, and {described(ours)}): "
                f"merges are read, and exported, as the base; {remedy}"
            )
    return ours, warnings


def described(pipeline: Pipeline) -> str:
    """A pipeline in words: ``lasttoken, normalised, prompts query``."""
    steps = ["normalised" if step == "normalise" else "a projection" for step in pipeline.steps]
    prompts = [f"prompts {' and '.join(pipeline.prompts)}"] if pipeline.prompts else []
    return ", ".join([" and ".join(pipeline.modes), *steps, *prompts])
