"""Runs the notebooks of docs/notebooks and keeps their outputs: ``python tools/notebooks.py [NAME ...]``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"


def run(path: Path, folder: Path) -> Any:
    """A notebook as it is after it ran in ``folder``; raises ``CellExecutionError``."""
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return book


def main() -> None:
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if sys.argv[1:] and path.stem not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            book = run(path, Path(folder))
        for cell in book.cells:  # when it ran is no part of the document
            cell.metadata.pop("execution", None)
            if "outputs" in cell:  # warnings of this machine's libraries are none either
                cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        nbformat.write(book, path)
        print(path)


if __name__ == "__main__":
    main()
