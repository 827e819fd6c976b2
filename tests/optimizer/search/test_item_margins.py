"""What samplers learn of each item's answer, and that they take it for no more than it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from mergefront.optimizer.scores.evaluation import RACED, Evaluation, ItemScores
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.attributes import MARGINS
from mergefront.optimizer.search.item_margins import MOST_ITEMS, margins_of
from mergefront.optimizer.search.loop import told_attributes

Answers = Sequence[tuple[float, float]]


def told(answers: Answers, ids: Sequence[str] | None = None, details: dict[str, object] | None = None) -> FrozenTrial:
    """A trial of one task whose items have these scores and margins."""
    scores, margins = (tuple(values) for values in zip(*answers, strict=True))
    items = ItemScores(tuple(ids or map(str, range(len(scores)))), scores, margins)
    evaluation = Evaluation({"maths": items.mean}, {}, {"maths": items}, details=details or {})
    attributes, _ = told_attributes([Objective("maths")], [], evaluation)
    return create_trial(
        state=TrialState.COMPLETE, values=[items.mean], user_attrs=dict(attributes.user),
        system_attrs=dict(attributes.system),
    )  # fmt: skip


RIGHT_OR_WRONG = st.floats(-1e5, 1e5, allow_nan=False).flatmap(
    lambda margin: st.tuples(st.just(float(margin > 0)) if margin else st.sampled_from([0.0, 1.0]), st.just(margin))
)


@given(st.lists(RIGHT_OR_WRONG, min_size=1, max_size=12))
def test_rounding_turns_no_answer_and_keeps_three_digits(answers: Answers) -> None:
    (found,) = margins_of([told(answers)], 1)
    assert found is not None
    for (score, margin), kept in zip(answers, found[0], strict=True):
        assert (kept > 0) == (score > 0)
        assert kept == pytest.approx(max(min(margin, 65504.0), -65504.0), rel=1e-3, abs=1e-7)


RIGHT, WRONG = (1.0, 2.0), (0.0, -0.5)


def test_of_trials_that_asked_the_same_items_there_is_a_row_each() -> None:
    (found,) = margins_of([told([RIGHT, WRONG]), told([WRONG, WRONG])], 1)
    np.testing.assert_array_equal(found, [[2.0, -0.5], [-0.5, -0.5]])


@pytest.mark.parametrize(
    "other",
    [
        told([RIGHT, WRONG], ["1", "2"]),
        told([RIGHT, WRONG, WRONG]),
        told([(0.7, 2.0), (0.2, 1.0)]),
        told([(1.0, -2.0), (0.0, 1.0)]),
        told([(1.0, float("inf")), WRONG]),
        told([RIGHT, WRONG], details={RACED: {}}),
        told([RIGHT] * (MOST_ITEMS + 1)),
        create_trial(state=TrialState.COMPLETE, values=[0.5]),
        create_trial(state=TrialState.COMPLETE, values=[0.5], system_attrs={MARGINS: [None]}),
    ],
    ids=[
        "other items", "more items", "scores between", "margins that say otherwise", "no number", "raced", "too many",
        "told by an earlier version", "unknown",
    ],
)  # fmt: skip
def test_one_trial_without_them_is_enough_for_none(other: FrozenTrial) -> None:
    """A study that was begun without margins goes on as it was begun."""
    assert margins_of([told([RIGHT, WRONG]), other], 1) == (None,)
