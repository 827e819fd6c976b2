"""Optuna's own conformance suites: a sampler that breaks Optuna's contract breaks its users' studies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from mergefront.optimizer.samplers import MMMOSampler


class TestDefaultVariant(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: MMMOSampler(seed=0, n_startup=3)


class TestPaperVariant(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: MMMOSampler(seed=0, variant="paper", n_startup=5, batch=2)
