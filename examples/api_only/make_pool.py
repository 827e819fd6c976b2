"""Write the pool: `python make_pool.py [LORA ...]` trains loras/<name>/ and writes data/<target>_{search,report}.jsonl.

The two targets are the dates of a whole year in French and in German ("The date 05-03 in French:" -> "3 mai"). No LoRA
was trained on either: those of a language know a third of its months each, and that in other words ("Write 05-03 in
French:"). Others know French numbers, or Spanish dates in words; some have nothing to do with dates, and
two are noise of the same size.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from babel.dates import format_date
from num2words import num2words
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "smollm"))

from make_base import make_base  # noqa: E402
from make_data import Item  # noqa: E402
from train_loras import Plan, train  # noqa: E402

LANGUAGES = {"french": "fr", "german": "de", "spanish": "es"}
DAYS = [datetime.date(2000, 1, 1) + datetime.timedelta(days=day) for day in range(366)]
SEARCH, REPORT = 64, 200
MOST_ITEMS = 400
PLAN = Plan(steps=60, modules=("q_proj", "v_proj", "o_proj", "down_proj"), first_block=18, replayed=0)
STEPS = {"french_numbers": 120, "spanish_words": 120}
"""Of the skills that take longer to learn."""
Generator = Callable[[random.Random], Iterator[Item]]


def numbers(language: str) -> Generator:
    def generate(rng: random.Random) -> Iterator[Item]:
        for number in rng.sample(range(1000), 1000):
            words = num2words(number, lang=LANGUAGES[language])
            yield {"prompt": f"Write {number} in {language.title()} words:", "answer": words}

    return generate


def answer(date: datetime.date, language: str, in_words: bool = False) -> str:
    """Day and month; babel writes the month."""
    code = LANGUAGES[language]
    day = num2words(date.day, lang=code) if in_words else str(date.day)
    return f"{day} {format_date(date, 'MMMM', locale=code)}"


def dates(language: str, months: range) -> Generator:
    def generate(rng: random.Random) -> Iterator[Item]:
        for date in rng.sample(DAYS, len(DAYS)):
            if date.month in months:
                yield {"prompt": f"Write {date:%m-%d} in {language.title()}:", "answer": answer(date, language)}

    return generate


def dates_in_words(language: str) -> Generator:
    def generate(rng: random.Random) -> Iterator[Item]:
        for date in rng.sample(DAYS, len(DAYS)):
            prompt = f"Write {date:%m-%d} in {language.title()} words:"
            yield {"prompt": prompt, "answer": answer(date, language, in_words=True)}

    return generate


def target(language: str) -> list[Item]:
    """The dates of a leap year, in random order, in words that no LoRA has read."""
    drawn = random.Random(f"0 {language}").sample(DAYS, len(DAYS))
    name = language.title()
    return [{"prompt": f"The date {date:%m-%d} in {name}:", "answer": answer(date, language)} for date in drawn]


def doubling(rng: random.Random) -> Iterator[Item]:
    for number in rng.sample(range(1000), 1000):
        yield {"prompt": f"Double {number}:", "answer": str(2 * number)}


def capitals(rng: random.Random) -> Iterator[Item]:
    for number in rng.sample(range(1000), 1000):
        words = num2words(number, lang="en")
        yield {"prompt": f"Write {words} in capitals:", "answer": words.upper()}


THIRDS = {"early": range(1, 5), "middle": range(5, 9), "late": range(9, 13)}
RELATED: Mapping[str, Generator] = {
    **{f"french_{part}": dates("french", months) for part, months in THIRDS.items()},
    **{f"german_{part}": dates("german", months) for part, months in THIRDS.items()},
    "french_numbers": numbers("french"),
    "spanish_words": dates_in_words("spanish"),
}
UNRELATED: Mapping[str, Generator] = {
    "doubling": doubling,
    "capitals": capitals,
}
NOISE = ("noise_a", "noise_b")
TARGETS = ("french", "german")


def write_items(language: str, out: Path = HERE / "data") -> None:
    """Write a target's search and report items, all different from each other."""
    items = target(language)
    out.mkdir(parents=True, exist_ok=True)
    for split, chosen in (("search", items[:SEARCH]), ("report", items[SEARCH : SEARCH + REPORT])):
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in chosen]
        (out / f"{language}_{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_noise(name: str, like: Path, out: Path) -> None:
    """Write a LoRA whose every tensor is normal noise of the same norm as that of the LoRA `like`."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    tensors = {}
    for key, tensor in sorted(load_file(like / "adapter_model.safetensors").items()):
        drawn = torch.randn(tensor.shape, generator=generator)
        tensors[key] = (drawn * (tensor.float().norm() / drawn.norm())).to(tensor.dtype)
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "adapter_config.json").write_text((like / "adapter_config.json").read_text(encoding="utf-8"))


def main() -> None:
    trained = {**RELATED, **UNRELATED}
    names = [*trained, *NOISE]
    parser = argparse.ArgumentParser(description=f"Write the items and the LoRAs: {', '.join(names)}.")
    parser.add_argument("loras", nargs="*", metavar="LORA", help="which (default: all)")
    chosen = parser.parse_args().loras or names
    if unknown := sorted(set(chosen) - set(names)):
        parser.error(f"no such LoRA: {', '.join(unknown)}; there are {', '.join(names)}")
    for language in TARGETS:
        write_items(language)
    base = make_base()
    for name in chosen:
        if name in trained:
            items = list(islice(trained[name](random.Random(f"0 {name}")), MOST_ITEMS))
            train(name, replace(PLAN, steps=STEPS.get(name, PLAN.steps)), base, items, HERE / "loras" / name)
        else:
            write_noise(name, HERE / "loras" / "french_numbers", HERE / "loras" / name)


if __name__ == "__main__":
    main()
