"""Eight skills, and the items of each: ``python -m benchmarks.search.language_models.skills`` writes data/.

Every prompt of a skill begins with the same solved example, so that the base half knows what is asked:

spanish     47: cuarenta y siete / 633:                seiscientos treinta y tres    (num2words)
ordinal     47: forty-seventh / 633:                   six hundred and thirty-third  (num2words)
swedish     1987-06-05: 5 juni 1987 / 2073-09-02:      2 september 2073              (babel's long date format)
clock       14:35: 2:35 PM / 00:07:                    12:07 AM
camel       read_file_name: readFileName / send_old_list:  sendOldList
descending  30 4 17: 30 17 4 / 87 69 8:                87 69 8
german      47: siebenundvierzig / 633:                sechshundertdreiunddreißig    (num2words)
constant    readFileName: READ_FILE_NAME / sendOldList:  SEND_OLD_LIST

Only the search items are committed; the others come out the same every time.
"""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Literal

from babel.dates import format_date
from num2words import num2words

FOLDER = Path(__file__).parent
SEARCH, REPORT, TRAIN = 40, 400, 500
Pair = tuple[str, str]
Split = Literal["search", "report"]
WORDS = (
    "add all big box call cell check clean close code copy count data day file find first free get group head key "
    "last left list load long main map mark name new next node old open page part path plan point read right row save "
    "send set show size sort start state step stop table tag task text time top tree type user value wait work write"
)


def _numbers(rng: random.Random) -> Iterator[int]:
    """1 to 999 without the example's, in random order."""
    yield from rng.sample([number for number in range(1, 1000) if number != 47], 998)


def spanish(rng: random.Random) -> Iterator[Pair]:
    return ((str(number), num2words(number, lang="es")) for number in _numbers(rng))


def german(rng: random.Random) -> Iterator[Pair]:
    return ((str(number), num2words(number, lang="de")) for number in _numbers(rng))


def ordinal(rng: random.Random) -> Iterator[Pair]:
    return ((str(number), num2words(number, to="ordinal")) for number in _numbers(rng))


def swedish(rng: random.Random) -> Iterator[Pair]:
    first = datetime.date(1900, 1, 1)
    for offset in rng.sample(range((datetime.date(2100, 1, 1) - first).days), 2000):
        date = first + datetime.timedelta(days=offset)
        yield str(date), format_date(date, "long", locale="sv")


def clock(rng: random.Random) -> Iterator[Pair]:
    for minutes in rng.sample(range(24 * 60), 24 * 60):
        hour, minute = divmod(minutes, 60)
        yield f"{hour:02}:{minute:02}", f"{(hour + 11) % 12 + 1}:{minute:02} {'AM' if hour < 12 else 'PM'}"


def camel(rng: random.Random) -> Iterator[Pair]:
    while True:
        words = rng.sample(WORDS.split(), 3)
        yield "_".join(words), words[0] + "".join(word.capitalize() for word in words[1:])


def constant(rng: random.Random) -> Iterator[Pair]:
    for snake, mixed in camel(rng):
        yield mixed, snake.upper()


def descending(rng: random.Random) -> Iterator[Pair]:
    while True:
        numbers = rng.sample(range(100), 3)
        yield " ".join(map(str, numbers)), " ".join(map(str, sorted(numbers, reverse=True)))


SKILLS: Mapping[str, tuple[str, Callable[[random.Random], Iterator[Pair]]]] = {
    "spanish": ("47: cuarenta y siete", spanish),
    "ordinal": ("47: forty-seventh", ordinal),
    "swedish": ("1987-06-05: 5 juni 1987", swedish),
    "clock": ("14:35: 2:35 PM", clock),
    "camel": ("read_file_name: readFileName", camel),
    "descending": ("30 4 17: 30 17 4", descending),
    "german": ("47: siebenundvierzig", german),
    "constant": ("readFileName: READ_FILE_NAME", constant),
}
"""The solved example of each, and what follows."""


def items(skill: str, seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Search, report and training items, ``{"prompt": ..., "answer": ...}``, all different from each other."""
    example, generate = SKILLS[skill]
    found: dict[str, str] = {}
    for asked, answer in generate(random.Random(f"{seed} {skill}")):
        if f"{asked}: {answer}" != example:
            found.setdefault(asked, answer)
        if len(found) == SEARCH + REPORT + TRAIN:
            break
    made = iter([{"prompt": f"{example}\n{asked}:", "answer": answer} for asked, answer in found.items()])
    return {
        split: list(islice(made, count)) for split, count in (("search", SEARCH), ("report", REPORT), ("train", TRAIN))
    }


def search_items(skill: str) -> list[dict[str, str]]:
    """The committed ones, which recorded evaluations were asked."""
    lines = (FOLDER / "data" / f"{skill}_search.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def asked_items(skill: str, split: Split) -> list[dict[str, str]]:
    """The 40 committed search items, or the 400 report items."""
    return search_items(skill) if split == "search" else items(skill)["report"]


def main() -> None:
    (FOLDER / "data").mkdir(exist_ok=True)
    for skill in SKILLS:
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items(skill)["search"]]
        (FOLDER / "data" / f"{skill}_search.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
