"""A study's definition: all that decides which recipes are tried and how they are scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergefront.optimizer.racing.race import RacingSettings
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.constraints import Constraint
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.stopping import NEVER, StopRule


@dataclass(frozen=True)
class StudyDefinition:
    """What a study file or a call of ``search`` says.

    ``evaluator`` is a JSON object from which the evaluator is made again on resume (see
    ``mergefront.study.evaluators``); ``root`` is the folder that relative paths in it start from;
    ``runtime`` says where it runs ("device"); ``method_files`` are the user's own merge methods, content
    hashes by path. Storage, root, runtime and evaluations may change
    between runs of one study; the rest must stay.
    """

    name: str
    space: MergeSpace
    objectives: tuple[Objective, ...]
    evaluator: Mapping[str, Any]
    sampler: str = "mm-mo"
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    evaluations: int = 30
    storage: str = "sqlite:///mergefront.db"
    root: Path = Path(".")
    runtime: Mapping[str, Any] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()
    stop: StopRule = NEVER
    warm_start: tuple[Mapping[str, str], ...] = ()
    racing: RacingSettings | None = None
    method_files: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What is stored: all that must stay the same while a study is continued, and ``runtime``."""
        made = {
            "space": self.space.to_json(),
            "objectives": [
                {
                    "name": objective.name,
                    "direction": objective.direction,
                    "range": None if objective.range is None else list(objective.range),
                }
                for objective in self.objectives
            ],
            "constraints": [str(constraint) for constraint in self.constraints],
            "stop": self.stop.to_json(),
            "warm_start": [dict(entry) for entry in self.warm_start],
            "evaluator": dict(self.evaluator),
            "sampler": {"name": self.sampler, "options": dict(self.sampler_options)},
            "seed": self.seed,
            "runtime": dict(self.runtime),
            "racing": None if self.racing is None else self.racing.to_json(),
        }
        return {**made, "method_files": dict(self.method_files)} if self.method_files else made
