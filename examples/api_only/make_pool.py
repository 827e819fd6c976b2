"""Write the pool: `python make_pool.py [LORA ...]` trains loras/<name>/ and writes data/<target>_{search,report}.jsonl.

Two targets are the dates of a whole year in French and in German ("The date 05-03 in French:" -> "3 mai"). No LoRA
was trained on either: those of a language know a third of its months each, and that in other words ("Write 05-03 in
French:"). Others know French numbers, or Spanish dates in words; some have nothing to do with dates, and
two are noise of the same size.

The third target is measures in short ("Shorten forty-two kilometres:" -> "42 km"). Some LoRAs know four of the twelve
units each, beside digits ("Abbreviate 42 kilometres:"), and one reads numbers in words. None has seen both at once.
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
MODULES = ("q_proj", "v_proj", "o_proj", "down_proj")
PLAN = Plan(steps=60, modules=MODULES, first_block=18, replayed=0, dtype=torch.float32)
STEPS = {
    "french_numbers": 120,
    "spanish_words": 120,
    **{f"{kind}_units": 30 for kind in ("length", "mass", "time")},
    "units_in_full": 30,
}
"""Of the skills that take longer or less long to learn."""
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


def dates_of_a_year(language: str) -> list[Item]:
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


UNITS = {
    "length": {"kilometres": "km", "metres": "m", "centimetres": "cm", "millimetres": "mm"},
    "mass": {"tonnes": "t", "kilograms": "kg", "grams": "g", "milligrams": "mg"},
    "time": {"days": "d", "hours": "h", "minutes": "min", "seconds": "s"},
}
ALL_UNITS = {name: short for kind in UNITS.values() for name, short in kind.items()}
MEASURES = [(number, unit) for number in range(2, 100) for unit in ALL_UNITS]


def units(kind: str) -> Generator:
    def generate(rng: random.Random) -> Iterator[Item]:
        for number, unit in rng.sample(MEASURES, len(MEASURES)):
            if unit in UNITS[kind]:
                yield {"prompt": f"Abbreviate {number} {unit}:", "answer": f"{number} {ALL_UNITS[unit]}"}

    return generate


def units_in_full(rng: random.Random) -> Iterator[Item]:
    for number, unit in rng.sample(MEASURES, len(MEASURES)):
        yield {"prompt": f"Write {number} {ALL_UNITS[unit]} in full:", "answer": f"{number} {unit}"}


def number_words(language: str) -> Generator:
    def generate(rng: random.Random) -> Iterator[Item]:
        for number in rng.sample(range(1000), 1000):
            yield {"prompt": f"Write {num2words(number, lang=language)} in digits:", "answer": str(number)}

    return generate


def measures() -> list[Item]:
    """Numbers in words with a unit, in random order, to be written in short."""
    drawn = random.Random("0 units").sample(MEASURES, SEARCH + REPORT)
    return [
        {"prompt": f"Shorten {num2words(number, lang='en')} {unit}:", "answer": f"{number} {ALL_UNITS[unit]}"}
        for number, unit in drawn
    ]


THIRDS = {"early": range(1, 5), "middle": range(5, 9), "late": range(9, 13)}
RELATED: Mapping[str, Generator] = {
    **{f"french_{part}": dates("french", months) for part, months in THIRDS.items()},
    **{f"german_{part}": dates("german", months) for part, months in THIRDS.items()},
    "french_numbers": numbers("french"),
    "spanish_words": dates_in_words("spanish"),
    **{f"{kind}_units": units(kind) for kind in UNITS},
    "units_in_full": units_in_full,
    "english_digits": number_words("en"),
    "french_digits": number_words("fr"),
}
UNRELATED: Mapping[str, Generator] = {
    "doubling": doubling,
    "capitals": capitals,
}
NOISE = ("noise_a", "noise_b")
TARGETS: Mapping[str, Callable[[], list[Item]]] = {
    "french": lambda: dates_of_a_year("french"),
    "german": lambda: dates_of_a_year("german"),
    "units": measures,
}


def write_items(name: str, out: Path = HERE / "data") -> None:
    """Write a target's search and report items, all different from each other."""
    items = TARGETS[name]()
    out.mkdir(parents=True, exist_ok=True)
    for split, chosen in (("search", items[:SEARCH]), ("report", items[SEARCH : SEARCH + REPORT])):
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in chosen]
        (out / f"{name}_{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_noise(like: Path, out: Path, generator: torch.Generator) -> None:
    """Write a LoRA whose every tensor is normal noise of the same norm as that of the LoRA `like`."""
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
    for target in TARGETS:
        write_items(target)
    base = make_base()
    for name in chosen:
        if name in trained:
            items = list(islice(trained[name](random.Random(f"0 {name}")), MOST_ITEMS))
            train(name, replace(PLAN, steps=STEPS.get(name, PLAN.steps)), base, items, HERE / "loras" / name)
        else:
            generator = torch.Generator().manual_seed(sum(name.encode()))
            write_noise(HERE / "loras" / "french_numbers", HERE / "loras" / name, generator)


if __name__ == "__main__":
    main()
