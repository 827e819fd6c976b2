"""A study's front as a file: PNG through matplotlib, HTML through plotly.

``picture`` collects what is to be seen as plain data; ``png`` and ``html`` only draw it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mergefront.optimizer.errors import UserError
from mergefront.results.plots.picture import picture

if TYPE_CHECKING:
    from mergefront.study.stored_study import Study

SUFFIXES = (".png", ".html")
_EXTRA = 'plots need the extra: pip install "mergefront[plots]"'


def save_front(study: Study, path: str | Path) -> Path:
    """Draw the front into ``path`` (``.png`` or self-contained ``.html``) and return the path.

    Raises ``UserError`` for another suffix, a missing folder, a missing extra, or nothing to draw.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"plot {path}: the suffix must be {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"plot {path}: the folder {path.parent} does not exist; create it first")
    shown = picture(study)
    if suffix == ".png":
        try:
            from mergefront.results.plots.png import write_png
        except ImportError:
            raise UserError(_EXTRA) from None
        write_png(shown, path)
    else:
        try:
            from mergefront.results.plots.html import write_html
        except ImportError:
            raise UserError(_EXTRA) from None
        write_html(shown, path)
    return path
