"""Commands that read or tell a study start at once: they import neither samplers nor what evaluates."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner
from small_study import small_study

import mergefront as mf
from mergefront.cli.application import cli

OTHERS = """
click moocore numpy optuna pydantic rich sqlalchemy yaml
annotated_types colorama colorlog greenlet packaging platformdirs pydantic_core pygments tqdm
typing_extensions typing_inspection
"""
"""All that may be loaded beside Python's own modules: eight packages, and what these import themselves."""
ROOMS = """
adapters.hub cli formatting results storage study versions
optimizer.arrays optimizer.errors optimizer.foreign_text optimizer.racing optimizer.recipes optimizer.samplers.lazy
optimizer.scores optimizer.search optimizer.sections optimizer.seeding
"""
PROGRAM = """
import json, pathlib, sys
from mergefront.cli.application import cli

for command in (["status", "told"], ["front", "told"], ["studies"], ["tell", "told", "0", "maths=0.5", "french=0.5"]):
    assert cli.main([*command, "--storage", sys.argv[1]], standalone_mode=False) == 0, command
loaded = {name: str(getattr(module, "__file__", None)) for name, module in sys.modules.items()}
pathlib.Path(sys.argv[2]).write_text(json.dumps(loaded))
"""


def test_reading_and_telling_import_what_they_need_and_no_more(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = mf.create(_study_file(tmp_path, url))
    for place in range(7):
        asked = study.ask()
        assert asked is not None
        if place:
            # Right-or-wrong items, and scores with a standard error: both are compared with the anchors.
            maths = {str(item): float(item < 4 * place) for item in range(40)}
            error = {"french": 0.01}
            study.tell(asked.trial, {"french": 1 - place / 9}, standard_errors=error, items={"maths": maths})
    out = tmp_path / "loaded.json"
    subprocess.run([sys.executable, "-c", PROGRAM, url, str(out)], check=True, stdout=subprocess.DEVNULL)
    loaded: dict[str, str] = json.loads(out.read_text())
    others = {name.partition(".")[0] for name, file in loaded.items() if "site-packages" in file}
    assert {name for name in others if not name.startswith("_")} <= set(OTHERS.split())
    own = {name for name in loaded if name.startswith("mergefront.")}
    files = own - {name.rpartition(".")[0] for name in own}
    rooms = tuple(f"mergefront.{room}." for room in ROOMS.split())
    assert [name for name in files if not f"{name}.".startswith(rooms)] == []


def test_the_footer_of_a_front_is_a_command_that_runs_as_it_is(tmp_path: Path) -> None:
    study = small_study(f"sqlite:///{tmp_path}/study.db")
    shown = CliRunner().invoke(cli, ["front", study.name, "--storage", study.database.url], env={"COLUMNS": "200"})
    said = " ".join(shown.stdout.split())
    command = said.partition("in full: mergefront ")[2].partition(" --json")[0]
    assert shlex.split(command) == ["front", study.name, "--storage", study.database.url]


def _study_file(folder: Path, url: str) -> Path:
    path = folder / "told.yaml"
    content = {
        "study": "told",
        "storage": url,
        "merge": {"method": "ties", "models": ["maths", "french"], "space": {"weight": [0, 1]}},
        "backend": {"type": "external"},
        "objectives": ["maths", "french"],
        "search": {"sampler": "mm-mo", "evaluations": 12},
    }
    path.write_text(json.dumps(content))
    return path
