"""A canary for llama.cpp's server: is it honest about LoRA scales?

A server can answer 200 with the log-probabilities of another merge: its prompt cache survives a change of
scales, and malformed scales count as 0. So one prompt is asked before anything is scored: under two scale vectors
without any cache, and then alternating between them with the cache settings of the search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergefront.adapters.remote.identity import Distribution, difference
from mergefront.adapters.remote.llama_server.wire import LlamaWire
from mergefront.optimizer.errors import UserError

TEXT = (
    "Answer in one word. The capital of France is Paris. Sort 31 25 74: 25 31 74. Write 7 in words: seven. "
    "2 + 2 = 4. A dog is an animal. Yesterday it rained, today the"
)
OTHER_TEXT = "Once upon a time there was a small village by the sea where"
TOP = 20


@dataclass(frozen=True)
class CanaryReport:
    """``fingerprint`` has the distribution under no LoRA and under each one alone: it tells models apart."""

    fingerprint: tuple[Distribution, ...]
    scale: float
    distance: float
    error: float


async def run_canary(wire: LlamaWire, loras: Mapping[str, int], *, prompt_cache: bool) -> CanaryReport:
    """Ask and compare; raises ``UserError`` that says what is wrong with the server and what would mend it.

    ``loras`` maps names to the server's ids. About ``len(loras) + 10`` short requests.
    """
    prompt = await wire.tokenize(TEXT, True)
    other = await wire.tokenize(OTHER_TEXT, True)

    async def ask(tokens: Sequence[int], scales: Mapping[int, float], cache: bool) -> Distribution:
        if not wire.per_request:
            await wire.set_global(scales)
        answer = await wire.complete(tokens, scales, tokens=1, top=TOP, prompt_cache=cache, cached=False)
        if not answer.tokens:
            raise UserError("canary: the server gave no log-probabilities (n_probs); is it llama.cpp's server?")
        return answer.tokens[0].top

    ids = list(loras.values())
    nothing = dict.fromkeys(ids, 0.0)
    base = await ask(prompt, nothing, False)
    fingerprint = [base]
    for name, lora in loras.items():
        alone = await ask(prompt, {**nothing, lora: 1.0}, False)
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
        truth_one, truth_two = await ask(prompt, one, False), await ask(prompt, two, False)
        distance = difference(truth_one, truth_two)
        if distance > 0.5 or scale > 64:
            break
        scale *= 2
    # There and back, and by way of another prompt: the second visits are where stale caches show.
    error = 0.0
    for tokens, scales, truth in (
        (prompt, one, truth_one),
        (prompt, two, truth_two),
        (other, two, None),
        (other, one, None),
        (prompt, one, truth_one),
        (other, two, None),
        (prompt, two, truth_two),
    ):
        answer = await ask(tokens, scales, prompt_cache)
        if truth is not None:
            error = max(error, difference(truth, answer))
    if error > 0.1 * distance:
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
