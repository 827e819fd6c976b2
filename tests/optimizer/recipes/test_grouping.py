"""Blocks of layers: by depth or by importance, they cover every layer once."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.grouping import CoefficientName, Grouping, blocks_by_importance

importances = st.lists(st.floats(0, 1e6), min_size=1, max_size=9)


def shares(importance: list[float], starts: tuple[int, ...]) -> list[float]:
    ends = (*starts[1:], len(importance))
    return [sum(importance[start:end]) for start, end in zip(starts, ends, strict=True)]


@given(importances, st.data())
def test_no_other_division_shares_the_importance_more_evenly(importance: list[float], data: st.DataObject) -> None:
    blocks = data.draw(st.integers(1, len(importance)))
    starts = blocks_by_importance(importance, blocks)
    assert len(starts) == blocks and Grouping(len(importance), starts).starts == starts
    cost = sum(share**2 for share in shares(importance, starts))
    for inner in combinations(range(1, len(importance)), blocks - 1):
        assert cost <= sum(share**2 for share in shares(importance, (0, *inner))) * (1 + 1e-12)


@given(st.integers(1, 24), st.data(), st.floats(0, 1e3))
def test_layers_of_equal_importance_make_blocks_of_equal_depth(
    layers: int, data: st.DataObject, importance: float
) -> None:
    blocks = data.draw(st.integers(1, layers))
    assert Grouping.of_importance(blocks, [importance] * layers) == Grouping.equal_blocks(blocks, layers)


@given(importances, st.data(), st.sampled_from([0.25, 2.0, 1024.0]))
def test_the_unit_of_importance_does_not_matter(importance: list[float], data: st.DataObject, unit: float) -> None:
    blocks = data.draw(st.integers(1, len(importance)))
    other = [value * unit for value in importance]
    if [value / unit for value in other] == importance:
        assert blocks_by_importance(other, blocks) == blocks_by_importance(importance, blocks)


def test_a_layer_that_moved_most_gets_a_block_of_its_own() -> None:
    assert blocks_by_importance([1, 1, 20, 1, 1, 1], 3) == (0, 2, 3)


@pytest.mark.parametrize(
    ("importance", "blocks", "named"),
    [
        ([1.0, 1.0], 3, "2 layers"),
        ([1.0], 0, "blocks is 0"),
        ([1.0, -1.0], 1, "at least 0"),
        ([float("nan")], 1, "fini"),
    ],
)
def test_what_cannot_be_divided_is_named(importance: list[float], blocks: int, named: str) -> None:
    with pytest.raises(UserError, match=named):
        blocks_by_importance(importance, blocks)


@given(
    st.text("abcXYZ_", min_size=1), st.none() | st.text("abc -", min_size=1).map(str.strip).filter(bool),
    st.sampled_from([None, "mlp"]), st.sampled_from([None, ("block", 2), ("knot", 11)]),
)  # fmt: skip
def test_a_name_is_read_without_knowing_the_experts(
    parameter: str, expert: str | None, module: str | None, position: tuple[str, int] | None
) -> None:
    name = CoefficientName(parameter, expert, None if expert is None else module, position)
    assert CoefficientName.guess(str(name)) == name
    assert CoefficientName.parse(str(name), [expert] if expert else [], ["mlp"]) == name
    assert CoefficientName.guess(f"{name}]").parameter == f"{name}]"


def test_heads_and_final_norms_follow_the_last_block_and_embeddings_the_first() -> None:
    """Whatever they are called: GPT-NeoX's head, LFM2's final norm, T5's embedding."""
    grouping = Grouping(4, (0, 2))
    last = ["embed_out.weight", "model.embedding_norm.weight", "lm_head.weight", "model.norm.weight", "ln_f.weight"]
    first = ["shared.weight", "model.embed_tokens.weight", "wte.weight", "embeddings.norm.weight"]
    assert [grouping.block_of(name) for name in last] == [1] * len(last)
    assert [grouping.block_of(name) for name in first] == [0] * len(first)
