"""A live encoder-decoder model (T5, BART, Marian ...) that answers requests in batches.

The encoder reads the prompt, the decoder writes or scores the answer as a text of its own: as transformers' loss has
it, with the end token, and without the white space that stands between prompt and answer in a running text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from mergefront.adapters.language_model import (
    Chat,
    Generation,
    GenerationRequest,
    LogLikelihood,
    ScoringRequest,
    Tokens,
)
from mergefront.adapters.local.limits import MAX_LOGITS, end_tokens, halving, longest_input
from mergefront.adapters.local.linear_layers import fast_linear_layers
from mergefront.adapters.local.writing.generation_state import GenerationState
from mergefront.adapters.local.writing.unpadded_generation import write
from mergefront.adapters.tokenization import Tokenization
from mergefront.optimizer.errors import EvaluationError, UserError


class EncoderDecoderModel:
    """``LanguageModel`` over a transformers encoder-decoder model and its tokenizer (or a processor that holds it).

    ``max_rows`` and ``max_tokens`` (padding included) bound a batch; one that does not fit into memory is halved, and
    ``max_tokens`` with it.
    ``max_length`` is the longest prompt in tokens (default: the model's own); longer ones lose their beginning.
    Generation is greedy and follows the rest of the checkpoint's generation settings, since start and forced tokens
    are part of how such a model writes.
    """

    heeds_wanted = True
    max_rows = 64
    max_tokens = 16384

    def __init__(self, model: Any, processor: Any, *, max_length: int | None = None) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = tokenizer = getattr(processor, "tokenizer", processor)
        self.max_length = max_length or longest_input(model, tokenizer)
        self._tokenization = Tokenization(tokenizer)
        self._ends = end_tokens(model, tokenizer)
        _give_start_token(model)
        model.eval()

    @torch.inference_mode()
    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        """Exact log-likelihoods of the continuations; an encoded prompt serves all of its continuations in a batch."""
        pairs = [(_text(request.context), request.continuation.lstrip()) for request in requests]
        different = list(dict.fromkeys(pairs))
        prompts = self._prompts([prompt for prompt, _ in different])
        longer = {pair for pair, prompt in zip(different, prompts, strict=True) if len(prompt) > self.max_length}
        prompts = [prompt[-self.max_length :] for prompt in prompts]
        labels = [tuple(ids) for ids in self.tokenizer(text_target=[text for _, text in different])["input_ids"]]
        longest = max(map(len, labels), default=1)
        rows = sorted(zip(prompts, labels, different, strict=True), key=lambda row: (len(row[0]), row[0]), reverse=True)
        vocabulary = int(self.model.config.get_text_config(decoder=True).vocab_size)
        most_rows = max(1, min(self.max_rows, MAX_LOGITS // (vocabulary * longest)))
        answers: dict[tuple[str, str], LogLikelihood] = {}

        def run(part: list[tuple[Tokens, Tokens, tuple[str, str]]]) -> None:
            scored = self._score([(prompt, targets) for prompt, targets, _ in part])
            answers.update(zip((pair for _, _, pair in part), scored, strict=True))

        lengths = [len(prompt) + longest for prompt, _, _ in rows]
        for start, end in self._batches(lengths, most_rows):
            self.max_tokens = halving(rows[start:end], lengths[start], self.max_tokens, run)
        return [replace(answers[pair], shortened=pair in longer) for pair in pairs]

    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Answers; a batch ends as soon as every sequence in it has."""
        different = list(dict.fromkeys(requests))
        prompts = self._prompts([_text(request.prompt) for request in different])
        longer = {request for request, prompt in zip(different, prompts, strict=True) if len(prompt) > self.max_length}
        rows = [(prompt[-self.max_length :], request) for prompt, request in zip(prompts, different, strict=True)]
        rows.sort(key=lambda row: len(row[0]), reverse=True)
        answers: dict[GenerationRequest, Generation] = {}

        def run(part: list[tuple[Tokens, GenerationRequest]]) -> None:
            states = [GenerationState(request, self.tokenizer, self._tokenization, self._ends) for _, request in part]
            tokens, mask = self._padded([prompt for prompt, _ in part])
            with fast_linear_layers(self.model):
                write(self.model, {"input_ids": tokens, "attention_mask": mask}, states, {})
            answers.update((state.request, state.generation()) for state in states)

        lengths = [len(prompt) + request.most_tokens for prompt, request in rows]
        for start, end in self._batches(lengths, self.max_rows):
            self.max_tokens = halving(rows[start:end], lengths[start], self.max_tokens, run)
        return [replace(answers[request], shortened=request in longer) for request in requests]

    def _prompts(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of prompts with the tokenizer's own framing; an empty prompt has that alone, or an end token."""
        read = self.tokenizer(list(texts))["input_ids"]
        return [tuple(tokens) or (self.tokenizer.eos_token_id or 0,) for tokens in read]

    def _batches(self, lengths: Sequence[int], most_rows: int) -> Iterator[tuple[int, int]]:
        """Slices of rows, longest first."""
        start = 0
        while start < len(lengths):
            end = start + max(1, min(most_rows, self.max_tokens // max(1, lengths[start])))
            yield start, min(end, len(lengths))
            start = end

    def _padded(self, rows: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of prompts, padded on the right, and their mask (both ``rows x length``)."""
        longest = max(map(len, rows))
        filler = (self.tokenizer.pad_token_id or 0,)
        tokens = torch.tensor([row + filler * (longest - len(row)) for row in rows], device=self.model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.model.device)
        return tokens, mask

    def _score(self, rows: Sequence[tuple[Tokens, Tokens]]) -> list[LogLikelihood]:
        """Log-likelihood of the labels after each prompt."""
        prompts = list(dict.fromkeys(prompt for prompt, _ in rows))
        owners = torch.tensor([prompts.index(prompt) for prompt, _ in rows], device=self.model.device)
        longest = max(len(targets) for _, targets in rows)
        labels = torch.tensor(
            [targets + (_NO_LABEL,) * (longest - len(targets)) for _, targets in rows], device=self.model.device
        )
        tokens, mask = self._padded(prompts)
        with fast_linear_layers(self.model):
            encoded = self.model.get_encoder()(input_ids=tokens, attention_mask=mask)
            encoded.last_hidden_state = encoded.last_hidden_state[owners]
            logits = self.model(encoder_outputs=encoded, attention_mask=mask[owners], labels=labels).logits.float()
        counts = labels != _NO_LABEL
        targets = labels.clamp(min=0)
        logprobs = logits.gather(2, targets[..., None])[..., 0] - logits.logsumexp(2)
        if not bool(torch.isfinite(logprobs[counts]).all()):
            raise EvaluationError("the merged model's log-probabilities are not finite", kind="not finite")
        sums = logprobs.double().where(counts, 0.0).sum(1).tolist()
        greedy = ((logits.argmax(2) == targets) | ~counts).all(1).tolist()
        return [
            LogLikelihood(logprob, len(row), is_greedy)
            for (_, row), logprob, is_greedy in zip(rows, sums, greedy, strict=True)
        ]


def _text(prompt: str | Chat) -> str:
    if isinstance(prompt, Chat):
        raise UserError("encoder-decoders read texts, no conversations; leave chat out")
    return prompt


def _give_start_token(model: Any) -> None:
    """A decoder's first token, where the configuration names none: its begin token, else (as T5's) that of padding."""
    config, settings = model.config, model.generation_config
    known = [getattr(config, "decoder_start_token_id", None), settings.decoder_start_token_id]
    usual = [getattr(config, "bos_token_id", None), getattr(config, "pad_token_id", None)]
    start = next((token for token in (*known, *usual) if token is not None), None)
    if start is None:
        raise UserError(f"{type(model).__name__}: config.json has no decoder_start_token_id; add it")
    for described, token in ((config, known[0]), (settings, known[1])):
        if token is None:
            described.decoder_start_token_id = start


_NO_LABEL = -100
"""What transformers' loss leaves out."""
