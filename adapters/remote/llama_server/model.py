"""The two verbs of a language model on llama.cpp's server, for one set of LoRA scales.

The server scores no given text, so continuations are forced: ``logit_bias`` makes it choose a token while it
reports the token's raw log-probability. A text of several tokens is forced in one request by a grammar;
the tokens chosen must be the text's own, and from the first that is not, one request forces one token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal

from mergefront.adapters.language_model import Generation, GenerationRequest, LogLikelihood, ScoringRequest
from mergefront.adapters.remote.drawing import drawing
from mergefront.adapters.remote.http.client import all_of
from mergefront.adapters.remote.llama_server.wire import LlamaWire
from mergefront.adapters.thoughts import answer_of
from mergefront.adapters.tokenization import Tokenization
from mergefront.optimizer.errors import EvaluationError

_FORCE = 1000.0
_FAVOUR = 100.0
_LABELS = 100
"""So many most likely tokens are asked for when several one-token continuations share a context."""
_MOST_LISTED = 1000

Step = tuple[float, bool]
"""A token's log-probability and whether it is the most likely one."""


class LlamaServerModel:
    """A ``LanguageModel``: the server's base model plus its LoRAs at ``scales`` (by id).

    ``context`` is the number of tokens that a slot of the server holds; longer inputs lose their
    beginning. ``plain_token`` is any token that ends a character.
    """

    def __init__(
        self,
        wire: LlamaWire,
        tokenization: Tokenization,
        scales: Mapping[int, float],
        *,
        context: int,
        plain_token: int,
        prompt_cache: bool = False,
    ) -> None:
        self._wire = wire
        self._tokenization = tokenization
        self.scales = scales
        self._context = context
        self._plain_token = plain_token
        self._prompt_cache = prompt_cache

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        pairs = self._tokenization.pairs([(request.context, request.continuation) for request in requests])
        labels: dict[tuple[int, ...], set[int]] = {}
        for context, continuation in pairs:
            if len(continuation) == 1:
                labels.setdefault(self._fitted(context, 1), set()).add(continuation[0])
        together = {context for context, tokens in labels.items() if len(tokens) > 1}
        work = (
            self._score(context, continuation, request.continuation, together)
            for request, (context, continuation) in zip(requests, pairs, strict=True)
        )
        return self._wire.client.run(all_of(work))

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        prompts = self._tokenization.texts([request.prompt for request in requests])
        work = (self._continue(tokens, request) for request, tokens in zip(requests, prompts, strict=True))
        return self._wire.client.run(all_of(work))

    def _fitted(self, tokens: tuple[int, ...], more: int) -> tuple[int, ...]:
        room = self._context - more - 1
        if room < 1:
            raise EvaluationError(
                f"{more} tokens are to follow the prompt, but a slot of the server holds {self._context} in all; start "
                "it with a larger context (-c)",
                kind="too long",
            )
        return tokens[-room:]

    async def _continue(self, prompt: tuple[int, ...], request: GenerationRequest) -> Generation:
        known = self._fitted(prompt, request.most_tokens)
        answer = await self._wire.complete(
            known,
            self.scales,
            tokens=request.most_tokens,
            stop=request.stop if request.thinking is None else (),
            drawn=drawing(request),
            prompt_cache=self._prompt_cache,
        )
        finish: Literal["stop", "length"] = "length" if answer.stop_type == "limit" else "stop"
        said = Generation(answer.text, answer.generated, finish, shortened=len(known) < len(prompt))
        return answer_of(said, request, is_open=self._tokenization.opens_thoughts(request))

    async def _score(
        self,
        whole: tuple[int, ...],
        continuation: tuple[int, ...],
        text: str,
        together: set[tuple[int, ...]],
    ) -> LogLikelihood:
        context = self._fitted(whole, len(continuation))
        steps: list[Step] = []
        if len(continuation) == 1 and context in together:
            steps = await self._listed(context, continuation[0], _LABELS)
        elif _can_be_grammar(text):
            steps = await self._spelled(context, continuation, text)
        while len(steps) < len(continuation):
            known = len(steps)
            steps.append(await self._forced(context + continuation[:known], continuation[known]))
        logprob, is_greedy = sum(step[0] for step in steps), all(step[1] for step in steps)
        return LogLikelihood(logprob, len(steps), is_greedy, shortened=len(context) < len(whole))

    async def _spelled(self, context: tuple[int, ...], continuation: tuple[int, ...], text: str) -> list[Step]:
        """The steps of the longest beginning that the server spells in the continuation's own tokens."""
        steps: list[Step] = []
        rest = text.encode()
        while rest and len(continuation) - len(steps) > 1:
            known = len(steps)
            wanted = continuation[known:]
            # Where several of them could come next, a later one is meant more often: a text that begins with a space
            # alone would be given another one before each word. What was chosen wrongly is now the likeliest.
            bias = {token: _FAVOUR * place for place, token in enumerate(wanted, 1)}
            if steps:
                bias[wanted[0]] = _FAVOUR * (len(wanted) + 1)
            answer = await self._wire.complete(
                context + continuation[:known],
                self.scales,
                tokens=len(wanted),
                bias=bias,
                grammar=f"root ::= {json.dumps(rest.decode(), ensure_ascii=False)}",
                prompt_cache=self._prompt_cache,
            )
            spelled = b""
            for token, meant in zip(answer.tokens, wanted, strict=False):
                # A token that ends inside a character is not listed, and all after it would be out of step.
                if token.id != meant or not _is_whole(spelled + token.bytes):
                    break
                spelled += token.bytes
                steps.append((token.logprob, token.is_greedy))
            # Passes that gain one token each cost more than forcing one after the other.
            if len(steps) - known < (2 if known else 1) or not rest.startswith(spelled):
                break
            rest = rest[len(spelled) :]
        return steps

    async def _forced(self, context: tuple[int, ...], token: int) -> Step:
        answer = await self._wire.complete(
            context, self.scales, tokens=1, bias={token: _FORCE}, prompt_cache=self._prompt_cache
        )
        if answer.tokens and answer.tokens[0].id == token:
            return answer.tokens[0].logprob, answer.tokens[0].is_greedy
        if answer.tokens:
            raise EvaluationError(
                f"the server chose token {answer.tokens[0].id} although token {token} was forced", kind="not forced"
            )
        for top in (_MOST_LISTED, 2**20):
            found = await self._listed(context, token, top)
            if found:
                return found[0]
        raise EvaluationError(f"the server gives no log-probability for token {token}", kind="no log-probability")

    async def _listed(self, context: tuple[int, ...], token: int, top: int) -> list[Step]:
        """The token's step if it is among the ``top`` most likely ones, else nothing."""
        answer = await self._wire.complete(
            context,
            self.scales,
            tokens=1,
            top=top,
            bias={self._plain_token: _FORCE},
            prompt_cache=self._prompt_cache,
            cached=top <= _MOST_LISTED,
        )
        if not answer.tokens or token not in answer.tokens[0].top:
            return []
        listed = answer.tokens[0].top
        return [(listed[token], next(iter(listed)) == token)]


def _can_be_grammar(text: str) -> bool:
    """Whether a text is safe to write as a string of the server's grammar language."""
    return bool(text) and all(character.isprintable() or character in "\n\t" for character in text)


def _is_whole(spelled: bytes) -> bool:
    try:
        spelled.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
