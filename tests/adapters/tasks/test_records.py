"""Data as others have it becomes items: Parquet, and columns of other names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mergefront.adapters.tasks.task_types import build_task, problems_of

ROWS = [
    {
        "question": f"What is {n}?",
        "choices": {"text": [f"number {n}", f"letter {n}"], "label": ["A", "B"]},
        "right": n % 2,
        "prompt": "unused",
    }
    for n in range(6)
]
FIELDS = {"prompt": "{question}\nA. {choices.text.0}\nAnswer:", "choices": "choices.text", "answer": "right"}


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    files.write_table(pyarrow.Table.from_pylist(rows), path)
    return path.name


def test_parquet_and_json_lines_hold_the_same_items(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    names = ["rows.jsonl", parquet(tmp_path / "rows.parquet", ROWS)]
    config = {"type": "jsonl", "metric": "loglikelihood", "fields": FIELDS}
    tasks = [build_task("t", {**config, "path": name}, tmp_path) for name in names]
    assert tasks[0].items("search") == tasks[1].items("search")
    first = min((item for split in ("search", "report") for item in tasks[1].items(split)), key=lambda one: one.prompt)
    assert first.prompt == "What is 0?\nA. number 0\nAnswer:"
    assert (first.choices, first.right) == (("number 0", "letter 0"), (0,))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": "{qestion}", "answer": "right"}, "rows.parquet:1: has no column 'qestion'; its columns are"),
        ({"prompt": "{choices}", "answer": "right"}, "'choices' is no text or number, which a template needs"),
        ({"prompt": "question", "answer": "choices.text.7"}, "has no column 'choices.text.7'"),
        ({"promt": "question"}, "promt"),
        ({}, "keys of items by column, such as {prompt: question, answer: answer}"),
    ],
)
def test_a_column_that_is_not_there_is_named(tmp_path: Path, fields: dict[str, str], said: str) -> None:
    path = parquet(tmp_path / "rows.parquet", ROWS)
    problems = problems_of({"type": "jsonl", "path": path, "metric": "exact_match", "fields": fields}, tmp_path)
    assert said in problems[0]


def test_what_is_no_parquet_is_said(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "rows.parquet").write_text("{}")
    (problem,) = problems_of({"type": "jsonl", "path": "rows.parquet", "metric": "loss"}, tmp_path)
    assert problem.startswith("rows.parquet: cannot be read (no Parquet file: ")
