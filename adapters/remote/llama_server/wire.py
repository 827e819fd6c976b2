"""What is said to llama.cpp's server, and how its answers are read.

Each request names the scale of every LoRA (an unnamed one would count as 0, an empty list as the
server's global scales) and says whether a prompt kept from an earlier request may be used. Each answer must
prove that it was: that nothing was cut off, nothing came from a cache unasked, no log-probability is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergefront.adapters.remote.http.client import HttpClient, Reply
from mergefront.adapters.remote.http.json_answers import MalformedAnswerError, field, logprob
from mergefront.adapters.remote.tokenizer import read_tokens
from mergefront.optimizer.errors import EvaluationError

LARGEST_SCALE = 1e6
"""Beyond it float32 products overflow, which the server answers with null instead of an error."""
_FIELDS = (
    "content", "tokens_predicted", "tokens_evaluated", "stop_type", "truncated",
    "completion_probabilities", "timings/cache_n",
)  # fmt: skip


@dataclass(frozen=True)
class Token:
    """A generated token: its raw log-probability, the server's most likely tokens, its bytes."""

    id: int
    logprob: float
    bytes: bytes
    top: Mapping[int, float]

    @property
    def is_greedy(self) -> bool:
        return next(iter(self.top), self.id) == self.id


@dataclass(frozen=True)
class Completion:
    """One answer. Tokens that end inside a character are missing from ``tokens``, as the server omits them."""

    text: str
    generated: int
    stop_type: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Lora:
    """A LoRA that the server holds; ``file`` is the last part of its path."""

    id: int
    file: str
    scale: float


class LlamaWire:
    """The routes of one server. ``per_request`` sends scales with requests, else they are set globally."""

    def __init__(self, client: HttpClient, *, per_request: bool) -> None:
        self.client = client
        self.per_request = per_request

    async def props(self) -> Mapping[str, Any]:
        return await self.client.ask(
            "GET", "/props", None, lambda answer: Reply(field(answer, kind=dict)), cached=False
        )

    async def loras(self) -> list[Lora]:
        return await self.client.ask("GET", "/lora-adapters", None, _read_loras, cached=False)

    async def tokenize(self, text: str, add_special: bool, *, cached: bool = True) -> list[int]:
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return await self.client.ask("POST", "/tokenize", body, read_tokens, cached=cached)

    async def set_global(self, scales: Mapping[int, float]) -> None:
        """Set the global scales and read them back; raises ``EvaluationError`` when they are others."""
        body = _scale_list(scales)
        await self.client.ask("POST", "/lora-adapters", body, lambda _: Reply(None), cached=False)
        await self.check_global(scales)

    async def check_global(self, scales: Mapping[int, float]) -> None:
        """Raises ``EvaluationError`` when the server's global scales are not these."""
        for lora in await self.loras():
            wanted = scales.get(lora.id, 0.0)
            if not math.isclose(lora.scale, wanted, rel_tol=1e-6, abs_tol=1e-12):
                raise EvaluationError(
                    f"the server applies LoRA {lora.file} with scale {lora.scale:g} instead of {wanted:g}; "
                    "does somebody else change its global scales?",
                    kind="wrong scales",
                )

    async def complete(
        self,
        prompt: Sequence[int],
        scales: Mapping[int, float],
        *,
        tokens: int,
        top: int = 1,
        stop: Sequence[str] = (),
        bias: Mapping[int, float] | None = None,
        grammar: str | None = None,
        drawn: Mapping[str, Any] | None = None,
        prompt_cache: bool = False,
        cached: bool = True,
    ) -> Completion:
        """Continue token ids by ``tokens`` at most, with the log-probabilities of each token's ``top`` most likely
        ones; greedily, or as ``drawn`` says (temperature, top_p, seed). ``bias`` and ``grammar`` change what is chosen,
        never what is reported."""
        body: dict[str, Any] = {
            "prompt": list(prompt),
            "n_predict": tokens,
            "n_probs": top,
            "temperature": 0,
            "samplers": ["temperature"],
            "cache_prompt": prompt_cache,
            "response_fields": list(_FIELDS),
        }
        if drawn:
            body |= {**drawn, "samplers": ["temperature", "top_p"]}
        if stop:
            body["stop"] = list(stop)
        if bias:
            body["logit_bias"] = [[token, value] for token, value in sorted(bias.items())]
        if grammar is not None:
            body["grammar"] = grammar
        state = ""
        if self.per_request:
            body["lora"] = _scale_list(scales)
        else:
            state = json.dumps(_scale_list(scales))

        def read(answer: Any) -> Reply[Completion]:
            completion = _read_completion(answer, len(prompt), prompt_cache)
            return Reply(completion, len(prompt), completion.generated)

        return await self.client.ask("POST", "/completion", body, read, cached=cached, state=state)


def _scale_list(scales: Mapping[int, float]) -> list[dict[str, Any]]:
    for value in scales.values():
        if not abs(value) <= LARGEST_SCALE:
            raise EvaluationError(f"a LoRA scale is {value:g}; it must lie within +-{LARGEST_SCALE:g}", kind="weights")
    return [{"id": lora, "scale": float(value)} for lora, value in sorted(scales.items())]


def _read_loras(answer: Any) -> Reply[list[Lora]]:
    loras = []
    for entry in field(answer, kind=list):
        file = last_part(field(entry, "path", kind=str))
        loras.append(Lora(field(entry, "id", kind=int), file, float(field(entry, "scale", kind=(int, float)))))
    return Reply(loras)


def last_part(path: str) -> str:
    """The file's name in a path of any system."""
    return path.replace("\\", "/").rpartition("/")[2]


def _read_completion(answer: Any, prompt_tokens: int, prompt_cache: bool) -> Completion:
    if not isinstance(answer, dict):
        raise MalformedAnswerError("is no object")
    if answer.get("truncated"):
        raise EvaluationError("the server cut the prompt off; start it with a larger context (-c)", kind="too long")
    evaluated = field(answer, "tokens_evaluated", kind=int)
    if evaluated != prompt_tokens:
        raise EvaluationError(
            f"the server read a prompt of {evaluated} tokens where {prompt_tokens} were sent", kind="wrong prompt"
        )
    reused = answer.get("timings/cache_n", (answer.get("timings") or {}).get("cache_n", 0))
    if reused and not prompt_cache:
        raise EvaluationError(
            f"the server reused {reused} tokens of an earlier prompt although the request forbids it; "
            "what it computed under other scales would be mixed in",
            kind="stale cache",
        )
    listed = answer.get("completion_probabilities", [])
    tokens = tuple(_read_token(entry) for entry in field({"list": listed}, "list", kind=list))
    return Completion(
        field(answer, "content", kind=str),
        field(answer, "tokens_predicted", kind=int),
        field(answer, "stop_type", kind=str),
        tokens,
    )


def _read_token(entry: Any) -> Token:
    top = {}
    for other in field(entry, "top_logprobs", kind=list):
        top[field(other, "id", kind=int)] = logprob(other, "logprob")
    try:
        spelled = bytes(field(entry, "bytes", kind=list))
    except (ValueError, TypeError):
        raise MalformedAnswerError("has a token whose bytes are none") from None
    return Token(field(entry, "id", kind=int), logprob(entry, "logprob"), spelled, top)
