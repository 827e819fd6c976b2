"""What trials carry for samplers comes back as it was written, and what can be no number is left out."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergefront.optimizer.search.attributes import (
    STANDARD_ERRORS,
    expected_improvement,
    proposal_stage,
    proposed_params,
    standard_errors,
    write_proposal,
)
from mergefront.optimizer.search.ledger import bounded


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ([0.25, 0.0], [0.25, 0.0]),
        ([None, 1], [None, 1.0]),
        ([-0.1, float("nan")], [None, None]),
        (["0.1", 1e200], [None, None]),
        ([0.25], [None, None]),
        (None, [None, None]),
    ],
)
def test_a_standard_error_is_known_or_it_is_not(written: Any, read: list[float | None]) -> None:
    """0 is exact and stays so; other programs write to these tables too."""
    trial = optuna.create_trial(state=optuna.trial.TrialState.RUNNING, user_attrs={STANDARD_ERRORS: written})
    assert standard_errors(trial, 2) == read


@pytest.mark.parametrize("improvement", [None, 0.0, 0.5])
def test_a_published_proposal_is_read_as_it_was_written(improvement: float | None) -> None:
    """Other workers propose with it in mind, and a run that waits for improvement stops by it."""
    study = optuna.create_study()
    study.ask()
    (trial,) = study.get_trials()
    assert (expected_improvement(trial), proposal_stage(trial), proposed_params(trial)) == (None, None, {})
    write_proposal(study, trial, "model", {"x": 0.5}, improvement)
    (trial,) = study.get_trials()
    assert (expected_improvement(trial), proposal_stage(trial)) == (improvement, "model")
    assert proposed_params(trial) == {"x": 0.5}


@given(st.text(max_size=400), st.integers(60, 300))
def test_a_text_that_is_cut_keeps_both_ends_and_says_how_much_is_gone(text: str, longest: int) -> None:
    """The last line of a traceback is the one that says what happened."""
    kept = bounded(text, longest)
    if len(text) <= longest:
        assert kept == text
        return
    half = longest // 2 - 10
    assert len(kept) <= longest and kept.startswith(text[:half]) and kept.endswith(text[len(text) - half :])
    assert f"[{len(text) - 2 * half} more]" in kept
