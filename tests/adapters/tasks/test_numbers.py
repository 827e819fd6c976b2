"""Numbers as people write them are read by one grammar, and what it cannot read is refused in an answer."""

from __future__ import annotations

import json
import string
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergefront.adapters.tasks.metrics.numbers import read_number, same_number
from mergefront.adapters.tasks.task_types import problems_of

READ: dict[str, str] = {
    "1234": "1234", "1,234": "1234", "1 234 habitants": "1234", "1\u202f234\u00a0€": "1234", "1'234": "1234",
    "1’234": "1234", "1_000": "1000", "12,34,567": "1234567", "1,234,567": "1234567", "1.234.567": "1234567",
    r"\boxed{4{,}200}": "4200", r"4\,200": "4200", r"4,\!200": "4200", "12 345 678,9": "123456789/10",
    "3.5": "7/2", "3,5": "7/2", ".5": "1/2", "$.50": "1/2", "1,234.5": "2469/2", "1.234,5": "2469/2",
    "0,234": "234/1000", "1234,567": "1234567/1000", "1.234": "1234/1000", "18.0": "18", "007": "7", "42.": "42",
    "1/2": "1/2", "7/8 or 9/10": "9/10", "3 1/2": "7/2", "½": "1/2", "3½": "7/2", "1⁄2": "1/2",
    r"\frac{1}{2}": "1/2", r"-\frac{1}{2}": "-1/2", r"3\frac12": "7/2", r"\dfrac{3}{4}": "3/4",
    "3e4": "30000", "1,234.5e1": "12345", "3 × 10^4": "30000", r"3 \times 10^{4}": "30000", r"10^{-4}": "1/10000",
    "10⁴": "10000", "5 million": "5000000", "1.5 Billion dollars": "1500000000",
    "It is –5": "-5", "−5": "-5", "(-5)": "-5", "x=-5": "-5", "-$5": "-5", "$-5": "-5", "-.5": "-1/2",
    "x = 10-7 = 3": "3", "between 10-15": "15", "10 - 7": "7", "a-5": "5", "5-": "5", "-3 to -5": "-5",
    "50%": "50", "$1,042.00": "1042", "5 m²": "5", "5 km/h": "5", "x^2 = 9": "9", "#### 72": "72", "3, 5": "5",
    "in 2020 500": "500", "１２３": "123", "٣٤": "34", "the answer is 5^2 = 25": "25", "Answer:30": "30",
}  # fmt: skip
UNREAD = [
    "none", "12:30", "1.2.3", "2024-05-06", "1/2/2024", "2^10", "(3+4)^2", "3π", r"3\pi", "√2", r"\sqrt{2}",
    r"2\sqrt{3}", "5 ± 2", "1e999999999", "9" * 200, "5/0", "1,23,4", "x^2", "x_{12}",
]  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_a_number_is_read_as_it_is_meant(text: str) -> None:
    assert read_number(text).value == Fraction(READ[text])
    assert read_number(f"First 17, then 3.\nSo it is {text}").value == Fraction(READ[text]), "the last number counts"


@pytest.mark.parametrize("text", UNREAD)
def test_what_is_no_single_number_is_not_read(text: str) -> None:
    """Half of it would be right by chance."""
    assert read_number(text).value is None


@pytest.mark.parametrize(
    ("answers", "text", "right"),
    [
        (["3,5"], "The result is 7,5", False),
        (["3,5"], "3.5", True),
        (["1/2"], "So it is 3/2", False),
        (["1/2"], "0.50", True),
        (["1/3"], "0.3333", False),
        (["1234"], "1,234", True),
        (["1234,5"], "1.234,50", True),
        (["1,5"], "1,500", True),
        (["1500"], "1,500", True),
        (["1500,5"], "1.500,5", True),
        (["5 million"], "5", False),
        (["5 million"], "5,000,000", True),
        (["4", "5"], "5.0", True),
        (["5"], "12:05", False),
    ],
)
def test_texts_are_compared_with_the_answers_own_way_of_writing(answers: list[str], text: str, right: bool) -> None:
    assert same_number(text, answers, 0.0) is right


def test_a_tolerance_is_exact() -> None:
    assert same_number("101", ["100"], 0.01) and not same_number("102", ["100"], 0.01)
    assert same_number("1/3", ["0.3333"], 0.001)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (["ten"], "has no number"),
        (["10-15"], "may be a range, a sum or a difference"),
        (["10 – 15"], "may be a range"),
        (["between 10 and 15"], "may be a range"),
        (["3 or 4"], "may be a range"),
        (["3+4"], "may be a range, a sum"),
        (["12:30"], "is not read as a number"),
        (["2^10"], "is not read as a number"),
        (["2024-05-06"], "is not read as a number"),
        (["4", "1,234", "ten"], "'ten' has no number"),
    ],
)
def test_an_answer_that_is_not_one_number_is_refused_with_its_line(
    tmp_path: Path, answers: list[str], said: str
) -> None:
    rows = [{"prompt": "a", "answer": "48 / 2 = 24, and 48 + 24 = 72"}, {"prompt": "b", "answer": answers}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (problem,) = problems_of({"type": "jsonl", "path": "rows.jsonl", "metric": "numeric"}, tmp_path)
    assert problem.startswith("rows.jsonl:2: ") and said in problem


@pytest.mark.parametrize(("other", "refused"), [("3,5", True), ("3.5", False), ("7", False)])
def test_one_comma_before_three_digits_is_refused_where_others_are_decimal(
    tmp_path: Path, other: str, refused: bool
) -> None:
    rows = [{"prompt": "a", "answer": other}, {"prompt": "b", "answer": "1,234"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    problems = problems_of({"type": "jsonl", "path": "rows.jsonl", "metric": "numeric"}, tmp_path)
    assert bool(problems) is refused and all("rows.jsonl:2: the answer '1,234'" in one for one in problems)


@given(st.text(alphabet=string.digits + ".,'- /^e{}\\π½²_:×$%\u00a0–", max_size=60), st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_text_breaks_the_reading(text: str, decimal_comma: bool) -> None:
    reading = read_number(text, decimal_comma)
    assert (reading.value is None) <= (reading.doubt != "")
