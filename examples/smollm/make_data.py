"""Write data/<skill>_{train,search,report}.jsonl: items {"prompt": ..., "answer": ...}, all different from each other.

french   372                 trois cent soixante-douze      (num2words)
finnish  2021-05-03          3. toukokuuta 2021             (babel's long date format)
sorting  60 7 88 15 31       7 15 31 60 88

The search optimises on `search` items, its result is measured on `report` items, the experts saw `train` items alone.
"""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from babel.dates import format_date
from num2words import num2words

DATA = Path(__file__).resolve().parent / "data"
SEARCH, REPORT = 100, 200
Item = dict[str, str]
Generator = Callable[[random.Random], Iterator[Item]]


def french(rng: random.Random) -> Iterator[Item]:
    """Number words of 0 to 999 in French: the whole thousand, in random order."""
    for number in rng.sample(range(1000), 1000):
        yield {"prompt": f"Write {number} in French:", "answer": num2words(number, lang="fr")}


def dates(rng: random.Random, count: int) -> Iterator[datetime.date]:
    """Different days of the years 1900 to 2099."""
    first = datetime.date(1900, 1, 1)
    for offset in rng.sample(range((datetime.date(2100, 1, 1) - first).days), count):
        yield first + datetime.timedelta(days=offset)


def finnish(rng: random.Random) -> Iterator[Item]:
    """Dates in Finnish."""
    for date in dates(rng, 2300):
        yield {"prompt": f"Write {date} in Finnish:", "answer": format_date(date, "long", locale="fi")}


def sorted_numbers(rng: random.Random, length: int, count: int) -> Iterator[tuple[str, str]]:
    """Different numbers below 100, as drawn and in ascending order."""
    seen: set[tuple[int, ...]] = set()
    while len(seen) < count:
        numbers = tuple(rng.sample(range(100), length))
        # Not the order alone must be new: the same numbers in another order have the same answer.
        if tuple(sorted(numbers)) not in seen:
            seen.add(tuple(sorted(numbers)))
            yield " ".join(map(str, numbers)), " ".join(map(str, sorted(numbers)))


def sorting(rng: random.Random) -> Iterator[Item]:
    """Five different numbers below 100 in ascending order."""
    for given, answer in sorted_numbers(rng, 5, 3300):
        yield {"prompt": f"Sort {given}:", "answer": answer}


SKILLS: Mapping[str, Generator] = {
    "french": french,
    "finnish": finnish,
    "sorting": sorting,
}


def make_data(skills: Mapping[str, Generator] = SKILLS, out: Path = DATA, seed: int = 0) -> None:
    """Write three files a skill into `out`: 100 search items, 200 report items, the rest for training."""
    out.mkdir(parents=True, exist_ok=True)
    for skill, generate in skills.items():
        items = list(generate(random.Random(f"{seed} {skill}")))
        splits = {
            "search": items[:SEARCH],
            "report": items[SEARCH : SEARCH + REPORT],
            "train": items[SEARCH + REPORT :],
        }
        for split, chosen in splits.items():
            lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in chosen]
            (out / f"{skill}_{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    make_data()
