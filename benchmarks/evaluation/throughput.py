"""Scoring throughput against the LM evaluation harness' own Hugging Face model:

    python -m benchmarks.evaluation.throughput --model FOLDER [--items 24] [--examples 8] [--generate]

The same model, the same items, one after the other, several times in turn; both sides build their
requests beforehand. Answers and log-likelihoods are compared. Two kinds of items: questions with four
choices of several tokens, and lines of 1 to 12 words to copy, a greedy answer up to the line's end. ``--examples``
puts so many solved items before each, the same ones, as few-shot tasks do. The harness' model runs with each of
the batch sizes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergefront.adapters.language_model import GenerationRequest, ScoringRequest
from mergefront.adapters.local.model import HuggingFaceModel

WORDS = (
    "river", "stone", "garden", "engine", "window", "paper", "silver", "morning", "letter", "bridge", "forest",
    "winter", "candle", "market", "harbour", "copper",
)  # fmt: skip
BATCHES = (1, 16)
MOST_TOKENS = 32


def questions(count: int, rng: random.Random) -> list[tuple[str, list[str]]]:
    """Questions of 30 to 90 words with four answers of three to six words."""
    made = []
    for _ in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.randint(30, 90)))
        choices = [" " + " ".join(rng.choices(WORDS, k=rng.randint(3, 6))) for _ in range(4)]
        made.append((f"Passage: {text}\nQuestion: which words come next?\nAnswer:", choices))
    return made


def lines(count: int, rng: random.Random) -> list[str]:
    """Lines of 1 to 12 words."""
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(count)]


def asked_items(count: int, examples: int, generate: bool, rng: random.Random) -> list[tuple[str, list[str]]]:
    """Prompts with their choices (none where an answer is generated), after ``examples`` solved ones."""
    if generate:
        shots = "".join(f"Copy: {line}\nCopied: {line}\n\n" for line in lines(examples, rng))
        return [(f"{shots}Copy: {line}\nCopied:", []) for line in lines(count, rng)]
    shots = "".join(f"{text}{choices[0]}\n\n" for text, choices in questions(examples, rng))
    return [(shots + text, choices) for text, choices in questions(count, rng)]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    answer = call()
    return time.perf_counter() - begun, answer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation.throughput", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--examples", type=int, default=0, help="solved items before each one")
    parser.add_argument("--batches", type=int, nargs="*", default=list(BATCHES), help="batch sizes of the harness")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--generate", action="store_true", help="greedy answers instead of choices")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).eval()
    model.to(arguments.device)
    asked = asked_items(arguments.items, arguments.examples, arguments.generate, random.Random(0))
    theirs = {
        size: HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, backend="causal", device=arguments.device)
        for size in arguments.batches
    }
    ours = HuggingFaceModel(model, tokenizer)
    calls = _calls(ours, theirs, asked, arguments.generate)
    runs: dict[str, list[float]] = {name: [] for name in calls}
    answers: dict[str, Any] = {}
    for _ in range(arguments.repeats):
        for name, call in calls.items():
            seconds, answers[name] = timed(call)
            runs[name].append(seconds)
    own = answers["ours"]
    for name, seconds in runs.items():
        best = min(seconds)
        print(
            f"{name:18}  {arguments.items / best:6.2f} items/s (best of {len(seconds)}, "
            f"median {statistics.median(seconds):.2f} s)  {best / min(runs['ours']):.2f} x our time  "
            f"{_agreement(own, answers[name], arguments.generate)}"
        )


def _calls(
    ours: HuggingFaceModel, theirs: dict[int, HFLM], asked: list[tuple[str, list[str]]], generate: bool
) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    if generate:
        requests = [GenerationRequest(text, MOST_TOKENS, ("\n",)) for text, _ in asked]
        own, instances = partial(ours.generate, requests), _generations(asked)
        others = {size: partial(model.generate_until, instances, disable_tqdm=True) for size, model in theirs.items()}
    else:
        scoring = [ScoringRequest(text, one) for text, several in asked for one in several]
        own, instances = partial(ours.loglikelihood, scoring), _choices(asked)
        others = {size: partial(model.loglikelihood, instances, disable_tqdm=True) for size, model in theirs.items()}
    return {"ours": own, **{f"harness, batch {size}": call for size, call in others.items()}}


def _choices(asked: list[tuple[str, list[str]]]) -> list[Instance]:
    return [
        Instance("loglikelihood", {}, (text, one), number)
        for text, several in asked
        for number, one in enumerate(several)
    ]


def _generations(asked: list[tuple[str, list[str]]]) -> list[Instance]:
    settings = {"until": ["\n"], "max_gen_toks": MOST_TOKENS, "do_sample": False}
    return [Instance("generate_until", {}, (text, dict(settings)), 0) for text, _ in asked]


def _agreement(ours: Any, theirs: Any, generated: bool) -> str:
    if generated:
        texts = [one if isinstance(one, str) else one.text for one in theirs]
        same = sum(a.text.strip() == b.strip() for a, b in zip(ours, texts, strict=True))
        return f"{same} of {len(texts)} answers the same"
    values = [one[0] if isinstance(one, tuple) else one.logprob for one in theirs]
    gap = max(abs(a.logprob - b) for a, b in zip(ours, values, strict=True))
    chosen = [
        [max(range(4), key=lambda k, at=at, source=source: source[at + k]) for at in range(0, len(values), 4)]
        for source in ([one.logprob for one in ours], values)
    ]
    same = sum(a == b for a, b in zip(*chosen, strict=True))
    return f"{same} of {len(chosen[0])} choices the same, log-likelihoods within {gap:.1e}"


if __name__ == "__main__":
    main()
