"""A canary for llama.cpp's server: is it honest about LoRA scales?

A server can answer 200 with the log-probabilities of another merge: its prompt cache survives a change of
scales, and malformed scales count as 0. So it is asked before anything is scored what scoring asks: prompts that grow
by a token and share their beginnings, under two scale vectors without any cache, and then alternating between them with
the cache settings of the search. With a prompt cache they are more prompts than the server has slots, so that slots
change hands: what they held goes into the server's memory and comes back under other scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergefront.adapters.remote.http.client import all_of
from mergefront.adapters.remote.identity import STRAYED, Distribution, difference
from mergefront.adapters.remote.llama_server.wire import LlamaWire
from mergefront.optimizer.errors import UserError

TEXT = (
    "Answer in one word. The capital of France is Paris. Sort 31 25 74: 25 31 74. Write 7 in words: seven. "
    "2 + 2 = 4. A dog is an animal. Yesterday it rained, today the"
)
TOP = 20
GROWTH = 3
"""Tokens by which each prompt grows where the server may keep prompts."""


@dataclass(frozen=True)
class CanaryReport:
    """``fingerprint`` has the distribution under no LoRA and under each one alone: it tells models apart."""

    fingerprint: tuple[Distribution, ...]
    scale: float
    distance: float
    error: float


async def run_canary(wire: LlamaWire, loras: Mapping[str, int], *, slots: int, prompt_cache: bool) -> CanaryReport:
    """Ask and compare; raises ``UserError`` that says what is wrong with the server and what would mend it.

    ``loras`` maps names to the server's ids, ``slots`` is how many prompts it reads at once. About ``len(loras) + 20``
    short requests; with a prompt cache 24 more for each slot.
    """
    prompt = await wire.tokenize(TEXT, True, cached=False)
    number, growth = (slots + 1, GROWTH) if prompt_cache else (2, 1)
    texts = [f"Question: {12 + 29 * n} + 13 = ?\nAnswer: {25 + 29 * n}" for n in range(number)]
    questions = [await wire.tokenize(text, True, cached=False) for text in texts]

    async def ask(tokens: Sequence[int], scales: Mapping[int, float], cache: bool) -> Distribution:
        answer = await wire.complete(tokens, scales, tokens=1, top=TOP, prompt_cache=cache, cached=False)
        if not answer.tokens:
            raise UserError("canary: the server gave no log-probabilities (n_probs); is it llama.cpp's server?")
        return answer.tokens[0].top

    async def ask_growing(tokens: Sequence[int], scales: Mapping[int, float], cache: bool) -> list[Distribution]:
        return [await ask(tokens[: len(tokens) - shorter], scales, cache) for shorter in range(growth - 1, -1, -1)]

    async def ask_all(scales: Mapping[int, float], cache: bool, at_once: bool = False) -> list[Distribution]:
        await apply(scales)
        work = (ask_growing(tokens, scales, cache) for tokens in questions)
        answers = await all_of(work) if at_once else [await one for one in work]
        return [one for several in answers for one in several]

    async def apply(scales: Mapping[int, float]) -> None:
        if not wire.per_request:
            await wire.set_global(scales)

    async def ask_one(scales: Mapping[int, float]) -> Distribution:
        await apply(scales)
        return await ask(prompt, scales, False)

    ids = list(loras.values())
    nothing = dict.fromkeys(ids, 0.0)
    base = await ask_one(nothing)
    fingerprint = [base]
    for name, lora in loras.items():
        alone = await ask_one({**nothing, lora: 1.0})
        if difference(base, alone) == 0.0:
            raise UserError(
                f"canary: LoRA {name!r} changes nothing at scale 1: the server ignores its scale, or the LoRA is "
                "untrained"
            )
        fingerprint.append(alone)
    if not ids:
        return CanaryReport(tuple(fingerprint), 0.0, 0.0, 0.0)
    scale = 2.0 / len(ids)
    while True:
        one = {lora: scale if place % 2 else -scale for place, lora in enumerate(ids)}
        two = {lora: -value / 2 for lora, value in one.items()}
        if difference(await ask_one(one), await ask_one(two)) > 0.5 or scale > 64:
            break
        scale *= 2
    truths = [await ask_all(one, False, True), await ask_all(two, False, True)]
    distance = max(map(difference, *truths))
    # There and back: the second visits are where stale caches show.
    error = 0.0
    for visit in range(8 if prompt_cache else 4):
        answers = await ask_all((one, two)[visit % 2], prompt_cache, at_once=visit >= 4)
        error = max(error, *map(difference, truths[visit % 2], answers))
    if error > STRAYED * distance:
        remedy = (
            "set prompt_cache: false"
            if prompt_cache
            else "put no cache between here and the server, and let nobody else use it"
        )
        raise UserError(
            f"canary: after a change of LoRA scales the server answered with log-probabilities of another merge "
            f"(off by {error:.2g} nats, where the two merges differ by {distance:.2g}): it reuses prompts that it read "
            f"under other scales. Start it with --cache-ram 0 and use scales: request, or {remedy}"
        )
    return CanaryReport(tuple(fingerprint), scale, distance, error)
