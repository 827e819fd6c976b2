"""Waiting: bounded, growing, repeatable, and as the server asks."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergefront.adapters.remote.http.retry import RetryPolicy, retry_after


@given(st.integers(1, 200), st.integers(0, 2**40), st.text(max_size=20))
def test_waits_stay_in_bounds_and_do_not_depend_on_history(attempt: int, seed: int, key: str):
    policy = RetryPolicy(10, 0.25, 30.0)
    wait = policy.wait(attempt, seed, key)
    bound = min(30.0, 0.25 * 2.0 ** (attempt - 1))
    assert bound / 2 <= wait <= bound
    assert wait == policy.wait(attempt, seed, key)


def test_clients_with_different_seeds_spread():
    policy = RetryPolicy()
    assert len({policy.wait(3, seed, "request") for seed in range(50)}) == 50


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Mon, 01 Jan 2029 00:00:10 GMT", 10.0),
        ("Mon, 01 Jan 2024 00:00:10 GMT", 0.0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_retry_after_is_read_as_number_or_date(header: str | None, seconds: float | None):
    assert retry_after(header, datetime(2029, 1, 1, tzinfo=UTC)) == seconds
