"""Whatever a user or an attacker hands in is refused in words, and nothing is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergefront.cli.application import cli

sys.path.insert(0, str(Path(__file__).parent))
from malformed import CONFIG, STUDY, Case, checkpoint_cases, config_cases, data_cases, study_cases, write_good

CASES = {"study": study_cases(), "checkpoint": checkpoint_cases(), "data": data_cases()}
GROUPS = 24


def call(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder: Path, case_name: str, certainly: bool, *arguments: str) -> bool:
    """Whether the command refused the input, as every refusal has to be."""
    before = snapshot(folder)
    result = call(folder, *arguments)
    told = f"{case_name}: {arguments} -> {result.exit_code}\n{result.stderr[-2000:]}"
    assert "Traceback" not in result.output, told
    assert "Error: unexpected " not in result.stderr, told
    assert snapshot(folder) == before, f"written: {told}"
    assert result.exit_code == 2 or (result.exit_code == 0 and not certainly), told
    assert result.exit_code == 0 or result.stderr.strip(), told
    return result.exit_code == 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_good(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_unbroken_study_passes(folder: Path) -> None:
    result = call(folder, "check", "study.yaml")
    assert result.exit_code == 0, result.output


def test_there_are_enough_of_them() -> None:
    certain = sum(case.certainly_wrong for cases in CASES.values() for case in cases)
    assert certain >= 100 and sum(map(len, CASES.values())) + len(config_cases()) >= 600


@pytest.mark.parametrize("kind", ["checkpoint", "data"])
def test_broken_files_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, case in enumerate(CASES[kind]):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_good(folder)
        monkeypatch.chdir(folder)
        case.break_it(folder)
        refused(folder, case.name, case.certainly_wrong, "check", "study.yaml")


@pytest.mark.cases(1)
@pytest.mark.parametrize("group", range(GROUPS // 4))
def test_broken_study_files_are_refused(group: int, folder: Path) -> None:
    cases: list[Case] = CASES["study"][group :: GROUPS // 4]
    count = 0
    for case in cases:
        case.break_it(folder)
        count += refused(folder, case.name, case.certainly_wrong, "check", "study.yaml")
    assert count >= 0.7 * len(cases), "most of them are wrong, so most of them have to be refused"


@pytest.mark.parametrize("group", range(4))
def test_broken_merge_configurations_are_refused(group: int, folder: Path) -> None:
    count = total = 0
    for case in config_cases()[group::4]:
        case.break_it(folder)
        content = yaml.safe_load((folder / "config.yaml").read_bytes()) if not case.certainly_wrong else None
        if content is not None and str(content).count("unknown") == 0 and "without dtype" in case.name:
            continue  # a good configuration, which would be merged
        before = snapshot(folder)
        result = call(folder, "merge", "config.yaml", "out")
        told = f"{case.name} -> {result.exit_code}\n{result.stderr[-2000:]}"
        assert "Traceback" not in result.output and "Error: unexpected " not in result.stderr, told
        if result.exit_code == 0:
            for path in sorted((folder / "out").rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            (folder / "out").rmdir()
        else:
            assert result.exit_code == 2 and result.stderr.strip(), told
        assert snapshot(folder) == before, told
        count += result.exit_code == 2
        total += 1
    assert count >= 0.7 * total


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_anywhere_in_a_study_file(folder: Path, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(STUDY)))
    content = {**STUDY, key: data.draw(json_values)}
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    refused(folder, f"{key}: {content[key]!r}", False, "check", "study.yaml")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_as_a_study_file_a_configuration_or_weights(folder: Path, content: bytes) -> None:
    (folder / "study.yaml").write_bytes(content)
    refused(folder, repr(content), True, "check", "study.yaml")
    (folder / "config.yaml").write_bytes(content)
    refused(folder, repr(content), True, "merge", "config.yaml", "out")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    good = (folder / "models/maths/model.safetensors").read_bytes()
    (folder / "models/maths/model.safetensors").write_bytes(content)
    refused(folder, repr(content), True, "check", "study.yaml")
    (folder / "models/maths/model.safetensors").write_bytes(good)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_anywhere_in_a_merge_configuration(folder: Path, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted({*CONFIG} - {"dtype"})))
    content = {**CONFIG, key: data.draw(json_values)}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    refused(folder, f"{key}: {content[key]!r}", True, "merge", "config.yaml", "out")
