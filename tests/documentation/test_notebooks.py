"""The notebooks of the documentation run from their first cell to their last, and keep the outputs of such a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from page_blocks import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_is_kept_with_its_outputs(path: Path) -> None:
    """A reader sees what comes out without running anything."""
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert len(outputs) > 1 and all(output["output_type"] != "error" for output in outputs)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    try:
        from notebooks import run

        run(path, tmp_path)
    finally:
        sys.modules.pop("notebooks", None)
