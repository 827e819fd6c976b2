"""Start points: found once when a study begins, evaluated after the anchors, no baselines."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import yaml
from local_study import write_local_study
from safetensors.torch import load_file

import mergefront as mf
from mergefront.optimizer.recipes.anchors import refuses_weights, start_point
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.search.attributes import SEED
from mergefront.results.suggestion import Choice
from mergefront.storage.database import Database
from mergefront.storage.studies import load, update
from mergefront.study.check import check_study


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_local_study(folder, "plain")
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    return shutil.copytree(models, tmp_path / "study")


def changed(folder: Path, name: str, **sections: dict) -> Path:
    """The study file with keys of its sections replaced."""
    content = yaml.safe_load((folder / "plain.yaml").read_text())
    content["study"] = name
    for section, keys in sections.items():
        content[section] = {**content[section], **keys}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def norm(folder: Path, expert: str) -> float:
    base = load_file(folder / "base" / "model.safetensors")
    other = load_file(folder / expert / "model.safetensors")
    return math.sqrt(sum(float((other[name] - base[name]).double().square().sum()) for name in base))


def test_inverse_norms_are_evaluated_after_the_anchors_and_normalise_nothing(folder: Path) -> None:
    # Expert two lies about sqrt(2) as far from the base as expert one.
    path = changed(folder, "norms", search={"anchors": ["default", "inverse-norm"]})
    study = mf.run(path, progress=False)
    inverse = {name: 1 / norm(folder, name) for name in ("one", "two")}
    expected = {f"weight[{name}]": value / sum(inverse.values()) for name, value in inverse.items()}
    (seed,) = [trial for trial in study.optuna.get_trials() if SEED in trial.user_attrs]
    assert seed.user_attrs[SEED] == "inverse-norm" and seed.params == pytest.approx(expected, rel=1e-5)
    assert expected["weight[one]"] > 0.55
    plain = mf.run(folder / "plain.yaml", progress=False)
    assert [one.anchor for one in study.anchors()] == [one.anchor for one in plain.anchors()]
    assert study.normaliser() == plain.normaliser() and study.finished_count() == 7
    assert seed.number in {one.number for one in study.candidates() if one.anchor is None}


def test_weights_are_found_once_and_a_stored_study_goes_on_with_them(folder: Path) -> None:
    path = changed(folder, "norms", search={"anchors": ["default", "inverse-norm"], "evaluations": 2})
    study = mf.run(path, progress=False)
    database = Database(study.database.url)
    record = load(database, "norms")
    assert set(record.definition["learned"]["inverse-norm"]) == {"weight[one]", "weight[two]"}
    learned = {"inverse-norm": {"weight[one]": 0.25, "weight[two]": 0.5}}
    update(database, record, definition={**record.definition, "learned": learned})
    (given,) = mf.run(path, progress=False).plan.warm_start_recipes
    assert given.params == learned["inverse-norm"]
    # A file that leaves the key out goes on with what is stored, and one that changes it is told so.
    assert check_study(changed(folder, "norms", search={"evaluations": 2})).problems == []
    (problem,) = check_study(changed(folder, "norms", search={"anchors": ["default"], "evaluations": 2})).problems
    assert "anchors" in problem


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"search": {"anchors": ["inverse-norm"]}}, "default must be among them"),
        ({"search": {"anchors": ["default", "inverse-norm", "inverse-norm"]}}, "names inverse-norm twice"),
        ({"search": {"anchors": ["default", "norm"]}}, "it must be default, inverse-norm"),
        (
            {"merge": {"method": "slerp", "space": {}}},
            "inverse-norm cannot be a point of this space: it is a weight per expert, and slerp takes none (what is "
            "searched here: t)",
        ),
        ({"merge": {"method": "ties", "space": {"weight": 0.5, "density": [0, 1]}}}, "no weight is searched here"),
    ],
)
def test_what_cannot_be_a_start_point_is_said_in_a_line(folder: Path, sections: dict, problem: str) -> None:
    sections = {"search": {"anchors": ["default", "inverse-norm"]}, **sections}
    (found,) = check_study(changed(folder, "wrong", **sections)).problems
    assert problem in found


def test_a_study_whose_weights_are_elsewhere_has_no_start_points_of_weights(folder: Path) -> None:
    content = {**yaml.safe_load((folder / "plain.yaml").read_text()), "objectives": ["sorting"]}
    content |= {"backend": {"type": "external"}, "search": {"anchors": ["default", "inverse-norm"]}}
    del content["tasks"]
    (folder / "told.yaml").write_text(yaml.safe_dump(content))
    (found,) = check_study(folder / "told.yaml").problems
    assert found.startswith(
        "search.anchors: inverse-norm reads the experts' weights, which only backend: {type: local}"
    )


def test_an_expert_that_is_the_base_is_named(folder: Path) -> None:
    shutil.copy(folder / "base" / "model.safetensors", folder / "two" / "model.safetensors")
    path = changed(folder, "norms", search={"anchors": ["default", "inverse-norm"]})
    with pytest.raises(mf.UserError, match="inverse-norm: expert 'two' does not differ from the base"):
        mf.run(path, progress=False)
    with pytest.raises(mf.UserError, match="no study"):
        mf.load_study("norms", storage=f"sqlite:///{folder / 'mergefront.db'}")


def test_a_start_point_is_a_point_of_the_space() -> None:
    space = MergeSpace(
        ["a", "b"],
        method=["slerp", "ties"],
        parameters={"weight": [0, 0.6], "density": [0.1, 1], "t": [0, 1]},
        granularity={"blocks": 2},
        layers=4,
    )
    assert refuses_weights(space) is None
    found = start_point(space, "x", {"weight[a]": 0.25, "weight[b]": 0.7, "weight[a, block 1]": 0.5})
    assert found.recipe.method == "ties" and space.params(found.recipe) is not None
    wanted = {
        "weight[a, block 0]": 0.25,
        "weight[a, block 1]": 0.5,
        "weight[b, block 0]": 0.6,
        "density[a, block 1]": 1.0,
    }
    assert {name: found.params[name] for name in wanted} == wanted


def named(folder: Path, name: str, **sections: dict) -> Path:
    """A study whose tasks are called like the experts, so that each has prompts."""
    tasks = {
        name: {"type": "jsonl", "path": f"{file}.jsonl", "metric": "loglikelihood", "search_items": 3}
        for name, file in (("one", "sorting"), ("two", "side"))
    }
    path = changed(folder, name, **sections)
    content = {**yaml.safe_load(path.read_text()), "tasks": tasks, "objectives": ["one", "two"]}
    path.write_text(yaml.safe_dump(content))
    return path


def test_weights_are_learned_from_the_experts_own_prompts_when_the_study_begins(folder: Path) -> None:
    search = {"anchors": ["default", "posterior-weighted", "aligned"], "aligned": {"steps": 3}, "evaluations": 8}
    merge = {"space": {"weight": [0, 1], "granularity": {"blocks": 2}}}
    study = mf.run(named(folder, "learned", search=search, merge=merge), progress=False)
    seeds = {trial.user_attrs[SEED]: trial for trial in study.optuna.get_trials() if SEED in trial.user_attrs}
    assert list(seeds) == ["posterior-weighted", "aligned"] and study.finished_count() == 8
    learned = study.definition.learned
    assert sum(learned["posterior-weighted"].values()) == pytest.approx(1)
    assert set(learned["aligned"]) == {f"weight[{name}, block {block}]" for name in ("one", "two") for block in (0, 1)}
    assert seeds["aligned"].params == learned["aligned"] and len(set(learned["aligned"].values())) == 4
    few = check_study(named(folder, "few", search={**search, "evaluations": 7}, merge=merge))
    assert "search.evaluations: 7 end before the last start point; 8 reach it" in few.warnings
    assert Choice(start_point="aligned").of(study).params.items() >= learned["aligned"].items()
    with pytest.raises(mf.UserError, match="evaluated no start point 'alinged'"):
        Choice(start_point="alinged").of(study)
    # The file goes on with it, and other prompts or steps are another study.
    assert check_study(named(folder, "learned", search=search, merge=merge)).problems == []
    (problem,) = check_study(named(folder, "learned", search={**search, "aligned": {"steps": 4}}, merge=merge)).problems
    assert "aligned.steps: was 3, is now 4" in problem


def test_a_space_is_centred_on_what_was_learned(folder: Path) -> None:
    merge = {"space": {"weight": {"around": "inverse-norm", "width": 0.4}, "weight[two]": [0, 1]}}
    path = changed(folder, "centred", merge=merge)
    assert check_study(path).problems == []
    study = mf.run(path, progress=False)
    inverse = {name: 1 / norm(folder, name) for name in ("one", "two")}
    centre = inverse["one"] / sum(inverse.values())
    first, second = (study.space.searched[f"weight[{name}]"] for name in ("one", "two"))
    assert (first.low, first.high) == pytest.approx((centre - 0.2, centre + 0.2), rel=1e-5)
    assert (second.low, second.high) == (0, 1)
    # It would be evaluated if search.anchors said so.
    assert not any(SEED in trial.user_attrs for trial in study.optuna.get_trials())
    again = mf.run(path, evaluations=8, progress=False)
    assert again.space.to_json() == study.space.to_json() and again.finished_count() == 8


def test_prompts_may_come_from_files(folder: Path) -> None:
    search = {
        "anchors": ["default", "aligned"],
        "aligned": {"prompts": {"one": "p.jsonl", "two": "p.jsonl"}, "steps": 1},
    }
    path = changed(folder, "files", search={**search, "evaluations": 1})
    (folder / "p.jsonl").write_text('{"prompt": "sort abc:"}\n{"text": "side bcd"}\n')
    assert set(mf.run(path, progress=False).definition.learned["aligned"]) == {"weight[one]", "weight[two]"}


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"aligned": {"prompts": {"one": "sorting.jsonl"}}}, "aligned has no prompts of expert 'two'"),
        ({"aligned": {"prompts": {"one": "no.jsonl", "two": "side.jsonl"}}}, "prompts.one: no.jsonl: there is no such"),
        (
            {"aligned": {"prompts": {"one": "side.jsonl", "two": "side.jsonl", "three": "x"}}},
            "prompts: 'three' is no expert",
        ),
        ({"anchors": ["default"], "aligned": {"steps": 3}}, "search.aligned is used by nothing"),
        ({"aligned": {"steps": 0, "prompts": {"one": "side.jsonl", "two": "side.jsonl"}}}, "search.aligned.steps is 0"),
    ],
)
def test_what_alignment_lacks_is_named(folder: Path, sections: dict, problem: str) -> None:
    path = changed(folder, "wrong", search={"anchors": ["default", "aligned"], **sections})
    (found,) = check_study(path).problems
    assert problem in found


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        ({"weight": {"around": "alinged", "width": 0.4}}, "there is no start point 'alinged'"),
        ({"weight": {"around": "inverse-norm"}}, "must be written as {around: NAME, width: NUMBER}"),
        ({"weight": {"around": "inverse-norm", "width": 0}}, "the width is 0; it must be above 0"),
        ({"weight": [0, 1], "lambda": {"around": "inverse-norm", "width": 1}}, "start points say weights only"),
    ],
)
def test_a_centre_that_is_none_is_refused(folder: Path, space: dict, problem: str) -> None:
    (found,) = check_study(changed(folder, "wrong", merge={"space": space})).problems
    assert found.startswith("merge.space: ") and problem in found
