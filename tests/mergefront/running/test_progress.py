"""A search from Python shows how far it is to whoever watches, and disturbs nobody else."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

import mergefront as mf


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def searched(folder: Path, stream: io.StringIO, evaluations: int = 8, **options: Any) -> tuple[str, str, list[int]]:
    """What a search writes to ``stream`` as its stderr and to stdout, and the trials that a callback was told of."""

    def evaluate(recipe: mf.Recipe) -> float:
        print("evaluating")
        if recipe.params["weight[a]"] == 0:
            raise ValueError("diverged")
        return float(recipe.params["weight[a]"])

    told: list[int] = []
    with contextlib.redirect_stderr(stream), contextlib.redirect_stdout(io.StringIO()) as printed:
        mf.search(
            space=mf.MergeSpace(["a", "b"], method="task_arithmetic"), evaluate=evaluate, objectives=["score"],
            sampler="random", evaluations=evaluations, storage=f"sqlite:///{folder}/study.db", name="watched",
            on_trial_end=lambda outcome: told.append(outcome.number), **options,
        )  # fmt: skip
    return stream.getvalue(), printed.getvalue(), told


def test_a_terminal_shows_a_bar_and_prints_of_the_function_go_where_they_went(tmp_path: Path) -> None:
    shown, printed, told = searched(tmp_path, Terminal())
    assert "8/8 evaluations" in shown and "━" in shown and "best score " in shown
    assert "hypervolume" not in shown, "one objective has none"
    assert "failed: " in shown and "diverged" in shown
    assert printed.count("evaluating") == 8 and "evaluating" not in shown
    assert told == list(range(8))
    more, _, _ = searched(tmp_path, Terminal(), evaluations=10)
    assert "10/10 evaluations" in more


@pytest.mark.parametrize(("stream", "options"), [(io.StringIO, {}), (Terminal, {"progress": False})])
def test_nothing_is_shown_to_a_file_or_where_it_is_turned_off(
    tmp_path: Path, stream: type[io.StringIO], options: dict[str, Any]
) -> None:
    shown, _, told = searched(tmp_path, stream(), **options)
    assert shown == "" and told == list(range(8))


def test_a_run_and_a_resumed_study_show_it_too(tmp_path: Path, write_study) -> None:
    with contextlib.redirect_stderr(Terminal()) as screen:
        study = mf.run(write_study(tmp_path, evaluations=8))
        mf.resume(study, evaluations=9)
        mf.resume(study, evaluations=10, progress=False)
    assert "8/8 evaluations" in screen.getvalue() and "9/9 evaluations" in screen.getvalue()
    assert "10/10" not in screen.getvalue() and "hypervolume" in screen.getvalue()
