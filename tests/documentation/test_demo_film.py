"""The moving picture of the first page shows the lines that the recorded run printed."""

from __future__ import annotations

import pytest
from page_blocks import ROOT


def test_a_bar_is_drawn_over_itself_and_its_last_drawing_ends_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two recorded pieces may be halves of one drawing, so they are joined before."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import demo_film

    def drawing(count: int, clock: str, erase: str = "\r\x1b[2K\x1b[1A\x1b[2K") -> str:
        return f"{erase}\x1b[1m{count}/2 evaluations\x1b[0m {clock}\r\nbest {clock}"

    drawings = [drawing(1, "2 s", "\x1b[?25l"), drawing(1, "1 s"), drawing(2, "0 s"), drawing(2, "end")]
    shown = [
        piece for _, piece in demo_film.film("training\r\n" + "".join(drawings) + "\r\n\x1b[?25hReport\r\nDone\r\n")
    ]
    after = shown.index("training\r\n") + 1
    assert shown[after:] == [drawings[0], drawings[2], drawings[3] + "\r\n\x1b[?25h", "Report\r\n", "Done\r\n"]
