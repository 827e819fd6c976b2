"""A study that begins with what is known: nothing known is evaluated twice, and what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import mergefront as mf
from mergefront.optimizer.errors import StudyFileError, UserError
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.search.attributes import SEED, WARM_START
from mergefront.optimizer.search.warm_start_recipes import params_in
from mergefront.study.warm_start import over


class Scorer:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[mf.Recipe] = []

    def __call__(self, recipe: mf.Recipe) -> dict[str, float]:
        self.asked.append(recipe)
        a, b = (float(recipe.params.get(f"weight[{name}]", 0.5)) for name in "ab")
        return {"first": 1 - (a - 0.8) ** 2, "second": 1 - (b - 0.6) ** 2, "size": a + b}


def other_scorer(recipe: mf.Recipe) -> dict[str, float]:
    return {"first": 0.0, "third": float(recipe.params.get("weight[a]", 0.5))}


def search(
    folder: Path, name: str, evaluate: Callable[[mf.Recipe], Any], objectives: list[str], evaluations: int, **more: Any
) -> mf.Study:
    models = more.pop("models", ["a", "b"])
    return mf.search(
        space=MergeSpace(models, method="task_arithmetic", parameters={"weight": [0.0, 1.0]}),
        evaluate=evaluate,
        objectives=objectives,
        evaluations=evaluations,
        storage=f"sqlite:///{folder / 'm.db'}",
        name=name,
        **more,
    )


def test_an_earlier_study_is_told_and_nothing_in_it_is_evaluated_again(tmp_path: Path) -> None:
    earlier = search(tmp_path, "old", Scorer(), ["first", "second"], 12)
    scorer = Scorer()
    study = search(
        tmp_path, "new", scorer, ["second", "size"], 9, warm_start=[{"study": "old"}], constraints=["first >= 0.2"]
    )
    assert study.finished_count() == 9
    known = {candidate.digest for candidate in earlier.candidates()}
    assert scorer.asked and not known & {recipe.digest for recipe in scorer.asked}
    trials = study.optuna.get_trials()
    taken_over = [trial for trial in trials if WARM_START in trial.user_attrs]
    assert len(taken_over) == len(known)
    assert {trial.user_attrs[WARM_START] for trial in taken_over} == {f"old/{c.number}" for c in earlier.candidates()}
    # Values are the new study's objectives, and constraints count for them as well.
    assert all(trial.values[1] == pytest.approx(sum(trial.params.values())) for trial in taken_over)
    assert all(len(trial.constraints) == 1 for trial in taken_over)
    # The initial design is over: models propose from the start.
    proposed = [t for t in trials if "mergefront:proposal" in t.system_attrs]
    assert proposed and all(t.system_attrs["mergefront:proposal"]["stage"] == "model" for t in proposed)
    # Run again, nothing is taken over twice.
    again = search(
        tmp_path, "new", scorer, ["second", "size"], 10, warm_start=[{"study": "old"}], constraints=["first >= 0.2"]
    )
    assert again.finished_count() == 10 and len(again.optuna.get_trials()) == len(trials) + 1


def test_of_a_study_that_was_scored_otherwise_only_the_best_recipes_are_tried(tmp_path: Path) -> None:
    earlier = search(tmp_path, "old", Scorer(), ["first", "second"], 14)
    study = search(tmp_path, "new", other_scorer, ["first", "third"], 16, warm_start=[{"study": "old"}])
    assert not any(WARM_START in trial.user_attrs for trial in study.optuna.get_trials())
    seeds = [trial for trial in study.optuna.get_trials() if SEED in trial.user_attrs]
    front = {candidate.digest: candidate for candidate in earlier.front() if candidate.anchor is None}
    assert 0 < len(seeds) <= 5
    assert {trial.user_attrs["mergefront:recipe"] for trial in seeds} <= set(front)
    # They are candidates like others, not anchors, and come right after these.
    assert {c.number for c in study.anchors()}.isdisjoint(trial.number for trial in seeds)
    assert max(trial.number for trial in seeds) <= 6 + len(seeds)


def test_a_recipe_from_a_file_is_evaluated_after_the_anchors(tmp_path: Path) -> None:
    space = MergeSpace(["a", "b"], method="task_arithmetic", parameters={"weight": [0.0, 1.0]})
    inside = space.recipe({"weight[a]": 0.25, "weight[b]": 0.75})
    small = space.recipe({"weight[a]": 1e-05, "weight[b]": 0.5})
    outside = space.make("ties", {"weight[a]": 0.5, "weight[b]": 0.5, "density[a]": 0.3, "density[b]": 0.3})
    paths = []
    # What an export writes: mergekit's YAML, the recipe where mergekit has no words, and the recipe alone.
    written = (yaml.safe_dump(inside.to_mergekit()), yaml.safe_dump(outside.in_full()), json.dumps(small.to_json()))
    for index, text in enumerate(written):
        paths.append(tmp_path / f"{index}.{'json' if index == 2 else 'yaml'}")
        paths[-1].write_text(text)
    scorer = Scorer()
    study = search(tmp_path, "new", scorer, ["first", "second"], 14, warm_start=paths)
    seeds = [trial for trial in study.optuna.get_trials() if SEED in trial.user_attrs]
    assert [trial.user_attrs[SEED] for trial in seeds] == [str(path) for path in paths]
    assert inside in scorer.asked and small in scorer.asked
    assert outside.params == next(r for r in scorer.asked if r.method == "ties").params
    assert [bool(trial.user_attrs.get("mergefront:outside_space")) for trial in seeds] == [False, True, False]


def test_one_number_for_the_whole_model_is_a_point_of_a_space_with_blocks() -> None:
    plain = MergeSpace(["a", "b"], method="task_arithmetic", parameters={"weight": [0.0, 1.0]})
    blocks = MergeSpace(
        ["a", "b"], method="task_arithmetic", parameters={"weight": [0.0, 1.0]}, granularity={"blocks": 2}, layers=4
    )
    params = params_in(blocks, plain.recipe({"weight[a]": 0.25, "weight[b]": 0.75}))
    assert params is not None and len(params) == blocks.dimension
    assert set(params.values()) == {0.25, 0.75}
    assert params_in(blocks, plain.make("ties", {"weight[a]": 0.25, "weight[b]": 0.75})) is None


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path, write_study) -> None:
    search(tmp_path, "old", Scorer(), ["first", "second"], 6)
    with pytest.raises(UserError, match="there is no study 'odl'"):
        search(tmp_path, "new", Scorer(), ["first"], 6, warm_start=[{"study": "odl"}])
    with pytest.raises(UserError, match="has the models a, b, this one c, d: none is in both"):
        search(tmp_path, "new", Scorer(), ["first"], 6, warm_start=[{"study": "old"}], models=["c", "d"])
    with pytest.raises(UserError, match="cannot be read"):
        search(tmp_path, "new", Scorer(), ["first"], 6, warm_start=[tmp_path / "no.yaml"])
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"list\.json"):
        search(tmp_path, "new", Scorer(), ["first"], 6, warm_start=[tmp_path / "list.json"])
    with pytest.raises(UserError, match="must be a recipe's path"):
        search(tmp_path, "new", Scorer(), ["first"], 6, warm_start=[{"studdy": "old"}])
    other = tmp_path / "other.yaml"
    recipe = MergeSpace(["x", "y"], method="task_arithmetic").make("task_arithmetic", {"weight[x]": 1, "weight[y]": 0})
    other.write_text(yaml.safe_dump(recipe.to_mergekit()))
    with pytest.raises(UserError, match="merges x, y, but this study a, b"):
        search(tmp_path, "new", Scorer(), ["first"], 6, warm_start=[other])
    with pytest.raises(UserError, match="there is no study 'new'"):
        mf.load_study("new", storage=f"sqlite:///{tmp_path / 'm.db'}")
    path = write_study(tmp_path)
    path.write_text(path.read_text() + "warm_start: [{study: old, storage: m.db}]\n")
    with pytest.raises(StudyFileError, match="has the models a, b, this one maths, french"):
        mf.run(path)


class SumScorer(Scorer):
    """Scores by the weights alone, so that an expert of weight 0 changes nothing."""

    def __call__(self, recipe: mf.Recipe) -> dict[str, float]:
        self.asked.append(recipe)
        weights = {name: float(recipe.params.get(f"weight[{name}]", 0.5)) for name in recipe.models}
        return {"first": 1 - (weights.get("a", 0.0) - 0.8) ** 2, "second": sum(weights.values())}


def test_a_study_of_fewer_experts_is_known_to_one_of_more(tmp_path: Path) -> None:
    earlier = search(tmp_path, "old", SumScorer(), ["first", "second"], 10)
    more = {"models": ["a", "b", "c"], "warm_start": [{"study": "old"}]}
    scorer = SumScorer()
    study = search(tmp_path, "new", scorer, ["first", "second"], 8, **more)
    trials = [trial for trial in study.optuna.get_trials() if WARM_START in trial.user_attrs]
    known = {trial.user_attrs[WARM_START]: trial for trial in trials}
    points = {f"old/{one.number}": one for one in earlier.candidates() if one.anchor != "uniform average"}
    assert set(points) <= set(known)
    for origin, candidate in points.items():
        assert known[origin].params == {**candidate.params, "weight[c]": 0}
        assert known[origin].values == [candidate.scores["first"], candidate.scores["second"]]
    # The experts alone are the same merges, and are not evaluated again.
    assert not any(recipe.params == {"weight[a]": 1.0, "weight[b]": 0.0, "weight[c]": 0.0} for recipe in scorer.asked)


def test_of_a_study_of_more_experts_only_merges_without_those_that_are_gone_are_known(tmp_path: Path) -> None:
    earlier = search(tmp_path, "old", SumScorer(), ["first", "second"], 12, models=["a", "b", "c"])
    study = search(tmp_path, "new", SumScorer(), ["first", "second"], 12, warm_start=[{"study": "old"}])
    told = {trial.user_attrs[WARM_START] for trial in study.optuna.get_trials() if WARM_START in trial.user_attrs}
    without = {f"old/{one.number}" for one in earlier.candidates() if one.params.get("weight[c]") == 0}
    assert told == without and len(without) >= 3  # the base, a and b
    seeds = {trial.user_attrs[SEED]: trial.params for trial in study.optuna.get_trials() if SEED in trial.user_attrs}
    front = {f"old/{one.number}": one for one in earlier.front() if one.anchor is None}
    assert seeds and set(seeds) <= set(front) - without
    for name, params in seeds.items():
        assert params == {f"weight[{expert}]": front[name].params[f"weight[{expert}]"] for expert in "ab"}


def test_a_method_that_counts_its_experts_cannot_be_mapped(tmp_path: Path) -> None:
    three = MergeSpace(["a", "b", "c"], base_model="base", method=["tsv_m", "ties"], parameters={"weight": [0, 1]})
    two = MergeSpace(["a", "b"], base_model="base", method=["tsv_m", "ties"])
    weights = {"weight[a]": 0.5, "weight[b]": 0.25}
    mapped = over(three, two.make("ties", {**weights, "density[a]": 0.5, "density[b]": 0.25}), "x")
    assert dict(mapped.params) == {**weights, "density[a]": 0.5, "density[b]": 0.25, "weight[c]": 0, "density[c]": 0.5}
    with pytest.raises(UserError, match="a merge by tsv_m is another one with an expert more or less"):
        over(three, two.make("tsv_m", weights), "study 'old'")
