"""What only a real process shows: signals, pipes, what gets imported, the dashboard's server."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import mergefront as mf

MERGEFRONT = [sys.executable, "-m", "mergefront"]
HEAVY = ("torch", "optuna", "sqlalchemy", "pydantic", "rich", "httpx", "numpy", "transformers", "matplotlib", "plotly")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from mergefront.cli.application import cli\n"
        "assert cli.main(['--help'], standalone_mode=False) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "export" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


WAITING = """
import itertools, pathlib, time
numbers = itertools.count(1)

def wait_in_the_fifth():
    while next(numbers) == 5 and not pathlib.Path("goes on").exists():
        time.sleep(120)
"""


@pytest.mark.cases(1)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_is_finished_and_its_own_hint_continues_it(
    number: signal.Signals, tmp_path: Path, write_study
) -> None:
    study = write_study(tmp_path, evaluations=9)
    scoring = tmp_path / "cli_scoring.py"
    scoring.write_text(scoring.read_text().replace("tasks = {}", "wait_in_the_fifth(); tasks = {}") + WAITING)
    environment = {key: value for key, value in os.environ.items() if key != "MERGEFRONT_STORAGE"}
    process = subprocess.Popen([*MERGEFRONT, "run", str(study)], cwd=tmp_path, env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[4/9]"):
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "of 9 evaluations are kept" in errors
    (tmp_path / "goes on").touch()
    hint = next(line.strip() for line in errors.splitlines() if line.strip().startswith("mergefront resume"))
    resumed = subprocess.run([*MERGEFRONT, *shlex.split(hint)[1:]], cwd=tmp_path, env=environment, capture_output=True,
                             text=True, timeout=120)  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    finished = mf.load_study("skills", storage=f"sqlite:///{tmp_path}/mergefront.db")
    assert finished.finished_count() == 9
    assert [trial.number for trial in finished.optuna.trials] == list(range(9))


def test_a_reader_that_goes_away_is_no_error_message(storage: str) -> None:
    command = f"{shlex.join([*MERGEFRONT, 'front', 'three', '--json', '--storage', storage])} | head -c 5"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert result.stdout == '{\n  "'[:5]
    assert result.stderr == ""


def test_a_terminal_without_unicode_still_gets_the_front(storage: str) -> None:
    result = subprocess.run([*MERGEFRONT, "front", "skills", "--storage", storage], capture_output=True, timeout=60,
                            env={**os.environ, "PYTHONIOENCODING": "ascii"})  # fmt: skip
    assert result.returncode == 0 and b"expert maths" in result.stdout


@pytest.mark.long
def test_dashboard_serves_the_studies_on_loopback_and_ends_on_a_signal(storage: str) -> None:
    pytest.importorskip("optuna_dashboard")
    process = subprocess.Popen([*MERGEFRONT, "dashboard", "--storage", storage, "--port", "0"], text=True,
                               stderr=subprocess.PIPE)  # fmt: skip
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        url = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
        with urllib.request.urlopen(f"{url}api/studies", timeout=30) as answer:
            listed = answer.read().decode()
        assert "skills" in listed and "three" in listed
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(f"{url}api/studies", headers={"Host": "evil.example"}))
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.returncode in (0, 130)
    finally:
        process.kill()
        process.wait()
