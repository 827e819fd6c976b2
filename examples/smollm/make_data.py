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
from collections.abc import Callable, Iterator
from pathlib import Path

from babel.dates import format_date
from num2words import num2words

DATA = Path(__file__).resolve().parent / "data"
SEARCH, REPORT = 100, 200
Item = dict[str, str]


def french(rng: random.Random) -> Iterator[Item]:
    """Number words of 0 to 999 in French: the whole thousand, in random order."""
    for number in rng.sample(range(1000), 1000):
        yield {"prompt": f"Write {number} in French:", "answer": num2words(number, lang="fr")}


def finnish(rng: random.Random) -> Iterator[Item]:
    """Dates of the years 1900 to 2099 in Finnish."""
    first = datetime.date(1900, 1, 1)
    days = (datetime.date(2100, 1, 1) - first).days
    for offset in rng.sample(range(days), 2300):
        date = first + datetime.timedelta(days=offset)
        yield {"prompt": f"Write {date} in Finnish:", "answer": format_date(date, "long", locale="fi")}


def sorting(rng: random.Random) -> Iterator[Item]:
    """Five different numbers below 100 in ascending order."""
    seen: set[tuple[int, ...]] = set()
    while len(seen) < 3300:
        numbers = tuple(rng.sample(range(100), 5))
        # Not the order alone must be new: the same five numbers in another order have the same answer.
        if tuple(sorted(numbers)) not in seen:
            seen.add(tuple(sorted(numbers)))
            yield {"prompt": f"Sort {' '.join(map(str, numbers))}:", "answer": " ".join(map(str, sorted(numbers)))}


SKILLS: dict[str, Callable[[random.Random], Iterator[Item]]] = {
    "french": french,
    "finnish": finnish,
    "sorting": sorting,
}


def make_data(out: Path = DATA, seed: int = 0) -> None:
    """Write the nine files into `out`: 100 search items and 200 report items a skill, the rest for training."""
    out.mkdir(parents=True, exist_ok=True)
    for skill, generate in SKILLS.items():
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
