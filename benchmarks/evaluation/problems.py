"""Merge problems with many items a task: tiny language models and networks that answer in milliseconds (1,000 items at
least), and recorded answers of a real language model (400)."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation.answers import answered
from benchmarks.search.experts import PoolSpec, margins, trained_pool
from benchmarks.search.language_models.problems import SKILL_MERGES
from benchmarks.search.problems import SMOLLM
from benchmarks.search.recorded_landscape import RecordedLandscape
from mergefront.adapters.evaluator import TaskEvaluator
from mergefront.adapters.local.backend import LocalBackend
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.tasks.task_types import build_task
from mergefront.demo.experts import train_models
from mergefront.demo.skills import SKILLS, item, questions
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest, Evaluator
from mergefront.optimizer.seeding import derive_seed

ITEMS = 1000
METRICS = {"reverse": "exact_match", "sort": "exact_match", "most": "loglikelihood"}


@dataclass(frozen=True)
class Built:
    """A problem that is ready to be searched: ``objectives`` are its tasks."""

    space: MergeSpace
    evaluator: Evaluator
    objectives: tuple[str, ...]


@dataclass(frozen=True)
class LanguageModels:
    """The demo's three experts, trained from ``seed``, 1,000 search items for each skill."""

    seed: int
    method: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"weight": [0, 1]})
    items: int = ITEMS

    def build(self, cache: Path) -> Built:
        """Models and data are made in ``cache`` once."""
        folder = cache / f"models-{self.seed}"
        if not (folder / "done").exists():
            held_out = _write_data(folder / "data", self.seed)
            train_models(folder / "models", held_out, self.seed, print)
            (folder / "done").touch()
        models = {name: folder / "models" / name for name in SKILLS}
        base = folder / "models" / "base"
        space = MergeSpace(
            {name: str(path) for name, path in models.items()},
            method=self.method,
            base_model=str(base),
            parameters=self.parameters,
            layers=2,
        )
        backend = LocalBackend.from_checkpoints(base, models, device="cpu")
        tasks = [
            build_task(
                name,
                {"type": "jsonl", "metric": METRICS[name], "path": f"data/{name}.jsonl", "report_fraction": 0.5},
                folder,
                self.seed,
            )
            for name in SKILLS
        ]
        return Built(space, TaskEvaluator(backend, tasks), tuple(SKILLS))


@dataclass(frozen=True)
class Networks:
    """Small networks of ``benchmarks.search``; ``groups`` objectives, each over the items of several skills."""

    pool: PoolSpec
    method: str
    parameters: Mapping[str, Any]
    groups: int
    granularity: Any = "global"
    items: int = ITEMS

    def build(self, cache: Path) -> Built:
        pool = trained_pool(self.pool, cache)
        skills = list(pool.experts)
        groups = {
            f"skill{i}": skills[i * len(skills) // self.groups : (i + 1) * len(skills) // self.groups]
            for i in range(self.groups)
        }
        space = MergeSpace(
            skills,
            base_model="base",
            method=self.method,
            parameters=self.parameters,
            granularity=self.granularity,
            layers=self.pool.layers,
        )
        return Built(space, NetworkEvaluator(pool, groups), tuple(groups))


@dataclass(frozen=True)
class RecordedAnswers:
    """Recorded answers of a real language model with three LoRAs (``benchmarks.search``): every skill is a task, or all
    skills' items are two tasks of as many ``items``."""

    landscape: Path
    items: int
    halves: bool = False

    def build(self, cache: Path) -> Built:
        recorded = RecordedLandscape.read(self.landscape)
        space = MergeSpace(
            list(recorded.axes), base_model="base", method="task_arithmetic", parameters={"weight": [0, 1]}
        )
        every = [item for items in recorded.items.values() for item in items]
        halves = {"first": every[: len(every) // 2], "second": every[len(every) // 2 :]}
        tasks = halves if self.halves else recorded.items
        return Built(space, RecordedEvaluator(recorded, tasks), tuple(tasks))


class RecordedEvaluator:
    """Answers from a recorded landscape; ``ids`` are the items of each task, in its order."""

    def __init__(self, recorded: RecordedLandscape, ids: Mapping[str, Sequence[str]]) -> None:
        self.recorded, self.ids = recorded, ids

    def evaluate(self, recipe: Recipe, request: EvaluationRequest) -> Evaluation:
        found = self.recorded.at({expert: float(recipe.params[f"weight[{expert}]"]) for expert in self.recorded.axes})
        margins = np.array_split(np.concatenate(list(found.values())), len(self.ids))
        values = dict(zip(self.ids, margins, strict=True))
        return answered(request, self.ids, {name: (one > 0).astype(float) for name, one in values.items()}, values)


Problem = LanguageModels | Networks | RecordedAnswers
Array = np.ndarray[Any, np.dtype[np.float64]]

_WEIGHT_DENSITY = {"weight": [0, 1], "density": [0.1, 1]}

PROBLEMS: dict[str, Problem] = {
    "language models, task arithmetic, 3 weights": LanguageModels(0, "task_arithmetic"),
    "language models, ties, 3 weights and 3 densities": LanguageModels(
        1, "ties", {"weight": [0, 1.5], "density": [0.1, 1]}
    ),
    "residual networks, ties, 3 weights and 3 densities": Networks(
        PoolSpec("residual", 3, 4, ITEMS, (60, 200)), "ties", _WEIGHT_DENSITY, 3
    ),
    "attention networks, ties, 3 weights and 3 densities": Networks(
        PoolSpec("attention", 3, 2, ITEMS, (60, 150)), "ties", _WEIGHT_DENSITY, 3
    ),
    "residual networks, ties, 5 experts, 2 objectives": Networks(
        PoolSpec("residual", 5, 4, ITEMS // 2, (60, 200)), "ties", _WEIGHT_DENSITY, 2
    ),
    "residual networks, layer by layer, 24 weights": Networks(
        PoolSpec("residual", 3, 8, ITEMS, (60, 200)), "task_arithmetic", {"weight": [0, 1]}, 3, "layers"
    ),
    **{
        f"SmolLM2-135M, `{experts}`, 3 weights": RecordedAnswers(
            SKILL_MERGES[f"SmolLM2 {experts}, weights 3-d, 400 items"].landscape, 400
        )
        for experts in ("written", "ordered")
    },
}

ITEM_PROBLEMS: Mapping[str, Problem] = {
    **PROBLEMS,
    **{f"{name}, recorded": RecordedAnswers(loras.landscape, 60, halves=True) for name, loras in SMOLLM.items()},
}
"""Those and recorded ones, which have fewer items."""


class NetworkEvaluator:
    """Answers items from a merged network's margins; an item is right above 0."""

    def __init__(self, pool: Any, groups: Mapping[str, Sequence[str]]) -> None:
        self.pool, self.groups = pool, dict(groups)
        self.engine = MergeEngine(pool.base, pool.experts, compile=False)
        self.merged = {name: tensor.clone() for name, tensor in pool.base.items()}
        self.ids = {
            name: tuple(f"{skill}:{i}" for skill in skills for i in range(len(pool.items[skill][1])))
            for name, skills in self.groups.items()
        }

    def evaluate(self, recipe: Recipe, request: EvaluationRequest) -> Evaluation:
        self.engine.merge_into(recipe, self.merged)
        found = margins(self.pool, self.merged)
        values = {
            name: np.concatenate([found[skill].double().numpy() for skill in self.groups[name]]) for name in self.ids
        }
        return answered(request, self.ids, {name: (one > 0).astype(float) for name, one in values.items()}, values)


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
