"""Optuna's own conformance suites: a sampler that breaks Optuna's contract breaks its users' studies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

from mergefront.optimizer import MMMOSampler
from mergefront.optimizer.samplers.registry import make_sampler
from mergefront.optimizer.scores.objectives import Objective


class TestDefaultVariant(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: MMMOSampler(seed=0, n_startup=3)


@pytest.mark.long
class TestPaperVariant(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: MMMOSampler(seed=0, variant="paper", n_startup=5, batch=2)


def _named(name: str) -> Callable[[], BaseSampler]:
    return lambda: make_sampler(name, seed=0, objectives=[Objective("score")])


@pytest.mark.long
class TestTPE(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return _named("tpe")


@pytest.mark.long
class TestTPEMultivariate(BasicSamplerTestCase, RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: make_sampler(
            "tpe-multivariate", seed=0, objectives=[Objective("score")], options={"n_startup_trials": 1}
        )


@pytest.mark.long
class TestNSGAII(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return _named("nsga2")


@pytest.mark.long
class TestSobol(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return _named("sobol")


@pytest.mark.long
class TestCmaEs(BasicSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return _named("cma-es")


@pytest.mark.long
class TestNSGAIII(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return _named("nsga3")


@pytest.mark.long
class TestRandom(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return _named("random")


@pytest.mark.long
class TestGP(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return _named("gp")
