"""Write data/<skill>_{train,search,report}.jsonl: ``python -m benchmarks.search.second_smollm.make_data``.

Every prompt shows one solved example, so that the base half knows what is asked:

words    47: forty-seven / 633:                      six hundred and thirty-three    (num2words)
german   1987-06-05: 5. Juni 1987 / 2073-09-02:      2. September 2073               (babel's long date format)
sorting  30 4 17: 4 17 30 / 87 69 8:                 8 69 87

The search items are committed; the others come out the same every time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from babel.dates import format_date
from make_data import Generator, Item, dates, make_data, sorted_numbers
from num2words import num2words

from benchmarks.search.second_smollm import FOLDER


def words(rng: random.Random) -> Iterator[Item]:
    """Number words of 0 to 999 in English; 47 is the example."""
    for number in rng.sample([number for number in range(1000) if number != 47], 999):
        yield {"prompt": f"47: forty-seven\n{number}:", "answer": num2words(number, lang="en")}


def german(rng: random.Random) -> Iterator[Item]:
    """Dates in German."""
    for date in dates(rng, 2300):
        yield {"prompt": f"1987-06-05: 5. Juni 1987\n{date}:", "answer": format_date(date, "long", locale="de")}


def sorting(rng: random.Random) -> Iterator[Item]:
    """Three different numbers below 100 in ascending order."""
    for given, answer in sorted_numbers(rng, 3, 2300):
        yield {"prompt": f"30 4 17: 4 17 30\n{given}:", "answer": answer}


SKILLS: Mapping[str, Generator] = {"words": words, "german": german, "sorting": sorting}


if __name__ == "__main__":
    make_data(SKILLS, FOLDER / "data")
