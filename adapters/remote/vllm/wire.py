"""What is said to a vLLM server with run-time LoRAs, and how its answers are read.

Written against vLLM 0.32. Continuations are scored by forcing one token per request with ``logit_bias`` and
reading its raw log-probability: ``prompt_logprobs`` and ``echo`` would take one request, but end the server
when a LoRA is in use and more than one request is in its batch.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from mergefront.adapters.language_model import Chat, Generation, LogLikelihood, Message
from mergefront.adapters.remote.http.client import HttpClient, RefusedError, Reply
from mergefront.adapters.remote.http.json_answers import MalformedAnswerError, field, logprob, parse_json, usage
from mergefront.adapters.remote.openai.answers import read_generation
from mergefront.adapters.remote.settings import MERGE_WORKER
from mergefront.adapters.remote.tokenizer import read_tokens
from mergefront.optimizer.errors import EvaluationError, UserError

T = TypeVar("T")

_FORCE = 100.0
"""The largest bias that vLLM takes."""
OLDEST = (0, 16)
"""The first version that takes weights while it runs; 0.32 is the one that was tried."""
_PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What a server would otherwise take from the model's generation_config.json."""


class VllmWire:
    """The routes of one server. ``model`` is the name of the base model or of a loaded LoRA."""

    def __init__(self, client: HttpClient) -> None:
        self.client = client

    async def models(self) -> list[tuple[str, int | None]]:
        """Served names, each with the most tokens that it reads (None where the server does not say)."""

        def read(answer: Any) -> Reply[list[tuple[str, int | None]]]:
            found = []
            for entry in field(answer, "data", kind=list):
                longest = entry.get("max_model_len") if isinstance(entry, dict) else None
                found.append((field(entry, "id", kind=str), longest if isinstance(longest, int) else None))
            return Reply(found)

        return await self.client.ask("GET", "/v1/models", None, read, cached=False)

    async def load(self, name: str, folder: str) -> None:
        """Load a LoRA from a folder on the server's disk; raises ``EvaluationError`` when it refuses."""
        body = {"lora_name": name, "lora_path": folder}
        await self.client.ask("POST", "/v1/load_lora_adapter", body, _read_done, cached=False, parse=str)

    async def unload(self, name: str) -> None:
        """Unload a LoRA; raises ``EvaluationError`` for one that is not loaded."""
        body = {"lora_name": name}
        await self.client.ask("POST", "/v1/unload_lora_adapter", body, _read_done, cached=False, parse=str)

    async def tokenize(self, model: str, text: str, add_special: bool, *, cached: bool = True) -> list[int]:
        body = {"model": model, "prompt": text, "add_special_tokens": add_special}
        return await self.client.ask("POST", "/tokenize", body, read_tokens, cached=cached)

    async def tokenize_chat(self, model: str, chat: Chat, answer: str | None) -> list[int]:
        """Tokens of a conversation by the server's template, up to the assistant's turn or to the answer in it."""
        turn = [] if answer is None else [Message("assistant", answer.strip())]
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": one.role, "content": one.content} for one in (*chat.messages, *turn)],
            "add_generation_prompt": answer is None,
            "continue_final_message": answer is not None,
        }
        if chat.options != "{}":
            body["chat_template_kwargs"] = json.loads(chat.options)
        return await self.client.ask("POST", "/tokenize", body, read_tokens)

    async def force(
        self, model: str, prompt: Sequence[int], token: int, state: str, *, cached: bool = True
    ) -> LogLikelihood:
        """The raw log-probability of ``token`` after ``prompt``; ``state`` says which LoRA ``model`` is."""
        body = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "logit_bias": {str(token): _FORCE},
            "return_tokens_as_token_ids": True,
        }

        def read(answer: Any) -> Reply[LogLikelihood]:
            return _read_forced(answer, token, len(prompt))

        return await self._complete(body, read, state, cached)

    async def generate(
        self,
        model: str,
        prompt: Sequence[int],
        max_tokens: int,
        stop: Sequence[str],
        state: str,
        drawn: Mapping[str, Any] | None = None,
    ) -> Generation:
        """A greedy continuation, or one that is drawn as ``drawn`` says (temperature, top_p, seed)."""
        body: dict[str, Any] = {"model": model, "prompt": list(prompt), "max_tokens": max_tokens, "temperature": 0}
        body |= drawn or {}
        if stop:
            body["stop"] = list(stop)

        def read(answer: Any) -> Reply[Generation]:
            counted, generated = usage(answer)
            return Reply(read_generation(answer, stop, generated), counted or len(prompt), generated)

        return await self._complete(body, read, state, True)

    async def scored(self, model: str, context: Sequence[int], continuation: Sequence[int]) -> LogLikelihood:
        """The raw log-probabilities of a continuation in one request. Only where no LoRA is in use (see above)."""
        prompt = [*context, *continuation]
        body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}

        def read(answer: Any) -> Reply[LogLikelihood]:
            listed = field(answer, "choices", 0, "prompt_logprobs", kind=list)
            found, counted = listed[len(context) :], usage(answer)
            if counted[0] not in (None, len(prompt)) or len(found) != len(continuation):
                raise EvaluationError(
                    f"the server read {counted[0]} tokens where {len(prompt)} were sent", kind="wrong prompt"
                )
            steps = [field(one, str(token), kind=dict) for one, token in zip(found, continuation, strict=True)]
            total = sum(logprob(step, "logprob") for step in steps)
            return Reply(LogLikelihood(total, len(steps), all(step.get("rank") == 1 for step in steps)), *counted)

        return await self.client.ask("POST", "/v1/completions", body, read, cached=False)

    async def continued(
        self, model: str, prompt: Sequence[int], max_tokens: int, ends: Sequence[int], more: Mapping[str, Any]
    ) -> list[int]:
        """The tokens of a continuation, the end token included; greedy but for what ``more`` says."""
        body: dict[str, Any] = {
            "model": model, "prompt": list(prompt), "max_tokens": max_tokens, "temperature": 0, **_PLAIN,
            "ignore_eos": True, "stop_token_ids": list(ends), "skip_special_tokens": False,
            "return_token_ids": True, **more,
        }  # fmt: skip

        def read(answer: Any) -> Reply[list[int]]:
            tokens = field(answer, "choices", 0, "token_ids", kind=list)
            if not all(type(token) is int for token in tokens):
                raise MalformedAnswerError("has token_ids that are no numbers")
            return Reply(tokens, *usage(answer))

        return await self.client.ask("POST", "/v1/completions", body, read, cached=False)

    async def call_workers(self, method: str, **arguments: Any) -> list[Mapping[str, Any]]:
        """What every worker answers to a method of ``MergeWorker``; raises ``RefusedError`` where it has none."""
        body = {"method": method, "kwargs": arguments}

        def read(answer: Any) -> Reply[list[Mapping[str, Any]]]:
            found = field(answer, "results", kind=list)
            if not found or not all(isinstance(one, dict) and "ok" in one for one in found):
                raise MalformedAnswerError("has results that no worker of ours gives")
            return Reply(found)

        return await self.client.ask("POST", "/collective_rpc", body, read, cached=False)

    async def refuse_unusable(self) -> None:
        """Raises ``UserError``, with the flag that is missing, for a server whose weights cannot be changed."""

        def read(answer: Any) -> Reply[str]:
            return Reply(field(answer, "version", kind=str))

        refuse_old(await self.client.ask("GET", "/version", None, read, cached=False), "the server is")
        try:
            await self.client.ask("GET", "/is_paused", None, _read_anything, cached=False)
        except RefusedError as error:
            if error.status not in (404, 405):
                raise
            raise UserError(
                "backend.vllm: the server takes no weights; start it with VLLM_SERVER_DEV_MODE=1 in its environment"
            ) from None

    async def described(self) -> Mapping[str, Any]:
        """What the server is by its configuration: ``model``, ``dtype``, ``quantization``, and whether it
        ``has_merge_worker``. To call a worker's method that is not there would raise in every worker, and put the
        answers of several out of step."""

        def read(answer: Any) -> Reply[Mapping[str, Any]]:
            config = field(answer, "vllm_config", "model_config", kind=dict)
            return Reply(
                {
                    "model": field(config, "model", kind=str),
                    "dtype": str(field(config, "dtype")).removeprefix("torch."),
                    "quantization": config.get("quantization"),
                    "has_merge_worker": MERGE_WORKER in json.dumps(answer["vllm_config"].get("parallel_config")),
                }
            )

        return await self.client.ask("GET", "/server_info?config_format=json", None, read, cached=False)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Let what runs end, and keep what comes waiting while the block lasts; prompts that were read are forgotten.

        Raises ``EvaluationError`` where cached prompts of other weights stay.
        """

        def read(answer: Any) -> Reply[None]:
            if field(answer, "success") is not True:
                raise EvaluationError("the server keeps prompts of other weights in its cache", kind="stale cache")
            return Reply(None)

        await self.client.ask("POST", "/pause?mode=wait", None, _read_anything, cached=False)
        try:
            yield
            await self.client.ask("POST", "/reset_prefix_cache", None, read, cached=False)
        finally:
            await self.client.ask("POST", "/resume", None, _read_anything, cached=False)

    async def reload(self, folder: str) -> None:
        """Have the workers load a checkpoint from a folder of theirs, by vLLM's own means."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        await self.client.ask("POST", "/collective_rpc", body, _read_anything, cached=False, parse=_parsed)

    async def name_weights(self, version: str) -> None:
        """Say what the weights are called."""
        body = {"new_version": version}
        await self.client.ask("POST", "/update_weight_version", body, _read_anything, cached=False)

    async def named_weights(self) -> str:
        """What the weights were called last."""

        def read(answer: Any) -> Reply[str]:
            return Reply(str(field(answer, "weight_version") or ""))

        return await self.client.ask("GET", "/weight_info", None, read, cached=False)

    async def _complete(self, body: dict[str, Any], read: Callable[[Any], Reply[T]], state: str, cached: bool) -> T:
        # The name of a loaded LoRA passes; what decides the answer is what was merged into it.
        lasting = {**body, "model": ""}
        return await self.client.ask(
            "POST", "/v1/completions", body, read, cached=cached, state=state, lasting_body=lasting
        )


