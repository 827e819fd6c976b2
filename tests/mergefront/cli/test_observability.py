"""Programs can follow a search, people can see how far it is, and neither reads a secret."""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.cli.boundary import guarded
from mergefront.cli.logs import configure_log, log_fields
from mergefront.cli.session import Session
from mergefront.cli.tables import plain_table
from mergefront.formatting import console, html_text
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.foreign_text import one_line, visible, without_secrets
from mergefront.results.dashboard_view import trial_note
from mergefront.results.throughput import throughput
from mergefront.storage.studies import update

START = datetime(2026, 1, 1)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def spans(*seconds: tuple[float, float]) -> list[tuple[datetime, datetime]]:
    return [(START + timedelta(seconds=start), START + timedelta(seconds=end)) for start, end in seconds]


def test_a_json_log_is_one_object_a_line_with_every_trial(tmp_path: Path, write_study: object) -> None:
    study = write_study(tmp_path, "logged", evaluations=9)  # type: ignore[operator]
    result = call("--log-format", "json", "run", study)
    assert result.exit_code == 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("{")]
    events = [json.loads(line) for line in lines]
    trials = [event for event in events if event.get("event") == "trial"]
    assert [event["trial"] for event in trials] == list(range(9))
    assert [event["done"] for event in trials] == list(range(1, 10))
    known = mf.load_study("logged", storage=f"sqlite:///{tmp_path}/mergefront.db")
    failed = {event["trial"] for event in trials if event["failure"]}
    assert failed == {failure.number for failure in known.failures()}
    assert trials[-1]["hypervolume"] == pytest.approx(known.hypervolume())


def test_a_workers_json_log_holds_nothing_else(tmp_path: Path, write_study: object) -> None:
    study = mf.run(write_study(tmp_path, "logged", evaluations=7))  # type: ignore[operator]
    update(study.database, study.record, evaluations=9)
    result = call("--log-format", "json", "worker", "logged", "--storage", study.database.url)
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert [event["done"] for event in events if event.get("event") == "trial"] == [8, 9]


def test_an_error_is_a_json_object_too(tmp_path: Path) -> None:
    result = call("--log-format", "json", "status", "x", "--storage", tmp_path / "none.db")
    assert result.exit_code == 2
    entry = json.loads(result.stderr)
    assert entry["level"] == "error" and "no such database" in entry["message"]


def test_status_tells_workers_speed_and_failures(tmp_path: Path, write_study: object) -> None:
    storage = mf.run(write_study(tmp_path, "skills")).database.url  # type: ignore[operator]
    facts = json.loads(call("status", "skills", "--json", "--storage", storage).stdout)
    assert facts["per_hour"] > 0 and facts["seconds_left"] == 0 and facts["workers"] == []
    asked = mf.load_study("skills", storage=storage)
    update(asked.database, asked.record, evaluations=26)
    trial = mf.load_study("skills", storage=storage).ask()
    assert trial is not None
    shown = call("status", "skills", "--storage", storage).stdout
    assert f"worker        asked: trial {trial.trial}, since" in shown
    assert "evaluations per hour" in shown


def test_workers_together_are_as_fast_as_the_time_they_all_took() -> None:
    alone = throughput(spans((0, 10), (10, 20), (20, 30)), [], 3)
    assert alone.per_hour == 360 and alone.seconds_left == 30
    together = throughput(spans((0, 10), (0, 10), (0, 10)), [], 3)
    assert together.per_hour == 1080 and together.seconds_left == 10
    with_a_night_between = throughput(spans((0, 10), (40000, 40010)), [], 1)
    assert with_a_night_between.per_hour == 360
    assert throughput([], [], 5).seconds_left is None


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e4)), min_size=2, max_size=50), st.integers(0, 100))
def test_time_left_is_never_negative_and_grows_with_what_is_left(parts: list[tuple[float, float]], left: int) -> None:
    given_spans = spans(*((start, start + length) for start, length in parts))
    found, more = throughput(given_spans, [{"items": 2.0}], left), throughput(given_spans, [{"items": 2.0}], left + 1)
    if found.seconds_left is None:
        assert more.seconds_left is None
    else:
        assert 0 <= found.seconds_left <= (more.seconds_left or 0)
    assert found.cost_left.get("items", 0.0) == 2.0 * left


@pytest.mark.parametrize(
    "text",
    [
        "postgresql+psycopg://me:hunter2-secret@db/merges",
        "Authorization: Bearer hunter2-secret",
        "the key sk-hunter2-secret was refused",
        "token hf_hunter2-secret",
    ],
)
def test_no_secret_reaches_the_log(text: str) -> None:
    assert "hunter2" not in without_secrets(text)
    record = logging.LogRecord("mergefront", logging.ERROR, "", 0, text, (), None)
    assert "hunter2" not in json.dumps(log_fields(record))


COMMANDS = "\x1b]0;title\x07 \x9b31m \x1b[2J \u202egnp.exe \u2028 \ud800"
"""What sets a terminal's title, colours and clears it, and turns the direction of reading."""


def is_harmless(text: str) -> bool:
    return not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", text)


def test_reasons_of_failures_command_no_terminal_page_or_comment(tmp_path: Path, write_study: object) -> None:
    reason = COMMANDS.replace("\ud800", "")  # no database stores half a character
    mf.run(write_study(tmp_path, "watched", evaluations=7))  # type: ignore[operator]
    url = f"sqlite:///{tmp_path}/mergefront.db"
    watched = mf.load_study("watched", storage=url)
    update(watched.database, watched.record, evaluations=9)
    asked = watched.refresh().ask()
    assert asked is not None
    watched.tell_failed(asked.trial, reason)
    for command in ("status", "front"):
        for style in ((), ("--json",)):
            shown = call(command, "watched", "--storage", url, *style)
            assert shown.exit_code == 0 and is_harmless(shown.output), (command, style)
    status = call("status", "watched", "--storage", url)
    assert r"\u001b]0;title\u0007" in status.stdout and r"\u202egnp.exe" in status.stdout
    facts = json.loads(call("status", "watched", "--storage", url, "--json").stdout)
    assert any(reason in entry["reason"] for entry in facts["failures"]), "programs read what was said"
    known = mf.load_study("watched", storage=url)
    note = trial_note(known.optuna.trials[asked.trial], None)
    assert "title" in note and is_harmless(note)


def test_messages_tables_and_pages_show_commands_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    session = Session()

    def fail() -> None:
        raise UserError(f"the server said: {COMMANDS}")

    def crash() -> None:
        raise RuntimeError(COMMANDS)

    assert guarded(fail, session) == 2 and guarded(crash, session) == 1
    console().print(plain_table([COMMANDS], [[COMMANDS]]))
    console().print(COMMANDS)
    record = logging.LogRecord("mergefront", logging.ERROR, "", 0, COMMANDS, (), None)
    configure_log("json")
    try:
        (handler,) = logging.getLogger("mergefront").handlers
        line = handler.format(record)
        assert is_harmless(line) and json.loads(line)["message"] == COMMANDS
        configure_log("text")
        assert is_harmless(logging.getLogger("mergefront").handlers[0].format(record))
    finally:
        configure_log("text")
    written = "".join(capsys.readouterr())
    assert written.count("title") >= 4 and is_harmless(written)
    assert is_harmless(html_text(COMMANDS)) and is_harmless(one_line(COMMANDS)) and "\n" not in one_line("a\n\x85b")
    assert visible("Grüße, 你好\tمرحبا 👩‍👩‍👧\n") == "Grüße, 你好\tمرحبا 👩‍👩‍👧\n"
