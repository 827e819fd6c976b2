"""Ax's Client with its defaults, told the same anchors and the same reference point as the others.

It is installed in an environment of its own (``python -m benchmarks.search.peer_environment``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
REFERENCE = -0.1


class AxClient:
    """Points of the unit cube; ``tell`` every evaluation once, in order, then ``ask``."""

    def __init__(self, dimension: int, objectives: int, seed: int, method: str = "fast") -> None:
        from ax.api.client import Client
        from ax.api.configs import RangeParameterConfig

        logging.getLogger("ax").setLevel(logging.ERROR)
        self.names = [f"x{i}" for i in range(dimension)]
        self.metrics = [f"y{j}" for j in range(objectives)]
        self.client = Client(random_seed=seed)
        self.client.configure_experiment(
            parameters=[
                RangeParameterConfig(name=name, parameter_type="float", bounds=(0.0, 1.0)) for name in self.names
            ]
        )
        self.client.configure_optimization(
            objective=", ".join(self.metrics),
            outcome_constraints=[f"{metric} >= {REFERENCE}" for metric in self.metrics],
        )
        self.client.configure_generation_strategy(method=method, initialization_random_seed=seed)
        self.asked: dict[int, Array] = {}

    def tell(self, point: Array, values: Sequence[float]) -> None:
        waiting = [index for index, asked in self.asked.items() if np.allclose(asked, point, atol=1e-9)]
        if waiting:
            index = waiting[0]
            del self.asked[index]
        else:
            index = self.client.attach_trial(parameters=dict(zip(self.names, map(float, point), strict=True)))
        data: dict[str, Any] = {metric: float(value) for metric, value in zip(self.metrics, values, strict=True)}
        self.client.complete_trial(trial_index=index, raw_data=data)

    def ask(self) -> Array:
        ((index, parameters),) = self.client.get_next_trials(max_trials=1).items()
        self.asked[index] = np.array([float(parameters[name]) for name in self.names])
        return self.asked[index]
