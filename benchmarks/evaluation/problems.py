"""Merge problems with many items: the demo's tiny language models, 1,000 search items a task."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergefront.adapters.evaluator import TaskEvaluator
from mergefront.adapters.local import LocalBackend
from mergefront.adapters.tasks import build_task
from mergefront.demo.experts import train_models
from mergefront.demo.skills import SKILLS, item, questions
from mergefront.optimizer.seeding import derive_seed
from mergefront.optimizer.space import MergeSpace

ITEMS = 1000
METRICS = {"reverse": "exact_match", "sort": "exact_match", "most": "loglikelihood"}


@dataclass(frozen=True)
class Problem:
    """Three experts trained from ``seed`` and how they are merged."""

    name: str
    seed: int
    method: str
    parameters: dict[str, Any] = field(default_factory=lambda: {"weight": [0, 1]})
    granularity: Any = "global"


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("task arithmetic, 3 weights", 0, "task_arithmetic"),
        Problem("ties, 3 weights and 3 densities", 1, "ties", {"weight": [0, 1.5], "density": [0.1, 1]}),
    )
}


def build(problem: Problem, cache: Path) -> tuple[MergeSpace, TaskEvaluator]:
    """The space and the evaluator; models and data are made in ``cache`` once."""
    folder = cache / f"models-{problem.seed}"
    if not (folder / "done").exists():
        held_out = _write_data(folder / "data", problem.seed)
        train_models(folder / "models", held_out, problem.seed, print)
        (folder / "done").touch()
    models = {name: str(folder / "models" / name) for name in SKILLS}
    space = MergeSpace(
        models,
        method=problem.method,
        base_model=str(folder / "models" / "base"),
        parameters=problem.parameters,
        granularity=problem.granularity,
        layers=2,
    )
    backend = LocalBackend.from_checkpoints(
        folder / "models" / "base", {name: Path(path) for name, path in models.items()}, device="cpu"
    )
    tasks = [
        build_task(
            name,
            {"type": "jsonl", "metric": METRICS[name], "path": f"data/{name}.jsonl", "report_fraction": 0.5},
            folder,
            problem.seed,
        )
        for name in SKILLS
    ]
    return space, TaskEvaluator(backend, tasks)


def _write_data(folder: Path, seed: int) -> set[str]:
    folder.mkdir(parents=True, exist_ok=True)
    asked: set[str] = set()
    for skill in SKILLS:
        rng = random.Random(derive_seed(seed, "evaluation benchmark", skill))
        letters = questions(skill, rng, 2 * ITEMS)
        asked |= set(letters)
        lines = (json.dumps(item(skill, string, rng)) + "\n" for string in letters)
        (folder / f"{skill}.jsonl").write_text("".join(lines), encoding="utf-8")
    return asked
