"""The moving picture of the README, made of a real run of the demo:

    pip install asciinema==2.4.0 && npm install svg-term-cli@2.1.1      (in folders of your own)
    asciinema rec --cols 100 --rows 34 -c "mergefront demo" demo.cast
    python tools/demo_film.py demo.cast --svg-term node_modules/.bin/svg-term

Every line is the run's own; only time is cut: training passes at once, a search takes six seconds, and results stay
long enough to be read.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

OUT = Path(__file__).parents[1] / "docs" / "images" / "demo.svg"
LINE, TRAINED, STEP, READ = 0.05, 0.7, 0.12, 6.0
"""Seconds: between lines of a table, between stages of training, of a redrawn bar, and to read a result."""
PAUSES = ("expert most", "1 best anchor).", "dashboard --storage")
"""After lines with these texts the picture rests, the last time that each appears."""
SHOW_CURSOR = "\x1b[?25h"
"""What a bar's last drawing has: the cursor, shown again below it."""
MOST_BYTES = 1_000_000


def film(text: str) -> list[tuple[float, str]]:
    """The recorded output as pieces, each at the second when the picture shows it."""
    shown, now = [(0.4, "\x1b[1;32m$\x1b[0m ")], 1.0
    for letter in "mergefront demo":
        shown.append((now, letter))
        now += 0.06
    shown.append((now + 0.4, "\r\n"))
    now += 0.6
    last = ""
    pieces = _pieces(text)
    rests = {max((i for i, part in enumerate(pieces) if one in part), default=-1) for one in PAUSES}
    for number, piece in enumerate(pieces):
        bar = re.search(r"(\d+)/\d+ evaluations", piece)
        if bar and bar[0] == last and SHOW_CURSOR not in piece:
            continue  # the same count, drawn anew for its clock; the drawing that ends the bar's line stays
        last = bar[0] if bar else ""
        shown.append((now, piece))
        now += STEP if bar else TRAINED if piece.startswith(("training", "writing", "A tiny")) else LINE
        now += READ if number in rests else 0.0
    return shown


def _pieces(text: str) -> list[str]:
    """The output line by line, each drawing of a bar whole; the recording may have cut it anywhere."""
    parts = re.split(r"(?=\r\x1b\[2K|\x1b\[\?25l)|(?<=\x1b\[\?25h)", text)
    drawn = re.compile(r"evaluations\x1b|\x1b\[2K")
    return [one for part in parts for one in ([part] if drawn.search(part) else re.findall(r"[^\n]*\n|[^\n]+$", part))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cast", type=Path)
    parser.add_argument("--svg-term", default="svg-term")
    arguments = parser.parse_args()
    header, *lines = arguments.cast.read_text(encoding="utf-8").splitlines()
    recorded = "".join(text for _, kind, text in map(json.loads, filter(None, lines)) if kind == "o")
    with tempfile.NamedTemporaryFile("w", suffix=".cast", encoding="utf-8") as cut:
        about = {key: json.loads(header)[key] for key in ("version", "width", "height")}
        cut.write(json.dumps(about) + "\n")
        cut.writelines(json.dumps([at, "o", text]) + "\n" for at, text in film(recorded))
        cut.flush()
        subprocess.run([arguments.svg_term, "--in", cut.name, "--out", str(OUT), "--window"], check=True)
    size = OUT.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{OUT} has {size} bytes, more than {MOST_BYTES}")
    print(f"{OUT}: {size} bytes")


if __name__ == "__main__":
    main()
