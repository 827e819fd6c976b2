"""A study's front as a file: PNG through matplotlib, HTML through plotly.

``picture`` collects what is to be seen as plain data; ``png`` and ``html`` only draw it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mergefront.optimizer.errors import UserError
from mergefront.results.plots.picture import Picture, picture

if TYPE_CHECKING:
    from mergefront.study.stored_study import Study

SUFFIXES = (".png", ".html")
_EXTRA = 'plots need the extra: pip install "mergefront[plots]"'


def checked_path(path: str | Path, kind: str, suffixes: Sequence[str]) -> Path:
    """A path that a file of one of these kinds can be written to; raises ``UserError``."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{kind} {path}: the name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise UserError(f"{kind} {path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{kind} {path}: it cannot be written; name a file in a folder that is yours")
    return path


def save_front(study: Study, path: str | Path) -> Path:
    """Draw the front into ``path`` (``.png`` or self-contained ``.html``) and return the path.

    Raises ``UserError`` for another suffix, a missing folder, a missing extra, or nothing to draw.
    """
    path = checked_path(path, "plot", SUFFIXES)
    save_picture(picture(study), path)
    return path


def save_picture(shown: Picture, path: Path) -> None:
    """Draw a picture into ``path``; raises ``UserError`` for a missing extra."""
    try:
        if path.suffix.lower() == ".png":
            from mergefront.results.plots.png import write_png as write
        else:
            from mergefront.results.plots.html import write_html as write
    except ImportError:
        raise UserError(_EXTRA) from None
    write(shown, path)
