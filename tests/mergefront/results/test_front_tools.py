"""Picking from the front: which members really differ, and which one suits."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.formatting import trial
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.scores.differences import better_beyond_noise


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_distinct_members_are_better_than_each_other_in_something_beyond_noise(storage: str) -> None:
    study = mf.load_study("skills", storage=storage)
    kept = study.distinct_front()
    assert kept and {c.number for c in kept} <= {c.number for c in study.front()}
    better = better_beyond_noise(study.objectives, [candidate.evaluation for candidate in kept])
    assert all(better[i][j] or better[j][i] for i in range(len(kept)) for j in range(i))
    # 60 items cannot tell all of a front apart.
    assert len(kept) < len(study.front())


def test_epsilon_thins_the_front_and_zero_keeps_it(storage: str) -> None:
    study = mf.load_study("skills", storage=storage)
    # Equal scores are one alternative.
    rows = {tuple(candidate.scores.values()) for candidate in study.front()}
    assert len(study.distinct_front(0.0)) == len(rows)
    assert len(study.distinct_front(10.0)) == 1
    with pytest.raises(UserError, match="epsilon is -1"):
        study.distinct_front(-1)


def test_a_direction_picks_the_side_it_points_to(storage: str) -> None:
    study = mf.load_study("skills", storage=storage)
    for name in ("maths", "french"):
        best = max(study.front(), key=lambda candidate, name=name: candidate.scores[name])
        assert study.along({name: 1.0}).scores[name] == best.scores[name]
    with pytest.raises(UserError, match="did you mean 'maths'"):
        study.along({"math": 1.0})


def test_the_command_line_names_what_was_asked_for(storage: str) -> None:
    choice = ("--distinct", "--prefer", "maths=1", "--direction", "french=1")
    result = call("front", "skills", "--storage", storage, "--json", *choice)
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    study = mf.load_study("skills", storage=storage)
    assert content["distinct"] == [candidate.number for candidate in study.distinct_front()]
    assert content["preferred"] == study.preferred({"maths": 1}).number
    assert content["along"] == study.along({"french": 1}).number
    text = call("front", "skills", "--storage", storage, *choice, "--epsilon", "0.1").stdout
    assert "Preferred: trial" in text and "Along: trial" in text
    every = call("front", "three", "--storage", storage, "--epsilon", "0").stdout.splitlines()[-1]
    members = mf.load_study("three", storage=storage).distinct_front(0.0)
    assert len(members) > 8, "a long list was cut to its first five"
    assert every == f"Distinct: {', '.join(trial(one.number, one.anchor) for one in members)}"
    assert call("front", "skills", "--storage", storage, "--prefer", "maths").exit_code == 2
