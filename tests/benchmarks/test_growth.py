"""A table of costs that its command cannot make any more says nothing of this version."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.growth.__main__ import ROWS, line
from benchmarks.growth.rows import measured


@pytest.mark.parametrize("name", ["ask and tell, random sampler", "hypervolume after a trial, 8 objectives"])
def test_a_row_is_made_and_measured(name: str, tmp_path: Path) -> None:
    url, row = f"sqlite:///{tmp_path}/growth.db", ROWS[name]
    row.make(url, 14)
    ours = measured(row.ready(url))
    plain = measured(row.plain(url)) if row.plain else None
    shown = line(name, 14, ours, plain)
    assert shown.startswith(f"| {name} | 14 trials | ") and ours["MB"] > 0
    assert ("statements" in shown) is (plain is not None)
