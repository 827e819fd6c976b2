"""The examples for contributors are complete: each page's Python runs as one program, and its assertions hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_blocks import ROOT, blocks

PAGES = sorted((ROOT / "docs" / "contributing").glob("*.md"))


@pytest.mark.parametrize("page", [path.stem for path in PAGES])
def test_the_example_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    programs = blocks(f"docs/contributing/{page}.md", "python")
    assert "assert" in programs[-1]
    exec(compile("\n".join(programs), page, "exec"), {"__name__": page})
