"""How many files and rooms one reads to follow a recipe, or a study file, from the command line to the database.

Runs a small study by the command line and notes every call that is handed a recipe (or a study file: its path, its
content, its definition). Prints the files, and the rooms in the order in which they are entered first.

    python tests/support/reading_path.py
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
study: path
merge: {method: linear, models: [maths, french], space: {weight: [0, 1]}}
backend: {type: function, call: "scores_of_reading_path:score"}
objectives: [a]
search: {sampler: sobol, evaluations: 6}
"""
SCORES = "def score(recipe):\n    return {'a': sum(recipe.params.values())}\n"


def our_file(frame: FrameType) -> Path | None:
    """The source file that a frame runs, from the repository's root; None for other people's code and for this file."""
    file = Path(frame.f_code.co_filename)
    ours = file.is_relative_to(ROOT) and ".venv" not in file.parts and file != Path(__file__)
    return file.relative_to(ROOT) if ours else None


def calls_handed(run: Callable[[], None], wanted: Callable[[Any], bool]) -> list[tuple[Path, Path | None]]:
    """The calls of ours that are handed something ``wanted`` while ``run`` runs: the callee's file, the caller's."""
    handed: list[tuple[Path, Path | None]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or frame.f_code.co_name.startswith("__"):
            return
        file, code = our_file(frame), frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if file is None or not any(wanted(frame.f_locals.get(name)) for name in names):
            return
        caller = frame.f_back
        while caller is not None and our_file(caller) is None:
            caller = caller.f_back
        handed.append((file, None if caller is None else our_file(caller)))

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return handed


def followed(folder: Path) -> tuple[list[tuple[Path, Path | None]], list[tuple[Path, Path | None]]]:
    """The calls that are handed a recipe, and those that are handed the study file, of one run in ``folder``."""
    from click.testing import CliRunner

    from mergefront.cli.application import cli
    from mergefront.optimizer.recipes.recipe import Recipe
    from mergefront.study.definition import StudyDefinition
    from mergefront.study.study_file import StudyFile

    (folder / "scores_of_reading_path.py").write_text(SCORES)
    study_file = folder / "study.yaml"
    study_file.write_text(STUDY)
    sys.path.insert(0, str(folder))

    def run(evaluations: int) -> None:
        arguments = ["run", str(study_file), "--evaluations", str(evaluations)]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output

    recipes = calls_handed(lambda: run(6), lambda value: isinstance(value, Recipe))
    files = calls_handed(
        lambda: run(7),
        lambda value: (
            isinstance(value, StudyFile | StudyDefinition) or (isinstance(value, Path) and value == study_file)
        ),
    )
    return recipes, files


def entrances(calls: list[tuple[Path, Path | None]]) -> list[str]:
    """The rooms that are entered from another room, in order, each entrance once."""
    entered = [
        (str(callee.parent), str(caller.parent) if caller is not None else "")
        for callee, caller in calls
        if caller is None or caller.parent != callee.parent
    ]
    return [room for room, _ in dict.fromkeys(entered)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        recipes, files = followed(Path(folder))
    for what, handed in (("recipe", recipes), ("study file", files)):
        distinct = list(dict.fromkeys(callee for callee, _ in handed))
        print(f"{what}: {len(distinct)} files, rooms entered: {', '.join(entrances(handed))}")
        for file in distinct:
            print(f"    {file}")


if __name__ == "__main__":
    main()
