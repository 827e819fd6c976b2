"""Every option of every type of task stands in the documentation with its default, as the registries have it."""

from __future__ import annotations

import pytest
from option_tables import PAGES, metrics_of_options, table, with_tables

from mergefront.adapters.tasks.metrics.metric_spec import MetricOptions
from mergefront.adapters.tasks.task_types import TASK_TYPES


def test_the_pages_have_the_options_of_the_registries() -> None:
    """A default that no page names misleads: a space between prompt and answer cost a whole search."""
    for path in PAGES.values():
        page = path.read_text(encoding="utf-8")
        assert with_tables(page) == page, "write them with: python tests/support/option_tables.py"


@pytest.mark.parametrize("kind", TASK_TYPES)
def test_every_option_has_a_row_with_a_meaning(kind: str) -> None:
    assert f"<!-- options of {kind} -->" in PAGES[kind].read_text(encoding="utf-8")
    rows = {row.split("|")[1].strip(): row.split("|")[3].strip() for row in table(kind)[2:]}
    assert set(rows) == {f"`{name}`" for name in TASK_TYPES[kind].options.model_fields}
    assert all(rows.values()) and "None" not in rows.values()


def test_every_option_of_metrics_is_used_by_one() -> None:
    assert {*metrics_of_options(), "chat"} == set(MetricOptions.model_fields), "chat is for all of them"
