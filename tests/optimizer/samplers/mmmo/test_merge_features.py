"""A surrogate that took two names of one merge for two merges would waste evaluations, the costly thing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution

from mergefront.optimizer.recipes.merge_rule import MergeRule
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.recipes.unit_cube import Condition, Encoder
from mergefront.optimizer.samplers.mmmo.merge_features import MergeFeatures

SPACE = {
    "weight[maths]": FloatDistribution(0.0, 2.0),
    "weight[code]": FloatDistribution(0.0, 2.0),
    "density[maths]": FloatDistribution(0.1, 1.0),
    "density[code]": FloatDistribution(0.1, 1.0),
    "lambda": FloatDistribution(0.5, 1.5),
}
ENCODER = Encoder(SPACE)
unit = st.floats(0.05, 1.0)
TIES = MergeRule(proportions=True, additive=True, sparsifier="magnitude", signs=True)
PLAIN = (MergeRule(), MergeRule(proportions=True))
ADDITIVE = (TIES, MergeRule(additive=True, sparsifier="bernoulli", signs=True, rescaled=True))


def features(proportions: bool, **params: float) -> np.ndarray:
    given = {"lambda": 1.0} | {name.replace("_of_", "[") + "]": value for name, value in params.items()}
    return MergeFeatures(ENCODER, MergeRule(proportions))(ENCODER.encode(given)[None, :])[0]


@given(unit, unit, st.floats(0.1, 1.0), st.floats(0.1, 1.0), st.floats(0.1, 1.9))
def test_where_the_merge_divides_by_the_weights_only_their_proportions_count(
    a: float, b: float, density_a: float, density_b: float, factor: float
) -> None:
    def at(scale: float) -> np.ndarray:
        return features(
            True,
            weight_of_maths=a * scale, weight_of_code=b * scale,
            density_of_maths=density_a, density_of_code=density_b,
        )  # fmt: skip

    np.testing.assert_allclose(at(1.0), at(factor), atol=1e-12)


@pytest.mark.parametrize(("without", "with_weight"), [("maths", "code"), ("code", "maths")])
@given(st.booleans(), st.floats(0.1, 1.0), st.floats(0.1, 1.0))
def test_a_density_counts_exactly_where_its_own_expert_has_a_weight(
    without: str, with_weight: str, proportions: bool, one: float, other: float
) -> None:
    weights = {f"weight_of_{without}": 0.0, f"weight_of_{with_weight}": 0.7}

    def at(expert: str, density: float) -> np.ndarray:
        densities = {"density_of_maths": 0.5, "density_of_code": 0.5, f"density_of_{expert}": density}
        return features(proportions, **weights, **densities)

    np.testing.assert_array_equal(at(without, one), at(without, other))
    assume(abs(one - other) > 1e-3)
    assert (at(with_weight, one) != at(with_weight, other)).any()


@pytest.mark.parametrize("rule", [MergeRule(proportions=True), TIES])
def test_slopes_at_the_base_are_finite(rule: MergeRule) -> None:
    """There all weights are 0, and what divides by their largest would send the next proposal nowhere."""
    names = ("weight[maths]", "weight[code]")
    point = ENCODER.encode({**dict.fromkeys(names, 0.0), "density[maths]": 0.5, "density[code]": 0.5, "lambda": 1.0})
    seen, in_coordinates = MergeFeatures(ENCODER, rule).with_exact_gradient(point)
    assert np.isfinite(seen).all() and np.isfinite(in_coordinates(np.ones(len(seen)))).all()


def test_without_division_the_size_of_the_weights_counts() -> None:
    small, large = (
        features(False, weight_of_maths=w, weight_of_code=w, density_of_maths=1.0, density_of_code=1.0)
        for w in (0.4, 0.8)
    )
    assert np.abs(small - large).max() > 0.1


def test_all_weights_zero_is_the_base_and_like_no_other_merge() -> None:
    base = features(True, weight_of_maths=0.0, weight_of_code=0.0, density_of_maths=1.0, density_of_code=0.3)
    np.testing.assert_array_equal(base[:4], np.zeros(4))


def jacobian(made: MergeFeatures, point: np.ndarray) -> np.ndarray:
    """Of the features in the coordinates (``f x d``), by the slopes that are written out."""
    found, gradient = made.with_exact_gradient(point)
    np.testing.assert_allclose(found, made(point[None, :])[0], atol=1e-12)
    return np.stack([gradient(row) for row in np.eye(len(found))])


def is_near_central_differences(made: MergeFeatures, point: np.ndarray) -> None:
    step = 1e-7
    at = made(point[None, :])
    ahead, behind = (made(point + sign * step * np.eye(len(point))) for sign in (1.0, -1.0))
    is_kink = np.abs(ahead - 2.0 * at + behind) > 1e-10  # another weight is the largest, or an entry is just dropped
    difference = jacobian(made, point) - (ahead - behind).T / (2.0 * step)
    assert np.abs(difference[~is_kink.T]).max() < 1e-5
    assert is_kink.mean() < 0.5
    along = np.random.default_rng(0).standard_normal(at.shape[1])
    np.testing.assert_allclose(made.with_exact_gradient(point)[1](along), along @ jacobian(made, point), atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 0.99), min_size=5, max_size=5), st.sampled_from([*PLAIN, *ADDITIVE]))
def test_the_slopes_are_those_of_the_map(point: list[float], rule: MergeRule) -> None:
    is_near_central_differences(MergeFeatures(ENCODER, rule), np.array(point))


@pytest.mark.parametrize("method", ["ties", "dare_ties", "dare_linear", "linear", ["ties", "task_arithmetic"]])
def test_the_slopes_of_many_experts_are_those_of_the_map(method: str | list[str]) -> None:
    parameters = {"weight": [0, 1]} if method == "linear" else {"weight": [0, 1], "density": [0.1, 1]}
    space = MergeSpace([f"e{i}" for i in range(20)], method=method, base_model="base", parameters=parameters)
    encoder = Encoder(space.distributions())
    made = MergeFeatures(encoder, space.merge_rule)
    for seed in range(3):
        is_near_central_differences(made, np.random.default_rng(seed).uniform(0.05, 0.95, encoder.dimension))


def test_slopes_know_which_parameters_have_no_part_in_a_point() -> None:
    space = {"kind": CategoricalDistribution(("a", "b")), **SPACE}
    encoder = Encoder(space, {"density[maths]": Condition("kind", ("a",))})
    made = MergeFeatures(encoder, MergeRule(proportions=True))
    point = encoder.encode({"kind": "b", **dict.fromkeys(SPACE, 0.7)})
    column = encoder.numeric_columns["density[maths]"][0]
    assert (jacobian(made, point)[:, column] == 0.0).all()
    point = encoder.encode({"kind": "a", **dict.fromkeys(SPACE, 0.7)})
    assert (jacobian(made, point)[:, column] != 0.0).any()


def test_among_equal_weights_each_grows_alone_and_conditions_and_choices_have_slopes() -> None:
    space = MergeSpace(
        ["a", "b"], method=["ties", "task_arithmetic"], base_model="base",
        parameters={"weight": [0, 1], "density": [0.1, 1]},
    )  # fmt: skip
    for encoder, rule in (
        (ENCODER, TIES),
        (ENCODER, MergeRule(True)),
        (Encoder(space.distributions()), space.merge_rule),
    ):
        x, step = np.full(encoder.dimension, 0.4), 1e-7
        made = MergeFeatures(encoder, rule)
        forward = (made(x + step * np.eye(len(x))) - made(x[None, :])).T / step
        np.testing.assert_allclose(jacobian(made, x), forward, atol=2e-3)


def test_blocks_of_layers_have_proportions_of_their_own() -> None:
    space = {
        f"weight[{expert}, block {block}]": FloatDistribution(0.0, 1.0) for expert in ("a", "b") for block in (0, 1)
    }
    encoder = Encoder(space)
    point = encoder.encode(
        {"weight[a, block 0]": 0.2, "weight[b, block 0]": 0.1, "weight[a, block 1]": 0.5, "weight[b, block 1]": 1.0}
    )
    found = MergeFeatures(encoder, MergeRule(proportions=True))(point[None, :])[0]
    assert dict(zip(space, found, strict=True)) == pytest.approx(
        {"weight[a, block 0]": 1.0, "weight[b, block 0]": 0.5, "weight[a, block 1]": 0.5, "weight[b, block 1]": 1.0}
    )


@pytest.mark.parametrize(
    "name,distribution",
    [("weight[a]", FloatDistribution(-1.0, 1.0)), ("x", FloatDistribution(0.0, 1.0)),
     ("method", CategoricalDistribution(("ties", "dare_ties")))],
)  # fmt: skip
def test_anything_else_is_left_as_it_is(name: str, distribution: FloatDistribution) -> None:
    encoder = Encoder({name: distribution, "weight[b]": FloatDistribution(-1.0, 1.0)})
    points = np.random.default_rng(0).random((5, encoder.dimension))
    np.testing.assert_array_equal(MergeFeatures(encoder, MergeRule(proportions=True))(points), points)


@pytest.mark.parametrize(
    "method,parameters,expected",
    [
        ("ties", {"weight": [0, 1], "density": [0.1, 1]}, True),
        ("ties", {"weight": [0, 1], "normalize": False}, False),
        ("ties", {"weight": [0, 1], "weight[a]": 0.5}, False),
        ("linear", {"weight": [0, 1]}, True),
        ("task_arithmetic", {"weight": [0, 1]}, False),
        (["ties", "task_arithmetic"], {"weight": [0, 1]}, False),
    ],
)
def test_a_space_knows_whether_its_weights_are_proportions(method: object, parameters: dict, expected: bool) -> None:
    space = MergeSpace(["a", "b"], method=method, base_model="base", parameters=parameters)  # type: ignore[arg-type]
    assert space.weights_are_proportions is expected


@pytest.mark.parametrize(
    "method,parameters,expected",
    [
        ("ties", {"weight": [0, 1]}, TIES),
        ("dare_ties", {"weight": [0, 1]}, ADDITIVE[1]),
        ("task_arithmetic", {"weight": [0, 1]}, MergeRule(additive=True)),
        ("ties", {"weight": [0, 1], "weight[a]": 0.5}, MergeRule(sparsifier="magnitude", signs=True)),
        (["ties", "task_arithmetic"], {"weight": [0, 1]}, MergeRule()),
        (
            ["ties", "task_arithmetic"],
            {"weight": [0, 1], "density": [0.1, 1]},
            MergeRule(used_by=(("density", ("ties",)),)),
        ),
        ("linear", {"weight": [0, 1]}, MergeRule(proportions=True)),
    ],
)
def test_a_space_knows_the_arithmetic_of_its_merges(method: object, parameters: dict, expected: MergeRule) -> None:
    space = MergeSpace(["a", "b"], method=method, base_model="base", parameters=parameters)  # type: ignore[arg-type]
    assert space.merge_rule == expected


def test_projections_come_first_and_are_the_same_at_every_scale_of_proportions() -> None:
    made = MergeFeatures(ENCODER, TIES)
    params = {"density[maths]": 0.4, "density[code]": 0.9, "lambda": 1.0}
    small, large = (
        made(ENCODER.encode({"weight[maths]": 0.3 * s, "weight[code]": 0.6 * s} | params)[None, :])[0] for s in (1, 3)
    )
    assert len(small) == len(SPACE) + 2
    np.testing.assert_allclose(small, large, atol=1e-12)


@pytest.mark.parametrize(
    "names", [["weight[a]"], ["weight[a, layer 0]", "weight[b, layer 0]", "weight[a, layer 1]", "weight[b, layer 1]"]]
)
def test_weights_that_say_it_themselves_are_not_projected(names: list[str]) -> None:
    encoder = Encoder({name: FloatDistribution(0.0, 1.0) for name in names})
    assert MergeFeatures(encoder, MergeRule(additive=True)).identity


def test_a_density_counts_only_where_the_chosen_method_uses_it() -> None:
    space = MergeSpace(
        ["a", "b"], method=["ties", "task_arithmetic"], base_model="base",
        parameters={"weight": [0, 1], "density": [0.1, 1]},
    )  # fmt: skip
    encoder = Encoder(space.distributions())
    made = MergeFeatures(encoder, space.merge_rule)

    def at(method: str, density: float) -> np.ndarray:
        given = {"method": method, "weight[a]": 0.3, "weight[b]": 0.8, "density[a]": density, "density[b]": 0.5}
        return made(encoder.encode(given)[None, :])

    np.testing.assert_array_equal(at("task_arithmetic", 0.2), at("task_arithmetic", 0.9))
    assert np.abs(at("ties", 0.2) - at("ties", 0.9)).max() > 0.05


@pytest.mark.parametrize("rule", [MergeRule(), MergeRule(proportions=True)])
def test_a_density_counts_as_its_weight_does_also_where_weights_do_not_begin_at_zero(rule: MergeRule) -> None:
    """The lowest weight of a range is still a weight: the density of its expert is not without effect."""
    space = {name: FloatDistribution(0.5, 2.0) for name in ("weight[a]", "weight[b]")}
    encoder = Encoder({**space, "density[a]": FloatDistribution(0.0, 1.0)})
    made = MergeFeatures(encoder, rule)

    def density(weight: float) -> float:
        point = encoder.encode({"weight[a]": weight, "weight[b]": 2.0, "density[a]": 0.6})
        return float(made(point[None, :])[0, encoder.numeric_columns["density[a]"][0]])

    assert [density(0.5), density(1.0), density(2.0)] == pytest.approx([0.6 * 0.25, 0.6 * 0.5, 0.6])


def test_a_density_without_a_weight_that_could_scale_it_is_left_as_it_is() -> None:
    negative = {"weight[a]": FloatDistribution(-1.0, 1.0), "density[a]": FloatDistribution(0.0, 1.0)}
    for space in (negative, {"density[a]": FloatDistribution(0.0, 1.0)}):
        assert MergeFeatures(Encoder(space), MergeRule()).identity


@pytest.mark.parametrize("rule", [*PLAIN, *ADDITIVE])
def test_finite_differences_and_written_slopes_are_one_gradient(rule: MergeRule) -> None:
    """The former serve few coordinates, the latter many: a search must not depend on their number."""
    made, point = MergeFeatures(ENCODER, rule), np.array([0.31, 0.74, 0.52, 0.63, 0.4])
    (value, by_differences), (exact, written) = made.with_gradient(point), made.with_exact_gradient(point)
    np.testing.assert_allclose(value, exact, atol=1e-12)
    for row in np.eye(len(value)):
        np.testing.assert_allclose(by_differences(row), written(row), atol=2e-3)