def check_room(context: int, more: int) -> None:
    """Raises ``EvaluationError`` where a server that reads ``context`` tokens has no room for a prompt before them."""
    if more >= context:
        raise EvaluationError(
            f"{more} tokens are to follow the prompt, but the server reads {context} in all; start it with a larger "
            "--max-model-len",
            kind="too long",
        )


def _read_done(answer: Any) -> Reply[None]:
    if not isinstance(answer, str) or not answer.startswith("Success"):
        raise EvaluationError(f"the server did not take the LoRA: {str(answer)[:200]!r}", kind="lora")
    return Reply(None)


def refuse_old(version: str, whose: str) -> None:
    """Raises ``UserError`` for a vLLM whose weights cannot be changed while it runs."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if len(numbers) == 2 and numbers < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise UserError(f"backend.vllm: {whose} vLLM {version}; whole merges need {needed} or later")


def _parsed(text: str) -> Any:
    """JSON, or nothing where a route answers so."""
    return parse_json(text) if text.strip() else None


def _read_anything(answer: Any) -> Reply[None]:
    return Reply(None)


def _read_forced(answer: Any, token: int, prompt_tokens: int) -> Reply[LogLikelihood]:
    listed = field(answer, "choices", 0, "logprobs", kind=dict)
    chosen = field(listed, "tokens", 0, kind=str)
    if chosen != f"token_id:{token}":
        raise EvaluationError(f"the server chose {chosen!r} although token {token} was forced", kind="not forced")
    value = logprob(listed, "token_logprobs", 0)
    best = field(listed, "top_logprobs", 0, kind=dict)
    others = [other for name, other in best.items() if name != chosen and isinstance(other, (int, float))]
    read, generated = usage(answer)
    if read != prompt_tokens:
        raise EvaluationError(
            f"the server read {'?' if read is None else read} tokens where {prompt_tokens} were sent",
            kind="wrong prompt",
        )
    if not best:
        raise MalformedAnswerError("has an empty top_logprobs")
    return Reply(LogLikelihood(value, 1, all(value >= other for other in others)), read, generated)
