"""A shell completes commands, names of studies and their trials, through click's own protocol."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.optimizer.recipes.space import MergeSpace


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("studies")
    url = f"sqlite:///{folder}/mergefront.db"
    for name, evaluations in (("skills", 3), ("skills again", 1), ("other", 1)):
        mf.search(
            space=MergeSpace(["a", "b"], method="linear"),
            evaluate=lambda recipe: {"score": 0.5},
            objectives=["score"],
            sampler="random",
            evaluations=evaluations,
            storage=url,
            name=name,
            progress=False,
        )
    return url


def completed(*words: str, **environment: str) -> list[str]:
    """What zsh, which tells values from their help, is offered for the last of ``words``."""
    told = {"_MERGEFRONT_COMPLETE": "zsh_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    said = CliRunner().invoke(cli, [], prog_name="mergefront", env={**told, **environment})
    assert said.exit_code == 0, said.output
    return said.stdout.splitlines()[1::3]


def test_commands_and_options_are_completed() -> None:
    assert completed("mergefront", "ex") == ["export"]
    assert completed("mergefront", "export", "--tr") == ["--trial"]


def test_names_of_studies_come_from_the_database(storage: str) -> None:
    assert completed("mergefront", "front", "--storage", storage, "sk") == ["skills", "skills again"]
    assert completed("mergefront", "report", "o", MERGEFRONT_STORAGE=storage) == ["other"]


def test_trials_are_those_of_the_study_that_is_named(storage: str) -> None:
    assert completed("mergefront", "export", "skills", "--trial", "", MERGEFRONT_STORAGE=storage) == ["0", "1", "2"]
    assert completed("mergefront", "chat", "--storage", storage, "other", "--trial", "") == ["0"]


def test_without_a_database_nothing_is_completed_and_nothing_is_made(tmp_path: Path) -> None:
    """Without: a key pressed in the wrong folder leaves an empty database, or a traceback in the prompt."""
    assert completed("mergefront", "front", "", MERGEFRONT_STORAGE=f"sqlite:///{tmp_path}/none.db") == []
    (tmp_path / "text.db").write_text("no database")
    assert completed("mergefront", "front", "", MERGEFRONT_STORAGE=f"sqlite:///{tmp_path}/text.db") == []
    assert completed("mergefront", "front", "", MERGEFRONT_STORAGE="postgresql://nowhere/x") == []
    assert [file.name for file in tmp_path.iterdir()] == ["text.db"]
