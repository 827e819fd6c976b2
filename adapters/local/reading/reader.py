"""Texts through a live transformers model: scores of classes, vectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mergefront.adapters.checkpoints.header import Checkpoint
from mergefront.adapters.local.limits import halving, longest_input
from mergefront.adapters.local.linear_layers import fast_linear_layers
from mergefront.adapters.local.reading.pipeline import Dense, Mode, Pipeline, read_pipeline
from mergefront.optimizer.arrays import Array
from mergefront.optimizer.errors import EvaluationError

MOST_TOKENS = 16384
"""Of a batch, padding included; less once one has not fitted into memory."""


class TextReader:
    """Asks a model without generating: ``model`` and ``tokenizer`` are transformers', ``folder`` has what pools.

    Batches are padded on the right, where neither encoders nor decoders see it.
    """

    def __init__(self, model: Any, tokenizer: Any, folder: Path | None) -> None:
        self.model = model
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self._folder = folder
        self.max_tokens = MOST_TOKENS

    @cached_property
    def pipeline(self) -> Pipeline:
        return Pipeline() if self._folder is None else read_pipeline(self._folder)

    @property
    def similarity(self) -> str:
        """How vectors are compared."""
        return self.pipeline.similarity

    @property
    def longest(self) -> int:
        """Tokens that the model reads; positions of RoBERTa and its kin begin behind the padding's."""
        embeddings = getattr(self.model.base_model, "embeddings", None)
        skipped = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        most = longest_input(self.model, self.tokenizer) - (0 if skipped is None else skipped + 1)
        return min(most, int(self.tokenizer.model_max_length))

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their scores."""
        return tuple(name for _, name in sorted((int(key), name) for key, name in self.model.config.id2label.items()))

    @torch.inference_mode()
    def classify(self, texts: Sequence[tuple[str, str]]) -> list[tuple[float, ...]]:
        """The score (logit) of every class for each text, or pair of texts (the second is empty: no pair)."""
        pairs = [pair if pair[1] else (pair[0],) for pair in texts]
        encoded = [self._encode(*pair, length=self.longest) for pair in pairs]
        # A decoder finds the last token by the padding one, so that without one each text is read by itself.
        alone = self.model.config.get_text_config().pad_token_id is None
        found: list[tuple[float, ...]] = [()] * len(texts)

        def run(rows: list[int]) -> None:
            inputs, _ = self._padded([encoded[row] for row in rows])
            logits = self.model(**inputs).logits.float()
            _check_finite(logits)
            for row, scores in zip(rows, logits.tolist(), strict=True):
                found[row] = tuple(scores)

        self._in_batches(encoded, run, alone)
        return found

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], role: str) -> Array:
        """The vectors of texts (``n x d``), as sentence-transformers' files say.

        ``role`` is "query", "document" or "", which decides the prompt before each text.
        """
        pipeline = self.pipeline
        prompt = pipeline.prompt(role)
        length = min(pipeline.max_length or self.longest, self.longest)
        said = [prompt + text for text in texts]
        encoded = [self._encode((one.lower() if pipeline.lower_case else one).strip(), length=length) for one in said]
        skipped = self._tokens_of_prompt(prompt) if prompt and not pipeline.counts_prompt else 0
        vectors: list[torch.Tensor] = [torch.empty(0)] * len(texts)

        def run(rows: list[int]) -> None:
            inputs, mask = self._padded([encoded[row] for row in rows])
            hidden = self.model.base_model(**inputs).last_hidden_state.float()
            if skipped:
                mask = mask.clone()
                mask[:, :skipped] = 0
            made = torch.cat([_pooled(hidden, mask, mode) for mode in pipeline.modes], 1)
            for step in pipeline.steps:
                made = torch.nn.functional.normalize(made) if step == "normalise" else self._projected(made, step)
            _check_finite(made)
            for row, vector in zip(rows, made.cpu(), strict=True):
                vectors[row] = vector

        self._in_batches(encoded, run, alone=False)
        return np.asarray(torch.stack(vectors).double().numpy())

    def _encode(self, *texts: str, length: int) -> dict[str, list[int]]:
        return dict(self.tokenizer(*texts, truncation=True, max_length=length))

    def _tokens_of_prompt(self, prompt: str) -> int:
        """Tokens at the beginning of a prompted text that are the prompt's: without the end token behind it."""
        tokens = self.tokenizer(prompt.strip())["input_ids"]
        return len(tokens) - (bool(tokens) and tokens[-1] in self.tokenizer.all_special_ids)

    def _in_batches(self, encoded: Sequence[dict[str, list[int]]], run: Any, alone: bool) -> None:
        """Run rows of like length together, the longest first."""
        order = sorted(range(len(encoded)), key=lambda row: -len(encoded[row]["input_ids"]))
        with fast_linear_layers(self.model):
            while order:
                length = max(1, len(encoded[order[0]]["input_ids"]))
                most = 1 if alone else max(1, self.max_tokens // length)
                self.max_tokens = halving(order[:most], length, self.max_tokens, run)
                order = order[most:]

    def _padded(self, rows: Sequence[dict[str, list[int]]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """What the model is given of tokenised texts, padded on the right (each ``rows x length``), and their mask."""
        longest = max(len(row["input_ids"]) for row in rows)
        if not longest:
            raise EvaluationError("a text has no tokens in this model's tokenizer", kind="no tokens")
        fillers = {"input_ids": self.tokenizer.pad_token_id or 0}
        taken = signature(self.model.base_model.forward).parameters
        made = {
            key: torch.tensor(
                [row[key] + [fillers.get(key, 0)] * (longest - len(row[key])) for row in rows], device=self.model.device
            )
            for key in rows[0]
            if key in taken
        }
        mask = torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows],
            device=self.model.device,
        )
        return {**made, "attention_mask": mask}, mask

    def _projected(self, vectors: torch.Tensor, step: Dense) -> torch.Tensor:
        weights = Checkpoint(step.folder / "model.safetensors")
        bias = weights["linear.bias"].to(vectors) if "linear.bias" in weights else None
        made = torch.nn.functional.linear(vectors, weights["linear.weight"].to(vectors), bias)
        activation: torch.Tensor = getattr(torch.nn, step.activation)()(made)
        return activation


def _pooled(hidden: torch.Tensor, mask: torch.Tensor, mode: Mode) -> torch.Tensor:
    """One vector of each text (``rows x d``) of its tokens' hidden states (``rows x length x d``)."""
    wide = mask[..., None].to(hidden.dtype)
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    if mode == "max":
        return hidden.masked_fill(wide == 0, -torch.inf).amax(1)
    if mode == "weightedmean":
        wide = wide * torch.arange(1, hidden.shape[1] + 1, device=hidden.device, dtype=hidden.dtype)[None, :, None]
    sums, counts = (hidden * wide).sum(1), wide.sum(1).clamp(min=1e-9)
    return sums / (counts.sqrt() if mode == "mean_sqrt_len_tokens" else counts)


def _check_finite(numbers: torch.Tensor) -> None:
    if not bool(torch.isfinite(numbers).all()):
        raise EvaluationError("the merged model's outputs are not finite", kind="not finite")
