"""The class that a checkpoint is loaded as, and what tasks are handed of it, by what it can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergefront.adapters.language_model import (
    Generation,
    GenerationRequest,
    LanguageModel,
    LogLikelihood,
    ScoringRequest,
)
from mergefront.adapters.local.encoder_decoder import EncoderDecoderModel
from mergefront.adapters.local.image_text import ImageTextModel
from mergefront.adapters.local.model import HuggingFaceModel
from mergefront.adapters.local.reading.reader import TextReader
from mergefront.optimizer.errors import UserError


class SilentModel(TextReader):
    """A model that continues no text (a classifier, an embedder, a vision or speech model), and its processor."""

    def __init__(self, model: Any, processor: Any, folder: Path | None) -> None:
        super().__init__(model, processor, folder)
        self.processor = processor

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        raise self._refused()

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        raise self._refused()

    def _refused(self) -> UserError:
        return UserError(
            f"{type(self.model).__name__} continues no text; score it with a task of type classify, embed or python "
            "(docs/how-to/functions.md)"
        )


def continues_text(kind: str, architecture: str) -> bool:
    """Whether a checkpoint of a model type, saved as a class, can be asked to continue texts; by transformers' tables,
    nothing is loaded. A class that is in none of them is not known to be silent."""
    from transformers.models.auto import modeling_auto

    if modeling_auto.MODEL_MAPPING_NAMES.get(kind) == architecture:
        return any(kind in table for table in _text_tables())
    tables = [table for name, table in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")]
    return _is_in(architecture, _text_tables()) or not _is_in(architecture, tables)


def _is_in(architecture: str, tables: Sequence[Mapping[str, Any]]) -> bool:
    return any(
        architecture == named or (not isinstance(named, str) and architecture in named)
        for table in tables
        for named in table.values()
    )


def _text_tables() -> list[Mapping[str, Any]]:
    """Classes by model type: causal models, encoder-decoders, models of images and text."""
    from transformers.models.auto import modeling_auto

    return [
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ]


def body_class(config: Any) -> Any:
    """The class of a type of model without any head; raises ``UserError`` where transformers has none."""
    from transformers import MODEL_MAPPING

    if type(config) not in MODEL_MAPPING:
        raise UserError(f"transformers has no model of type {config.model_type} without a head")
    kind = MODEL_MAPPING[type(config)]
    return kind[0] if isinstance(kind, tuple) else kind


def model_class(config: Any, for_text: bool) -> Any:
    """The class to load a checkpoint as: the one that its configuration names.

    Where that is none of transformers' for this type of model, or has no head although texts are to be continued, it is
    the type's causal model, encoder-decoder or model of images and text. Raises ``UserError`` where there is none.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    name = (config.architectures or [""])[0]
    named = getattr(transformers, name, None)
    is_known = getattr(getattr(named, "config_class", None), "model_type", None) == config.model_type
    is_headless = modeling_auto.MODEL_MAPPING_NAMES.get(config.model_type) == name
    if is_known and not (for_text and is_headless and continues_text(config.model_type, name)):
        return named
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    causal, _, image_text = _text_tables()
    if config.model_type in image_text and config.model_type not in causal:
        return transformers.AutoModelForImageTextToText
    if config.model_type not in causal:
        raise UserError(
            f"transformers has no model of type {config.model_type} that continues text, and none called "
            f"{name or 'so (config.json names no architectures)'}"
        )
    return transformers.AutoModelForCausalLM


def asked_model(model: Any, processor: Any, folder: Path | None = None) -> LanguageModel:
    """A transformers model and its processor or tokenizer as tasks ask it; ``folder`` has the files that pool."""
    if not model.can_generate() or model.main_input_name != "input_ids":
        return SilentModel(model, processor, folder)
    if model.config.is_encoder_decoder:
        return EncoderDecoderModel(model, processor)
    return (ImageTextModel if hasattr(processor, "image_processor") else HuggingFaceModel)(model, processor)
