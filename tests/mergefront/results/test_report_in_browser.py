"""The report page as a reader sees it: on a phone, on a dark screen, with candidates selected, in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import mergefront as mf
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.results.report.page import write_report

NAMES = ("maths", "code", "french")
PROBE = """<body style="margin: 0"><iframe src="report.html" width="420" height="900" style="border: 0"></iframe>
<pre id="found"></pre><script>
const frame = document.querySelector('iframe');
frame.onload = () => setTimeout(async () => {
  const run = frame.contentWindow.eval.bind(frame.contentWindow), found = {};
  found.width = run('document.documentElement.scrollWidth');
  found.page = run('getComputedStyle(document.body).backgroundColor');
  found.ink = run('pairs.layout.font.color');
  found.labels = run(`[...pairs.querySelectorAll('.textpoint text')].map(one => {
    const box = one.getBoundingClientRect(); return [box.left, box.top, box.right, box.bottom]; })`);
  found.anchors = run(`[...document.querySelectorAll('.shapelayer path')]
    .map(one => getComputedStyle(one).strokeWidth)`);
  found.trials = run('lines.layout.meta.trials');
  run(`pairs.emit('plotly_selected', {points: [{customdata: ${found.trials[1]}}]})`);
  found.highlighted = run('pairs.data.map(trace => trace.selectedpoints.map(k => trace.customdata[k]))');
  found.coloured = run('lines.data[0].line.color');
  await run(`Plotly.restyle(lines, {'dimensions[0].constraintrange': [[-1, 9]]})`);
  await new Promise(done => setTimeout(done, 500));
  found.within = run('new Set(pairs.data.flatMap(trace => trace.selectedpoints.map(k => trace.customdata[k]))).size');
  document.getElementById('found').textContent = JSON.stringify(found);
}, 2000);
</script></body>"""


def scores(recipe: Recipe) -> dict[str, float]:
    weights = [float(recipe.params[f"weight[{name}]"]) for name in NAMES]
    return {name: 0.3 + weight - 0.3 * sum(w**2 for w in weights) for name, weight in zip(NAMES, weights, strict=True)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on three objectives, and a page that looks at it through a frame as wide as a phone."""
    folder = tmp_path_factory.mktemp("seen")
    study = mf.search(
        space=MergeSpace(NAMES, method="task_arithmetic", parameters={"weight": [0, 1]}), evaluate=scores,
        objectives=list(NAMES), sampler="random", evaluations=24, name="seen", storage=f"sqlite:///{folder}/study.db",
        progress=False,
    )  # fmt: skip
    write_report(study, folder / "report.html")
    (folder / "probe.html").write_text(PROBE)
    return folder


def browser(folder: Path, *arguments: str) -> str:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no browser (apt-get install chromium)")
    command = [program, "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-sandbox"]
    command += [f"--user-data-dir={folder / 'browser'}", "--virtual-time-budget=8000", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder).stdout


@pytest.mark.long
def test_a_phone_with_a_dark_screen_shows_all_and_a_selection_is_shown_everywhere(folder: Path) -> None:
    address = (folder / "probe.html").as_uri()
    text = browser(folder, "--force-dark-mode", "--allow-file-access-from-files", "--dump-dom", address)
    shown = re.search(r'<pre id="found">(.*?)</pre>', text, re.DOTALL)
    assert shown is not None and shown[1], text[-2000:]
    found: dict[str, Any] = json.loads(shown[1])
    assert found["width"] <= 420, "the page scrolls sideways on a phone"
    assert (found["page"], found["ink"]) == ("rgb(21, 24, 28)", "#e4e7eb")
    boxes = found["labels"]
    assert len(boxes) > 3
    for index, (left, top, right, bottom) in enumerate(boxes):
        for a, b, c, d in boxes[:index]:
            assert right <= a + 1 or c <= left + 1 or bottom <= b + 1 or d <= top + 1, "two labels overlap"
    assert len(found["anchors"]) == 1 and float(found["anchors"][0].removesuffix("px")) > 0, "the anchors' hypervolume"
    chosen = found["trials"][1]
    assert {trial for trials in found["highlighted"] for trial in trials} == {chosen}
    assert [trial for trial, kind in zip(found["trials"], found["coloured"], strict=True) if kind] == [chosen]
    assert found["within"] == len(set(found["trials"])), "a range along an axis that holds all selects all"


@pytest.mark.long
def test_the_page_is_light_by_day_and_dark_by_night(folder: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    corners = []
    for name, arguments in (("day", ()), ("night", ("--force-dark-mode",))):
        address = (folder / "report.html").as_uri()
        browser(folder, *arguments, "--window-size=1000,1400", f"--screenshot={folder / name}.png", address)
        picture = image.open(folder / f"{name}.png").convert("L")
        corners.append(picture.getpixel((2, 2)))
        low, high = picture.getextrema()
        assert high - low > 150, "text and page differ"
    assert corners[0] > 240 and corners[1] < 40


@pytest.mark.long
def test_a_printed_report_shows_the_front_once_and_recipes_side_by_side(folder: Path) -> None:
    browser(folder, f"--print-to-pdf={folder / 'report.pdf'}", (folder / "report.html").as_uri())
    pages = re.findall(rb"/Type /Page\b", (folder / "report.pdf").read_bytes())
    assert 2 < len(pages) < 8
