"""A small finished study, made as a user makes one: a study file, a function, ``mergefront run``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mergefront as mf

SCORING = '''
import random
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores

def score(recipe):
    """Two tasks of 60 items that want different experts; one corner of the space diverges."""
    weights = {name: float(recipe.params.get(f"weight[{name}]", 0.5)) for name in recipe.models}
    if weights["maths"] > 0.9 and weights["french"] > 0.2:
        raise ValueError("diverged: loss [inf]")
    tasks = {}
    for own, other in (("maths", "french"), ("french", "maths")):
        quality = 0.1 + 1.1 * weights[own] - 0.4 * weights[own] ** 2 - 0.5 * max(0.0, weights[other] - 0.4)
        passed = [float(quality > random.Random(f"{own}{item}").random()) for item in range(60)]
        tasks[own] = ItemScores(tuple(f"{own}-{item}" for item in range(60)), tuple(passed))
    scores = {name: items.mean for name, items in tasks.items()}
    errors = {name: items.standard_error for name, items in tasks.items()}
    delta = 1000 * sum(weights.values())
    return Evaluation({**scores, "delta_l1": delta}, errors, tasks, {"total": 0.01})
'''

STUDY = """
study: {name}
seed: 0
merge:
  method: {method}
  models: [maths, french]
  space: {{weight: [0, 1], density: [0.1, 1]}}
backend: {{type: function, call: "cli_scoring:score"}}
objectives: {objectives}
search: {{sampler: random, evaluations: {evaluations}}}
"""

WriteStudy = Callable[..., Path]


@pytest.fixture(scope="session")
def write_study() -> WriteStudy:
    """Writes a study file and its scoring function into a folder; returns the file."""

    def write(
        folder: Path,
        name: str = "skills",
        objectives: str = "[maths, french]",
        evaluations: int = 24,
        method: str = "ties",
    ) -> Path:
        (folder / "cli_scoring.py").write_text(SCORING)
        path = folder / f"{name}.yaml"
        path.write_text(STUDY.format(name=name, objectives=objectives, evaluations=evaluations, method=method))
        return path

    return write


@pytest.fixture(scope="session")
def studies_folder(tmp_path_factory: pytest.TempPathFactory, write_study: WriteStudy) -> Path:
    """A folder with mergefront.db, holding the finished studies "one", "skills" and "three"."""
    folder = tmp_path_factory.mktemp("studies")
    for name, objectives in (
        ("one", "[maths]"),
        ("skills", "[maths, french]"),
        ("three", "[maths, french, {name: delta_l1, direction: minimize}]"),
    ):
        mf.run(write_study(folder, name, objectives))
    return folder


@pytest.fixture
def storage(studies_folder: Path) -> str:
    return f"sqlite:///{studies_folder / 'mergefront.db'}"
