"""What tasks are handed of a live model, by what it can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from mergefront.optimizer.errors import UserError


@dataclass(frozen=True)
class SilentModel:
    """A model that continues no text (a classifier, an embedder, a vision or speech model), and its processor."""

    model: Any
    processor: Any

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        raise self._refused()

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        raise self._refused()

    def _refused(self) -> UserError:
        return UserError(
            f"{type(self.model).__name__} continues no text; score it with a task of type python (docs/evaluation.md)"
        )


def asked_model(model: Any, processor: Any) -> LanguageModel:
    """A transformers model and its processor or tokenizer as tasks ask it."""
    if not model.can_generate() or model.main_input_name != "input_ids":
        return SilentModel(model, processor)
    if model.config.is_encoder_decoder:
        return EncoderDecoderModel(model, processor)
    return (ImageTextModel if hasattr(processor, "image_processor") else HuggingFaceModel)(model, processor)
