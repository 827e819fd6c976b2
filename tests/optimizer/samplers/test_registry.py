"""Samplers by name: a study file's choice is checked before anything runs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.samplers.registry import SAMPLERS, check_sampler, make_sampler, shown_to_sampler
from mergefront.optimizer.scores.objectives import Objective


@pytest.mark.parametrize(
    ("name", "options", "objectives", "said"),
    [
        ("mm-no", {}, 2, "sampler 'mm-no' is unknown (did you mean 'mm-mo'?)"),
        ("mm-mo", {"varient": "paper"}, 2, "sampler 'mm-mo': unknown key 'varient' (did you mean 'variant'?)"),
        ("mm-mo", {"variant": "papr"}, 2, "variant is 'papr'; it must be default or paper"),
        ("mm-mo", {"batch": 0}, 2, "batch is 0; it must be a whole number of at least 1"),
        ("mm-mo", {"batch": True}, 2, "batch is True; it must be a whole number"),
        ("mm-mo", {"n_startup": 2.5}, 2, "n_startup is 2.5; it must be a whole number"),
        ("gp", {"deterministic_objective": "yes"}, 2, "it must be true or false"),
        ("evo-merging", {"preferences": {"a": 1}}, 2, "it must be a text like maths=0.7,french=0.3"),
        ("random", {"seed": 1}, 2, "sampler 'random': unknown key 'seed' (none is known here)"),
        ("cma-es", {}, 3, "sampler 'cma-es' does one objective, but 3 are asked for; any number do: mm-mo,"),
        ("gp", {}, 4, "sampler 'gp' does up to 3 objectives, but 4 are asked for; any number do: mm-mo,"),
    ],
)
def test_a_wrong_choice_is_explained(name: str, options: dict[str, Any], objectives: int, said: str) -> None:
    (problem,) = check_sampler(name, options, objectives)
    assert said in problem


def test_a_budget_of_which_a_sampler_sees_a_part_is_said() -> None:
    assert "'gp' learns from 160 finished trials at most" in str(shown_to_sampler("gp", 2, 161))
    assert shown_to_sampler("gp", 2, 160) is None
    assert shown_to_sampler("tpe", 2, 5000) is None


def test_every_problem_is_listed_at_once() -> None:
    assert len(check_sampler("cma-es", {"sigma": -1, "popsize": 3}, 2)) == 3


def test_making_a_wrong_choice_raises_all_of_it() -> None:
    with pytest.raises(UserError, match=r"does one objective.*a number of at least"):
        make_sampler("cma-es", seed=0, objectives=[Objective("a"), Objective("b")], options={"sigma": -1})


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_listed_option_is_accepted_by_its_sampler(name: str) -> None:
    worked_out = {"preferences": "a=1", "density_penalty": 0.5, "weight_penalty": 0.5}
    values = {
        key: worked_out.get(key, 3) if field.default is None else field.default
        for key, field in SAMPLERS[name].options.model_fields.items()
    }
    assert check_sampler(name, values, 1) == []
    sampler = make_sampler(name, seed=0, objectives=[Objective("a")], options=values)
    import optuna

    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert len({trial.params["x"] for trial in study.trials}) == 2


def test_listing_the_samplers_imports_none_of_them() -> None:
    program = "import sys, mergefront.optimizer.samplers.registry; assert 'optuna' not in sys.modules, 'optuna'"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_package_lists_its_samplers_without_importing_them() -> None:
    program = """
import sys
import mergefront.optimizer as optimizer
assert {"EvoMergingSampler", "MAPSampler", "MMMOSampler"} <= set(dir(optimizer)), dir(optimizer)
assert "optuna" not in sys.modules
assert optimizer.MAPSampler.__name__ == "MAPSampler" and not hasattr(optimizer, "NoSampler")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
