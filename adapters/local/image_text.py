"""A live model that reads images: items with one are put to it through its processor, each by itself.

A prompt that holds the processor's image token is taken as it is written. Any other becomes the message of a user, by
the processor's chat template; without a template the image stands before the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mergefront.adapters.language_model import Chat, Generation, GenerationRequest, LogLikelihood, ScoringRequest
from mergefront.adapters.local.limits import end_tokens, refuse_likelihoods
from mergefront.adapters.local.linear_layers import fast_linear_layers
from mergefront.adapters.local.model import HuggingFaceModel
from mergefront.adapters.local.writing.generation_state import GenerationState
from mergefront.adapters.local.writing.unpadded_generation import CAUSAL, write
from mergefront.adapters.tokenization import Tokenization
from mergefront.optimizer.errors import EvaluationError, UserError


class ImageTextModel:
    """``LanguageModel`` over a transformers model of images and text and its processor.

    Requests without an image are answered as any causal model answers them.
    """

    reads_images = heeds_wanted = True

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self._text = HuggingFaceModel(model, processor)
        self._tokenizer = self._text.tokenizer
        self._tokenization = Tokenization(self._tokenizer)
        self._ends = end_tokens(model, self._tokenizer)

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        texts = iter(self._text.loglikelihood([request for request in requests if not request.image]))
        return [self._score(request) if request.image else next(texts) for request in requests]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        texts = iter(self._text.generate([request for request in requests if not request.image]))
        return [self._write(request) if request.image else next(texts) for request in requests]

    @torch.inference_mode()
    def _score(self, request: ScoringRequest) -> LogLikelihood:
        """The continuation's tokens are those that the whole text has after what it shares with the prompt alone."""
        refuse_likelihoods(self.model.config, type(self.model).__name__)
        prompt, is_message = self._prompt(request.context)
        continuation = request.continuation.lstrip() if is_message else request.continuation
        alone = self._inputs(prompt if is_message else prompt.rstrip(), request.image)["input_ids"][0]
        whole = self._inputs(prompt + continuation, request.image)
        tokens = whole["input_ids"][0]
        shared = min(len(alone), len(tokens))
        differ = (alone[:shared] != tokens[:shared]).nonzero()
        start = int(differ[0]) if len(differ) else shared
        with fast_linear_layers(self.model):
            logits = self.model(**whole).logits[0, start - 1 : -1].float()
        targets = tokens[start:]
        logprobs = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)
        if not bool(torch.isfinite(logprobs).all()):
            raise EvaluationError("the merged model's log-probabilities are not finite", kind="not finite")
        return LogLikelihood(float(logprobs.double().sum()), len(targets), bool((logits.argmax(1) == targets).all()))

    @torch.inference_mode()
    def _write(self, request: GenerationRequest) -> Generation:
        state = GenerationState(request, self._tokenizer, self._tokenization, self._ends)
        inputs = self._inputs(self._prompt(request.prompt)[0], request.image)
        with fast_linear_layers(self.model):
            write(self.model, inputs, [state], CAUSAL)
        return state.generation()

    def _prompt(self, text: str | Chat) -> tuple[str, bool]:
        """A prompt with a place for its image, and whether the chat template made it."""
        if isinstance(text, Chat):
            raise UserError("items with an image are written by the processor's own template; leave chat out")
        tokens = [getattr(self.processor, name, None) for name in ("boi_token", "image_token")]
        place = next((token for token in tokens if isinstance(token, str)), "<image>")
        if place in text:
            return text, False
        if getattr(self.processor, "chat_template", None) is None:
            return place + text, False
        content = [{"type": "image"}, *([{"type": "text", "text": text}] if text else [])]
        message = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)), True

    def _inputs(self, text: str, path: str) -> Any:
        """What the model takes, of one text and its image; a begin token that the text holds is not added again."""
        from PIL import Image

        begin = self._tokenizer.bos_token
        options = {"add_special_tokens": False} if begin and text.startswith(begin) else {}
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except OSError as error:
            raise EvaluationError(f"{path}: is no image that can be read ({error})", kind="image") from None
        inputs = self.processor(images=[image], text=[text], return_tensors="pt", **options)
        if inputs["input_ids"].shape[1] > self._text.max_length:
            raise EvaluationError(
                f"{path} and its prompt are {inputs['input_ids'].shape[1]} tokens long; the model reads "
                f"{self._text.max_length} at most",
                kind="too long",
            )
        return inputs.to(self.model.device, self.model.dtype)
