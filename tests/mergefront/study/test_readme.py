"""The first study file of any user, and the commands after it, are what the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml
from click.testing import CliRunner

from mergefront.cli.application import cli
from mergefront.study.check import check_study

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


def test_the_study_file_of_the_readme_lacks_nothing_but_the_users_own_models_and_data(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(README.split("```yaml\n", 1)[1].split("```", 1)[0])
    problems = check_study(path).problems
    own = [*yaml.safe_load(path.read_text())["merge"]["models"].values(), "models/base", "maths.jsonl", "french.jsonl"]
    assert problems and all(any(name in problem for name in own) for problem in problems), problems
    for name in own:
        assert any(name in problem for problem in problems), f"{name} is missing, and nobody is told"


def test_every_command_of_the_readme_has_the_options_that_it_shows() -> None:
    shown = [line.split("#")[0] for line in README.splitlines() if line.startswith("mergefront ")]
    shown += re.findall(r"`(mergefront [^`]+)`", README)
    assert len(shown) > 8
    for line in shown:
        name, *arguments = shlex.split(line)[1:]
        options = {argument for argument in arguments if argument.startswith("--")}
        said = CliRunner().invoke(cli, [name, "--help"])
        assert said.exit_code == 0 and all(option in said.output for option in options), line
