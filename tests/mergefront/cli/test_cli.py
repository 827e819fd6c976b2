"""The command line's promises: what it prints where, what it refuses, and with which exit code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.cli.boundary import guarded
from mergefront.cli.session import Session, shown_storage, storage_argument
from mergefront.cli.tables import step_lines
from mergefront.formatting import coefficients
from mergefront.optimizer.errors import MergefrontError, SearchStoppedError, UserError
from mergefront.serving.dashboard import only_from_here

DOCS = Path(__file__).parents[3] / "docs" / "reference" / "cli"


def call(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], env=env)


def test_run_searches_logs_to_stderr_and_prints_the_front(tmp_path: Path, write_study) -> None:
    study = write_study(tmp_path, evaluations=10)
    result = call("run", study)
    assert result.exit_code == 0, result.output
    assert "[10/10] trial 9" in result.stderr and "[10/10]" not in result.stdout
    assert "expert maths" in result.stdout and "±" in result.stdout and "hypervolume" in result.stdout
    assert f"mergefront front skills --storage sqlite:///{tmp_path}/mergefront.db --plot" in result.stderr
    export = next(line for line in result.stderr.splitlines() if "mergefront export" in line)
    assert "--config-only" in export, "the study knows its models by name only"

    again = call("run", study, "--evaluations", 12)
    assert again.exit_code == 0
    assert "[11/12]" in again.stderr and "[10/12]" not in again.stderr

    resumed = call("resume", "skills", "--storage", tmp_path / "mergefront.db", "--evaluations", 13)
    assert resumed.exit_code == 0 and "[13/13]" in resumed.stderr


def test_a_front_says_which_mixtures_of_data_its_merges_stand_for(tmp_path: Path, write_study) -> None:
    study = write_study(tmp_path, evaluations=9, method="linear")
    content = re.sub(r"space: \{[^}]*\}", "space: {simplex: true}", study.read_text())
    assert "simplex" in content
    study.write_text(content)
    assert call("run", study).exit_code == 0
    where = ("front", "skills", "--storage", tmp_path / "mergefront.db")
    shown = json.loads(call(*where, "--mixture", "--json").stdout)
    by_trial = {entry["trial"]: entry["params"] for entry in shown["front"]}
    assert shown["mixtures"] and any(len(set(entry["percent"].values())) == 2 for entry in shown["mixtures"])
    for entry in shown["mixtures"]:
        assert sum(entry["percent"].values()) == pytest.approx(100)
        assert entry["percent"]["maths"] == pytest.approx(100 * by_trial[entry["trial"]]["weight[maths]"], abs=1e-3)
    table = call(*where, "--mixture").stdout.split("Data mixtures")[1]
    assert all(f"{entry['percent']['maths']:.1f}" in table for entry in shown["mixtures"])
    assert "mixtures" not in json.loads(call(*where, "--json").stdout)

    mf.run(write_study(tmp_path, name="plain", evaluations=7, method="dare_ties"))
    refused = call("front", "plain", "--storage", tmp_path / "mergefront.db", "--mixture")
    assert refused.exit_code == 2 and "search with space: {simplex: true}" in refused.output


@pytest.mark.parametrize("form", ["{}", "sqlite:///{}"])
def test_every_command_finds_the_study_in_a_folder_of_an_odd_name(tmp_path: Path, write_study, form: str) -> None:
    path, folder = tmp_path / "really?" / "50%25 #1.db", tmp_path / "files"
    path.parent.mkdir()
    folder.mkdir()
    for storage in (form.format("../really?/50%25 #1.db"), form.format(path)):  # relative to the file, and absolute
        study = write_study(folder, evaluations=10)
        study.write_text(f"storage: '{storage}'\n{study.read_text()}")
        assert call("run", study).exit_code == 0
    assert path.is_file()
    for command in (["resume", "skills", "--evaluations", 11], ["front", "skills"], ["status", "skills"], ["studies"]):
        result = call(*command, "--storage", form.format(path))
        assert result.exit_code == 0, result.output
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["files", "really?"]


def test_when_a_command_has_ended_a_copy_of_the_file_has_everything(tmp_path: Path, write_study) -> None:
    """Also where this process still holds the database open, as a notebook does."""
    database = tmp_path / "mergefront.db"

    def listed_in_a_copy(name: str) -> list[tuple[str, int]]:
        (tmp_path / name).write_bytes(database.read_bytes())
        rows = json.loads(call("studies", "--storage", tmp_path / name, "--json").stdout)
        return [(row["name"], row["evaluations"]) for row in rows]

    held = mf.run(write_study(tmp_path, evaluations=8))
    assert listed_in_a_copy("after-run.db") == [("skills", held.finished_count())] == [("skills", 8)]
    assert call("resume", "skills", "--storage", database, "--evaluations", 9).exit_code == 0
    assert listed_in_a_copy("after-resume.db") == [("skills", 9)]
    assert call("copy", "skills", "twin", "--storage", database).exit_code == 0
    assert call("rename", "twin", "other", "--storage", database).exit_code == 0
    assert listed_in_a_copy("after-rename.db") == [("skills", 9), ("other", 9)]


def test_front_json_is_the_documented_object(storage: str) -> None:
    result = call("front", "skills", "--storage", storage, "--json")
    content = json.loads(result.stdout)
    assert set(content) == {
        "study",
        "objectives",
        "hypervolume",
        "front",
        "anchors",
        "suggested",
        "evaluations",
        "failed",
    }
    assert content["objectives"] == [{"name": n, "direction": "maximize"} for n in ("maths", "french")]
    assert {"base", "expert maths", "expert french", "uniform average"} <= {a["name"] for a in content["anchors"]}
    assert {"weight[maths]", "density[french]"} <= set(content["front"][-1]["params"])
    assert content["evaluations"] == 24 and content["failed"] >= 1
    assert not result.stderr


def test_front_table_fits_100_columns_and_names_noise_anchors_and_the_suggested(storage: str) -> None:
    for study in ("one", "skills", "three"):
        result = call("front", study, "--storage", storage)
        assert result.exit_code == 0, result.output
        assert max(len(line) for line in result.stdout.splitlines()) <= 100
        assert not re.search(r"± [\d.]*…", result.stdout), "a score is cut"
        assert "maths ↑" in result.stdout and "task arithmetic 0.3" in result.stdout
        # The best of the study "one" is an expert, which is no merge.
        assert ("No merge is suggested" in result.stdout) == ("◆" not in result.stdout) == (study == "one")
        assert "beats the best anchor" in " ".join(result.stdout.split())
    assert "delta_l1 ↓" in result.stdout


def test_storage_may_come_from_the_environment(storage: str) -> None:
    result = call("studies", env={"MERGEFRONT_STORAGE": storage})
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("one", "skills", "three"))
    rows = json.loads(call("studies", "--storage", storage, "--json").stdout)
    assert [(row["name"], row["evaluations"], row["budget"]) for row in rows] == [
        (name, 24, 24) for name in ("one", "skills", "three")
    ]


def test_status_tells_progress_failures_by_reason_and_best(storage: str) -> None:
    facts = json.loads(call("status", "skills", "--storage", storage, "--json").stdout)
    assert facts["evaluations"] == {"done": 24, "budget": 24, "failed": facts["evaluations"]["failed"], "running": 0}
    assert facts["failures"][0]["reason"] == "ValueError: diverged: loss [inf]"
    assert sum(entry["count"] for entry in facts["failures"]) == facts["evaluations"]["failed"] >= 1
    assert facts["resume"] is None
    text = call("status", "skills", "--storage", storage).stdout
    assert "24 of 24" in text and "diverged: loss [inf]" in text and "best" in text


def test_front_plots_to_png_and_html(storage: str, tmp_path: Path) -> None:
    for name in ("front.png", "front.html"):
        result = call("front", "skills", "--storage", storage, "--plot", tmp_path / name)
        assert result.exit_code == 0 and (tmp_path / name).stat().st_size > 10_000


def test_check_lists_every_problem_with_exit_code_2_and_writes_nothing(tmp_path: Path, write_study) -> None:
    study = write_study(tmp_path)
    study.write_text(
        study.read_text().replace("weight: [0, 1]", "wieght: [0, 1]").replace("sampler: random", "sampler: rndom")
    )
    before = set(tmp_path.iterdir())
    result = call("check", study)
    assert result.exit_code == 2
    assert "wieght" in result.stderr and "rndom" in result.stderr and "2 problems" in result.stderr
    report = call("check", study, "--json")
    assert report.exit_code == 2 and len(json.loads(report.stdout)["problems"]) == 2
    assert call("run", study).exit_code == 2
    assert {path for path in tmp_path.iterdir() if path.suffix != ".pyc" and path.name != "__pycache__"} == before


def test_check_of_a_sound_file_says_what_will_be_searched(tmp_path: Path, write_study) -> None:
    result = call("check", write_study(tmp_path))
    assert result.exit_code == 0
    assert "4 coefficients" in result.stdout and "is sound" in result.stdout
    assert not (tmp_path / "mergefront.db").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["status", "skils"], "did you mean 'skills'"),
        (["front", "skills", "--plot", "front.pdf"], ".png or .html"),
        (["front", "skills", "--plot", "nowhere/front.png"], "does not exist"),
        (["export", "skills", "--out", "x", "--knee", "--trial", "3"], "choose one of --suggested, --trial N, --knee"),
        (["export", "skills", "--out", "x", "--trial", "999"], "no evaluated trial 999"),
        (["export", "skills", "--out", "x", "--prefer", "maths"], "NAME=NUMBER"),
        (["export", "skills", "--out", "x", "--prefer", "math=1"], "did you mean 'maths'"),
        (["report", "skills"], "no report items"),
        (["resume", "nothing"], "no study 'nothing'"),
        (["status"], "Missing argument"),
        (["statsu"], "No such command"),
        (["resume", "skills", "--evaluations", "0"], "--evaluations"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(
    arguments: list[str], expected: str, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MERGEFRONT_STORAGE", storage)
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert expected in " ".join(result.stderr.split())
    assert "Traceback" not in result.output and not list(tmp_path.iterdir())


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    result = call("studies", "--storage", f"sqlite:///{tmp_path}/none.db")
    assert result.exit_code == 2 and "there is no such database" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_whose_every_evaluation_failed_is_no_success(tmp_path: Path, write_study) -> None:
    study = write_study(tmp_path, evaluations=2)
    (tmp_path / "cli_scoring.py").write_text("def score(recipe):\n    raise ValueError('no licence server')\n")
    result = call("run", study)
    assert result.exit_code == 1 and not result.stdout
    assert "every evaluation of study 'skills' failed (2)" in result.stderr and "no licence server" in result.stderr


def test_a_failed_trial_cannot_be_exported_and_its_reason_is_told(storage: str, tmp_path: Path) -> None:
    facts = json.loads(call("status", "skills", "--storage", storage, "--json").stdout)
    trial = facts["failures"][0]["trials"][0]
    result = call("export", "skills", "--storage", storage, "--trial", trial, "--out", tmp_path / "x")
    assert result.exit_code == 2 and "diverged" in result.stderr


def test_export_by_preference_writes_the_configuration(storage: str, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    result = call("export", "skills", "--storage", storage, "--prefer", "maths=0.9,french=0.1", "--out", out,
                  "--config-only")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    assert {path.name for path in out.iterdir()} == {"README.md", "mergekit_config.yml", "recipe.json"}


def test_a_search_that_keeps_failing_stops_with_1_and_says_how_to_resume(tmp_path: Path, write_study) -> None:
    study = write_study(tmp_path, evaluations=12)
    (tmp_path / "cli_broken.py").write_text("def score(recipe):\n    raise ValueError('no licence server')\n")
    study.write_text(study.read_text().replace("cli_scoring", "cli_broken"))
    result = call("run", study)
    assert result.exit_code == 1
    assert "no licence server" in result.stderr and "mergefront resume skills" in result.stderr
    assert "5 of 12 evaluations are kept" in result.stderr and "Traceback" not in result.stderr


def test_a_damaged_database_is_one_line_and_left_as_it_is(tmp_path: Path) -> None:
    broken = tmp_path / "mergefront.db"
    content = b"SQLite format 3\x00" + bytes(range(256)) * 64
    broken.write_bytes(content)
    result = call("studies", "--storage", broken)
    assert result.exit_code in (1, 2)
    assert result.stderr.startswith("Error: ") and "Traceback" not in result.stderr
    assert broken.read_bytes() == content


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("wrong"), 2), (SearchStoppedError("stopped"), 1), (MergefrontError("fault"), 1), (OSError("disk"), 1),
     (click.UsageError("usage"), 2), (click.Abort(), 130)],
)  # fmt: skip
def test_exit_codes(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert guarded(fail, Session()) == code
    shown = capsys.readouterr()
    assert shown.err and not shown.out and "Traceback" not in shown.err
    assert guarded(fail, Session(debug=True)) == code
    assert ("Traceback" in capsys.readouterr().err) == (not isinstance(error, (click.UsageError, click.Abort)))


def test_a_file_that_the_system_refuses_is_named_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise PermissionError(13, "Permission denied", "study.yaml")

    assert guarded(fail, Session()) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: study.yaml: Permission denied; name a place") and "--debug" not in said


def test_a_reader_that_goes_away_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    """As in "mergefront front NAME | head": rich ends the process from within its handler."""

    def printed() -> None:
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            raise SystemExit(1)  # noqa: B904

    assert guarded(printed, Session()) == 1
    assert capsys.readouterr().err == ""


def test_no_password_reaches_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    url = "postgresql://ada:s3cret@db.example/merges"

    def fail() -> None:
        raise RuntimeError(f"cannot reach {url}")

    guarded(fail, Session(study=("skills", url)))
    assert "s3cret" not in capsys.readouterr().err
    assert shown_storage(url) == "postgresql://ada:***@db.example/merges"


def test_hints_name_the_storage_only_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MERGEFRONT_STORAGE", raising=False)
    assert storage_argument(f"sqlite:///{tmp_path}/mergefront.db") == ""
    assert storage_argument(f"sqlite:///{tmp_path}/deep/x.db") == " --storage sqlite:///deep/x.db"
    monkeypatch.setenv("MERGEFRONT_STORAGE", "sqlite:///deep/x.db")
    assert storage_argument(f"sqlite:///{tmp_path}/deep/x.db") == ""


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("127.0.0.1:8080", None, True),
        ("localhost:8080", "http://localhost:8080", True),
        ("evil.example:8080", None, False),
        ("127.0.0.1:8080", "http://evil.example", False),
        ("localhost:8080", "http://localhost:9999", False),
        ("127.0.0.1:8080", "null", False),
        ("", None, False),
    ],
)
def test_the_dashboard_answers_only_this_machine_and_its_own_pages(
    host: str, origin: str | None, allowed: bool
) -> None:
    statuses: list[str] = []

    def application(environ, start_response):
        start_response("200 OK", [])
        return [b"studies"]

    environ = {"HTTP_HOST": host} | ({} if origin is None else {"HTTP_ORIGIN": origin})
    body = b"".join(only_from_here(application)(environ, lambda status, headers: statuses.append(status)))
    assert statuses == ["200 OK" if allowed else "403 Forbidden"]
    assert (body == b"studies") == allowed


def test_every_command_and_option_is_in_the_documentation_and_has_help() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md")))
    for name, command in cli.commands.items():
        assert f"## mergefront {name}" in text
        section = text.split(f"## mergefront {name}", 1)[1].split("\n## ", 1)[0]
        assert command.help and command.short_help
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts}"
                assert max(parameter.opts, key=len) in section, f"docs/reference/cli: {name} lacks {parameter.opts}"
            else:
                assert parameter.human_readable_name in section
        assert call(name, "--help").exit_code == 0
    for option in ("--debug", "--version"):
        assert option in text


def test_coefficients_are_never_without_their_order_nor_shown_as_0(storage: str) -> None:
    """A weight of 0.002 counts in full where no other expert changes an entry, as under ties."""
    assert coefficients({"weight[a]": 0.002, "weight[b]": 0.0, "weight[c]": 0.749}, "abc") == "weight 0.002/0.00/0.75"
    wide, narrow = (call("front", "three", "--storage", storage, env={"COLUMNS": width}) for width in ("120", "80"))
    assert "coefficients (maths/french)" in wide.stdout
    assert "coefficients (maths" not in narrow.stdout and "weight" in narrow.stdout
    assert "coefficients in the order maths/french" in " ".join(narrow.stdout.split())


def test_on_a_narrow_screen_an_anchor_still_says_that_it_is_on_the_front(storage: str) -> None:
    shown = call("front", "three", "--storage", storage, env={"COLUMNS": "80"}).stdout
    study = mf.load_study("three", storage=storage)
    on_front = {candidate.digest for candidate in study.front()}
    for anchor in study.anchors():
        row = next(line for line in shown.splitlines() if line.rstrip().endswith(f"   {anchor.anchor}"))
        mark = "◆" if anchor == study.suggested() else "●" if anchor.digest in on_front else str(anchor.number)
        assert row.split()[0] == mark
    assert "● anchor on the front" in " ".join(shown.split())


def test_status_says_once_that_the_budget_is_spent(storage: str) -> None:
    assert call("status", "skills", "--storage", storage).stdout.count("is spent") == 1


def test_a_front_on_a_terminal_ends_with_commands_that_run_as_they_stand(storage: str) -> None:
    study = mf.load_study("skills", storage=storage)
    chosen = study.suggested() or study.knee()
    steps = [line.partition("  # ")[0].split() for line in step_lines(study, 200)]
    export = f"mergefront export skills --storage {storage} --trial {chosen.number} --config-only --out merged"
    assert steps == [export.split()], "a function scored it: there is nobody to talk to, and no items for a report"
    assert all(len(line) <= 80 for line in step_lines(study, 80) if "#" in line)
    assert "Next:" not in call("front", "skills", "--storage", storage).stdout, "a pipe gets the front alone"
