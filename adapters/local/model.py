"""A live Hugging Face causal language model that answers requests in batches.

Scoring pads on the right: in a causal model what follows a sequence cannot change it, so that a batch
gives what single requests give. Generation pads on the left and keeps the keys and values of what it
has read; models with recurrent states, which padding would change, write prompts of one length
together. A beginning that all rows of a call share is read once (``shared_prefix``). Texts are
tokenised once, however many merges are scored with them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch

from mergefront.adapters.chat_templates import TemplateReader
from mergefront.adapters.language_model import (
    Chat,
    Generation,
    GenerationRequest,
    LogLikelihood,
    ScoringRequest,
    Tokens,
)
from mergefront.adapters.local.key_value_cache import is_plain, joined, left_padded, takes_padding
from mergefront.adapters.local.limits import (
    MAX_LOGITS,
    Row,
    end_tokens,
    halving,
    longest_input,
    reads_both_ways,
    refuse_likelihoods,
)
from mergefront.adapters.local.linear_layers import fast_linear_layers
from mergefront.adapters.local.shared_prefix import Prefix, common_length
from mergefront.adapters.local.writing.batch_writer import BatchWriter
from mergefront.adapters.local.writing.generation_state import GenerationState
from mergefront.adapters.local.writing.logit_noise import ROWS, measured_noise
from mergefront.adapters.local.writing.unpadded_generation import CAUSAL, write
from mergefront.adapters.tokenization import Tokenization
from mergefront.optimizer.errors import EvaluationError


class HuggingFaceModel:
    """``LanguageModel`` over a transformers causal model and its tokenizer (or a processor that holds it).

    ``max_rows`` and ``max_tokens`` (padding included) bound a batch, four times ``max_rows`` one that is generated; a
    batch that does not fit into memory is halved, and ``max_tokens`` with it. ``max_length`` is the longest input in
    tokens (default: the model's own); longer contexts lose their beginning, and continuations longer than that are
    scored window by window. ``add_bos`` forces a BOS token on or off (default: as the tokenizer does).
    ``read_at_once`` is the most tokens of a batch in a pass that reads drafts of answers (default: by the kind of
    device).

    The weights of ``model`` may change between calls: nothing that depends on them is kept.
    """

    heeds_wanted = True

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        max_rows: int = 64,
        max_tokens: int = 16384,
        max_length: int | None = None,
        add_bos: bool | None = None,
        read_at_once: int | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = tokenizer = getattr(processor, "tokenizer", processor)
        self.max_rows = max_rows
        self.max_tokens = max_tokens
        self.max_length = max_length or longest_input(model, tokenizer)
        self._tokenization = Tokenization(tokenizer, add_bos, TemplateReader(tokenizer))
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._keeps_some_logits = "logits_to_keep" in parameters
        self._pads = "past_key_values" in parameters and takes_padding(model) and not reads_both_ways(model.config)
        self._continues = self._pads and self._takes_positions
        self._shares_beginnings = self._joins_caches = self._continues
        self._ends = end_tokens(model, tokenizer)
        self._noise = _NOISE.get(model.dtype)
        kind = "cpu" if model.device.type == "cpu" else "accelerator"
        self._read_at_once = read_at_once or _READ_AT_ONCE[kind]
        model.eval()

    def tokens(self, pairs: Sequence[tuple[str | Chat, str]]) -> list[Tokens]:
        """Each prompt with what follows it, as the model reads both."""
        return [context + continuation for context, continuation in self._tokenization.pairs(pairs)]

    @torch.inference_mode()
    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        """Exact log-likelihoods.

        Requests with the same input tokens share one pass (choices of one token), and several continuations of one
        context share its pass.
        """
        refuse_likelihoods(self.model.config, type(self.model).__name__)
        encoded = self._tokenization.pairs([(request.context, request.continuation) for request in requests])
        longer = [len(context) + len(continuation) - 1 > self.max_length for context, continuation in encoded]
        shared = self._shared(encoded)
        windows = [
            [] if context in shared and continuation in shared[context] else list(self._windows(context, continuation))
            for context, continuation in encoded
        ]
        wanted: dict[Tokens, dict[Tokens, tuple[float, bool]]] = {}
        for inputs, targets in (window for several in windows for window in several):
            wanted.setdefault(inputs, {})[targets] = (0.0, True)
        rows = sorted(wanted, key=len, reverse=True)
        longest = [max(len(targets) for targets in wanted[row]) for row in rows]
        contexts = sorted(shared, key=len, reverse=True)
        unscored = [len(row) - scored for row, scored in zip(rows, longest, strict=True)]
        prefix = self._prefix(
            [*rows, *contexts], min([*unscored, *(len(context) - 1 for context in contexts)], default=0)
        )
        for start, end in self._batches([len(row) for row in rows], longest):
            for first, last in _parts_of_like_length([len(row) - len(prefix) for row in rows[start:end]]):
                part = rows[start + first : start + last]
                self._run(part, len(part[0]), lambda part: self._score(part, wanted, prefix))
        for start, end in self._shared_batches(contexts, shared):
            part = contexts[start:end]
            self._run(part, self._shared_length(part, shared), lambda part: self._score_shared(part, shared, prefix))
        answers = []
        for request, is_longer, (context, continuation), several in zip(
            requests, longer, encoded, windows, strict=True
        ):
            if not several and continuation:  # shared contexts are never longer than the model reads
                logprob, is_greedy = shared[context][continuation]
                answers.append(LogLikelihood(logprob, len(continuation), is_greedy))
                continue
            parts = [wanted[inputs][targets] for inputs, targets in several]
            answers.append(
                LogLikelihood(
                    sum(logprob for logprob, _ in parts),
                    sum(len(targets) for _, targets in several),
                    all(greedy for _, greedy in parts),
                    is_longer and request.context != "",
                )
            )
        return answers

    def _run(self, rows: Sequence[Row], length: int, run: Callable[[list[Row]], None]) -> None:
        """Run a batch of rows of at most ``length`` tokens, by halves where it does not fit; later ones are smaller."""
        self.max_tokens = halving(rows, length, self.max_tokens, run)

    def _windows(self, context: Tokens, continuation: Tokens) -> Iterator[tuple[Tokens, Tokens]]:
        """Inputs and targets: one pair where everything fits, else windows that do not overlap."""
        tokens = context + continuation
        for start in range(0, len(continuation), self.max_length):
            targets = continuation[start : start + self.max_length]
            end = len(context) + start + len(targets) - 1
            yield tokens[max(0, end - self.max_length) : end], targets

    def _shared(self, encoded: Sequence[tuple[Tokens, Tokens]]) -> dict[Tokens, dict[Tokens, tuple[float, bool]]]:
        """Contexts worth reading once for several continuations, with those continuations (results to come)."""
        if not self._continues:
            return {}
        of_context: dict[Tokens, dict[Tokens, tuple[float, bool]]] = {}
        for context, continuation in encoded:
            if continuation and len(context) + len(continuation) - 1 <= self.max_length:
                of_context.setdefault(context, {})[continuation] = (0.0, True)
        return {
            context: continuations
            for context, continuations in of_context.items()
            if len({continuation[:-1] for continuation in continuations}) > 1 and len(context) >= _SHORTEST_SHARED
        }

    def _shared_batches(
        self, contexts: Sequence[Tokens], shared: dict[Tokens, dict[Tokens, tuple[float, bool]]]
    ) -> Iterator[tuple[int, int]]:
        """Slices of contexts (longest first) whose continuations together fit into a batch."""
        start = 0
        while start < len(contexts):
            end, rows, longest = start, 0, 0
            while end < len(contexts):
                rows += len(shared[contexts[end]])
                longest = max(longest, *(len(continuation) for continuation in shared[contexts[end]]))
                tokens = rows * (len(contexts[start]) + longest)
                if end > start and (rows > 2 * self.max_rows or tokens > self.max_tokens):
                    break
                end += 1
            yield start, end
            start = end

    def _shared_length(self, contexts: Sequence[Tokens], shared: dict[Tokens, dict[Tokens, tuple[float, bool]]]) -> int:
        """Tokens that the longest context takes with all its continuations."""
        return max(len(shared[one]) * (len(one) + max(map(len, shared[one]))) for one in contexts)

    def _prefix(self, rows: Sequence[Tokens], most: int) -> Prefix:
        """What all ``rows`` begin with (at most ``most`` tokens), read once where that pays; else an empty prefix."""
        length = common_length(rows, most) if self._shares_beginnings else 0
        if length == 0:
            return Prefix()
        tokens = rows[0][:length]
        output = self._forward(torch.tensor([tokens], device=self.model.device), 1, use_cache=True)
        self._shares_beginnings = is_plain(output.past_key_values)
        return Prefix(tokens, output.past_key_values) if self._shares_beginnings else Prefix()

    def _padded_left(self, rows: Sequence[Tokens], prefix: Prefix) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens after the prefix, padded on the left (``rows x length``), and the mask of prefix and row."""
        own = [row[len(prefix) :] for row in rows]
        length = max(map(len, own))
        read = [1] * len(prefix)
        tokens = [row[:1] * (length - len(row)) + row for row in own]
        mask = [read + [0] * (length - len(row)) + [1] * len(row) for row in own]
        return torch.tensor(tokens, device=self.model.device), torch.tensor(mask, device=self.model.device)

    def _score_shared(
        self, contexts: list[Tokens], shared: dict[Tokens, dict[Tokens, tuple[float, bool]]], prefix: Prefix
    ) -> None:
        """Fill in the continuations of each context: the contexts in one pass, all that follows in another."""
        device = self.model.device
        last, mask, cache = self._read(contexts, prefix)
        places = [(row, context, one) for row, context in enumerate(contexts) for one in shared[context]]
        owners = torch.tensor([row for row, _, _ in places], device=device)
        logits = last[owners][:, None]
        longest = max(len(one) for _, _, one in places)
        if longest > 1:
            cache.batch_select_indices(owners)
            # The filler comes after what is read, so that nothing attends to it.
            read = [one[:-1] + one[-1:] * (longest - len(one)) for _, _, one in places]
            following = torch.tensor(read, device=device)
            mask = torch.cat([mask[owners], mask.new_ones(len(places), longest - 1)], 1)
            every = torch.arange(longest - 1, device=device)
            more = self._positions(mask, longest - 1)
            output = self._forward(following, every, attention_mask=mask, use_cache=True, past_key_values=cache, **more)
            logits = torch.cat([logits, output.logits], 1)
        at_row = [row for row, (_, _, one) in enumerate(places) for _ in one]
        at_place = [place for _, _, one in places for place in range(len(one))]
        chosen = logits[torch.tensor(at_row, device=device), torch.tensor(at_place, device=device)].float()
        for (_, context, one), score in zip(places, _scores(chosen, [one for _, _, one in places]), strict=True):
            shared[context][one] = score

    def _positions(self, mask: torch.Tensor, length: int) -> dict[str, torch.Tensor]:
        """Positions of the last ``length`` tokens under a mask, where the model takes them."""
        if not self._takes_positions:
            return {}
        # What fills up a row may lie behind the last position that the model knows.
        return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0, max=self.max_length - 1)[:, -length:]}

    def _batches(
        self, lengths: Sequence[int], targets: Sequence[int] | None = None, most_rows: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Slices of rows sorted by length, longest first.

        ``most_rows`` is ``max_rows`` by default. With ``targets`` (scored tokens per row) the float32 logits of a batch
        are bounded as well.
        """
        vocabulary = int(getattr(self.model.config.get_text_config(), "vocab_size", 0) or 0)
        start = 0
        while start < len(lengths):
            rows = max(1, min(most_rows or self.max_rows, self.max_tokens // max(1, lengths[start])))
            if targets is not None and vocabulary:
                logits = 0
                for end in range(start, min(start + rows, len(lengths))):
                    logits += vocabulary * targets[end]
                    if logits > MAX_LOGITS and end > start:
                        rows = end - start
                        break
            yield start, min(start + rows, len(lengths))
            start += rows

    def _score(
        self, rows: list[Tokens], wanted: dict[Tokens, dict[Tokens, tuple[float, bool]]], prefix: Prefix
    ) -> None:
        """Fill in what is ``wanted`` of each row, from one forward pass."""
        length = max(len(row) for row in rows)
        device = self.model.device
        # The filler is never attended to by what it follows; the row's own last token is always in the vocabulary.
        padded = torch.tensor([row[len(prefix) :] + row[-1:] * (length - len(row)) for row in rows], device=device)
        places: list[tuple[Tokens, Tokens]] = [(row, targets) for row in rows for targets in wanted[row]]
        first = min(len(row) - len(targets) for row, targets in places)
        keep = torch.arange(first - len(prefix), length - len(prefix), device=device)
        known = {"past_key_values": prefix.rows(len(rows)), "use_cache": True} if len(prefix) else {}
        logits = self._forward(padded, keep, **known).logits
        index = {row: number for number, row in enumerate(rows)}
        at_row = [index[row] for row, targets in places for _ in targets]
        at_place = [len(row) - len(targets) + k - first for row, targets in places for k in range(len(targets))]
        chosen = logits[torch.tensor(at_row, device=device), torch.tensor(at_place, device=device)].float()
        for (row, targets), score in zip(places, _scores(chosen, [targets for _, targets in places]), strict=True):
            wanted[row][targets] = score

    def _forward(self, tokens: torch.Tensor, keep: torch.Tensor | int, **more: Any) -> Any:
        """One pass that computes logits only for the positions in ``keep`` (an integer: the last ones)."""
        with fast_linear_layers(self.model):
            if self._keeps_some_logits:
                return self.model(input_ids=tokens, logits_to_keep=keep, **more)
            output = self.model(input_ids=tokens, **more)
        output.logits = output.logits[:, -keep:] if isinstance(keep, int) else output.logits[:, keep]
        return output

    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Continuations; a batch ends as soon as every sequence in it has."""
        different = list(dict.fromkeys(requests))
        prompts = self._tokenization.texts([request.prompt for request in different])
        answers: dict[GenerationRequest, Generation] = {}
        rows: list[tuple[Tokens, GenerationRequest]] = []
        shortened: set[GenerationRequest] = set()
        for tokens, request in zip(prompts, different, strict=True):
            room = self.max_length - request.most_tokens
            if room < 1:
                raise EvaluationError(
                    f"{request.most_tokens} new tokens are asked for, but the model reads {self.max_length} at most",
                    kind="too long",
                )
            rows.append((tokens[-room:], request))
            shortened |= {request} if len(tokens) > room else set()
        rows.sort(key=lambda row: len(row[0]), reverse=True)
        if not self._pads:
            for _, alike in groupby(rows, key=lambda row: len(row[0])):
                self._write_unpadded(list(alike), answers)
            return _marked(requests, answers, shortened)
        prefix = self._prefix([tokens for tokens, _ in rows], min((len(tokens) - 1 for tokens, _ in rows), default=0))
        ends = self._closing(different)
        drafts = self._drafts(different)
        noise = self._known_noise(rows, drafts, prefix)
        writers = [BatchWriter(self._read_on, noise, at_once, drafts, ends) for at_once in (self._read_at_once, 0)]
        lengths = [len(tokens) + request.most_tokens for tokens, request in rows]
        for start, end in self._batches(lengths, most_rows=_GENERATED_ROWS * self.max_rows):
            self._run(rows[start:end], lengths[start], lambda part: self._continue(part, answers, prefix, writers))
        return _marked(requests, answers, shortened)

    def _drafts(self, requests: Sequence[GenerationRequest]) -> dict[GenerationRequest, list[Tokens]]:
        """The tokens of each answer's drafts, of those that are no longer than it may be."""
        if not self._continues:
            return {}
        wanted = {one: one.wanted.drafts for one in requests if one.wanted is not None and one.temperature == 0}
        pairs = [(request, draft) for request, several in wanted.items() for draft in several]
        found: dict[GenerationRequest, list[Tokens]] = {}
        tokens = self._tokenization.drafts([(request.prompt, draft) for request, draft in pairs])
        for (request, _), draft in zip(pairs, tokens, strict=True):
            if 0 < len(draft) <= request.max_new_tokens:
                found.setdefault(request, []).append(draft)
        return found

    def _known_noise(
        self,
        rows: Sequence[tuple[Tokens, GenerationRequest]],
        drafts: Mapping[GenerationRequest, Sequence[Tokens]],
        prefix: Prefix,
    ) -> float:
        """How far a logit may be off; measured with the first drafts, as merges of a study differ little."""
        if self._noise is None:
            drafted = [(prompt, drafts[request][0]) for prompt, request in rows if request in drafts][:ROWS]
            if not drafted:
                return math.inf
            prompts = [prompt for prompt, _ in drafted]
            self._noise = measured_noise(
                lambda: self._read(prompts, prefix), self._read_on, [draft for _, draft in drafted]
            )
        return self._noise

    def _closing(self, requests: Sequence[GenerationRequest]) -> Tokens:
        """The tokens that are an end by themselves of answers of which something is wanted."""
        stops = {stop for one in requests if one.wanted is not None for stop in (*one.stop, *one.wanted.ends)}
        tokens = self._tokenization.plain(sorted(stops))
        return tuple(sorted(self._ends | {one[0] for one in tokens if len(one) == 1}))

    def _write_unpadded(
        self, rows: list[tuple[Tokens, GenerationRequest]], answers: dict[GenerationRequest, Generation]
    ) -> None:
        """Generate for prompts of one length, in batches, and put the answers into ``answers``."""

        def run(part: list[tuple[Tokens, GenerationRequest]]) -> None:
            prompts = torch.tensor([tokens for tokens, _ in part], device=self.model.device)
            inputs = {"input_ids": prompts, "attention_mask": torch.ones_like(prompts)}
            states = [self._state(request) for _, request in part]
            # RecurrentGemma takes a prompt of one token for the next token of what it read before.
            settings = {**CAUSAL, "use_cache": prompts.shape[1] > 1}
            with fast_linear_layers(self.model):
                write(self.model, inputs, states, settings)
            answers.update((state.request, state.generation()) for state in states)

        lengths = [len(tokens) + request.most_tokens for tokens, request in rows]
        for start, end in self._batches(lengths, most_rows=_GENERATED_ROWS * self.max_rows):
            self._run(rows[start:end], lengths[start], run)

    def _state(self, request: GenerationRequest) -> GenerationState:
        return GenerationState(
            request, self.tokenizer, self._tokenization, self._ends, self._tokenization.opens_thoughts(request)
        )

    def _continue(
        self,
        rows: list[tuple[Tokens, GenerationRequest]],
        answers: dict[GenerationRequest, Generation],
        prefix: Prefix,
        writers: Sequence[BatchWriter],
    ) -> None:
        """Generate for one batch (longest prompts first) and put the answers into ``answers``.

        The first of the ``writers`` does it, and the others what it leaves unclear.
        """
        logits, mask, cache = self._read([tokens for tokens, _ in rows], prefix)
        states = [self._state(request) for _, request in rows]
        unclear = writers[0].write(states, logits, mask, cache)
        answers.update((state.request, state.generation()) for state in states)
        if unclear:
            self._continue([rows[place] for place in unclear], answers, prefix, writers[1:])

    def _read_on(self, tokens: torch.Tensor, mask: torch.Tensor, cache: Any) -> Any:
        """A pass over the last tokens of rows; the cache, if there is one, has what stands before them."""
        width = tokens.shape[1]
        keep = torch.arange(width, device=tokens.device) if width > 1 else 1
        more = {"past_key_values": cache} if cache is not None else {}
        return self._forward(tokens, keep, attention_mask=mask, use_cache=True, **more, **self._positions(mask, width))

    def _read(self, rows: Sequence[Tokens], prefix: Prefix) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Read prompts (longest first): the logits after each (``rows x vocabulary``), their mask, and the cache."""
        lengths = [len(row) - len(prefix) for row in rows]
        parts = list(_parts_of_like_length(lengths)) if self._joins_caches else [(0, len(rows))]
        read = []
        for start, end in parts:
            tokens, mask = self._padded_left(rows[start:end], prefix)
            more = self._positions(mask, tokens.shape[1])
            known = prefix.rows(end - start)
            if known is not None:
                more["past_key_values"] = known
            output = self._forward(tokens, 1, attention_mask=mask, use_cache=True, **more)
            read.append((output.logits[:, -1], mask, output.past_key_values))
            if len(parts) > 1 and not is_plain(output.past_key_values):
                self._joins_caches = False
                return self._read(rows, prefix)
        if len(read) == 1:
            return read[0]
        return (
            torch.cat([one for one, _, _ in read]),
            left_padded([one for _, one, _ in read]),
            joined([one for _, _, one in read]),
        )


def _marked(
    requests: Sequence[GenerationRequest],
    answers: Mapping[GenerationRequest, Generation],
    shortened: Container[GenerationRequest],
) -> list[Generation]:
    """The answers in the order of the requests; those to prompts that lost their beginning say so."""
    return [replace(answers[request], shortened=request in shortened) for request in requests]


def _scores(logits: torch.Tensor, continuations: Sequence[Tokens]) -> Iterator[tuple[float, bool]]:
    """Log-probability of each continuation, and whether each of its tokens is the likeliest.

    ``logits`` (``n x vocabulary``) are those before each token, of the continuations one after the other.
    """
    target = torch.tensor([token for one in continuations for token in one], device=logits.device)
    logprobs = (logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(1)).double().cpu()
    if not bool(torch.isfinite(logprobs).all()):
        raise EvaluationError("the merged model's log-probabilities are not finite", kind="not finite")
    greedy = (logits.argmax(1) == target).cpu()
    start = 0
    for one in continuations:
        end = start + len(one)
        yield float(logprobs[start:end].sum()), bool(greedy[start:end].all())
        start = end


_SHORTEST_SHARED = 8
"""Tokens of a context from which computing it once pays for a second pass (chosen by hand)."""
_GENERATED_ROWS = 4
"""Times ``max_rows``: a step of generation reads one token a row, and reading the weights takes longest."""
_READ_AT_ONCE = {"cpu": 128, "accelerator": 4096}
"""Tokens that a pass reads in about the time of few (chosen by hand)."""
_NOISE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""By how much a logit must be the largest to be so however it is added up; other precisions are measured."""
_LIKE_LENGTH = 0.9
"""Least length of a prompt in a batch, as a share of the batch's longest (chosen by hand)."""
_LEAST_READ = 256
"""Tokens from which a pass keeps a processor busy (chosen by hand)."""


def _parts_of_like_length(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Slices of rows (longest first) that one pass each reads, with little padding and enough tokens to pay."""
    start = 0
    for end in range(1, len(lengths)):
        if lengths[end] < _LIKE_LENGTH * lengths[start] and (end - start) * lengths[start] >= _LEAST_READ:
            yield start, end
            start = end
    yield start, len(lengths)
