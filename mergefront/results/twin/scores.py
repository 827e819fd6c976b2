"""What a twin scores: the merge alone, with the LoRA of each task's expert (the oracle), with the router's choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergefront.adapters.checkpoints.header import read_header
from mergefront.adapters.local.backend import LocalBackend
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.anchors import expert_anchor
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import ItemScores
from mergefront.results.twin.export import EXPERTS, ROUTER
from mergefront.results.twin.prompts import mean_embeddings, prompts_of
from mergefront.results.twin.router import Router
from mergefront.study.evaluators import tasks_of
from mergefront.study.stored_study import Study

ALONE, ORACLE, ROUTED, OWN = (
    "merge alone",
    "with the task's expert",
    "with the router's choice",
    "the experts themselves",
)


@dataclass(frozen=True)
class TwinRow:
    """One way to answer: its name, the megabytes of weights that it takes, and its score and standard error by task."""

    name: str
    megabytes: float
    scores: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class TwinScores:
    """The rows of a report on a twin; ``right`` is the router's share of right choices on the same items, by task."""

    rows: Sequence[TwinRow]
    right: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """What ``mergefront report --json`` has under "twin"."""
        rows = [
            {
                "name": row.name,
                "megabytes": row.megabytes,
                "scores": {
                    task: {"score": mean, "standard_error": error} for task, (mean, error) in row.scores.items()
                },
            }
            for row in self.rows
        ]
        return {"rows": rows, "router_right": dict(self.right)}


def twin_scores(study: Study, folder: Path) -> TwinScores:
    """Score what ``export --twin`` wrote to a folder, on the report items.

    Each item is asked at most three times: of the merge, of the merge with the LoRA of its task's expert, and with that
    of the router's choice, where it is another one. Raises ``UserError`` for a folder that is no twin, and for tasks
    that judges or Python functions score.
    """
    if not (folder / ROUTER).is_file():
        raise UserError(f"--twin: {folder} has no {ROUTER}; write one with 'mergefront export ... --twin RANK'")
    if study.definition.evaluator.judges:
        raise UserError("--twin: a judge's tasks are not scored again; this study has judges")
    router = Router.read(folder / ROUTER)
    tasks = [task for task in tasks_of(study.definition) if task.name in router.tasks]
    loras = {expert: folder / EXPERTS / expert for expert in study.space.models}
    device = study.definition.runtime.get("device", "auto")
    backend = LocalBackend.from_checkpoints(folder, loras, device=device)
    alone, oracle, routed, right = {}, {}, {}, {}
    for task in tasks:
        items, owner = task.items("report"), router.tasks[task.name]
        chosen = router.choose(mean_embeddings(folder, prompts_of(task, items)))
        right[task.name] = chosen.count(owner) / len(chosen)
        by_expert = {owner: list(items)}
        for item, expert in zip(items, chosen, strict=True):
            if expert != owner:
                by_expert.setdefault(expert, []).append(item)
        answered: dict[tuple[str, str], float] = {}
        for expert, asked in by_expert.items():
            with backend.apply(_with(expert, loras, folder)) as model:
                scored = task.score(model, asked)
            answered |= {(expert, name): score for name, score in zip(scored.ids, scored.scores, strict=True)}
        with backend.apply(_with(None, loras, folder)) as model:
            alone[task.name] = _summary(task.score(model, items))
        ids = tuple(item.id for item in items)
        oracle[task.name] = _summary(ItemScores(ids, tuple(answered[owner, name] for name in ids)))
        routed[task.name] = _summary(
            ItemScores(ids, tuple(answered[expert, name] for expert, name in zip(chosen, ids, strict=True)))
        )
    own = _own_scores(study, router)
    merge = read_header(folder).bytes / 1e6
    with_loras = merge + sum(read_header(lora).bytes for lora in loras.values()) / 1e6
    rows = [TwinRow(ALONE, merge, alone), TwinRow(ORACLE, with_loras, oracle), TwinRow(ROUTED, with_loras, routed)]
    rows.append(TwinRow(OWN, merge * len(set(router.tasks.values())), own))
    return TwinScores(rows, right)


def _with(expert: str | None, loras: Mapping[str, Path], folder: Path) -> Recipe:
    """The merge and one LoRA, or none."""
    models = {name: str(lora) for name, lora in loras.items()}
    return Recipe("task_arithmetic", models, {f"weight[{name}]": float(name == expert) for name in models}, str(folder))


def _summary(items: ItemScores) -> tuple[float, float]:
    return items.mean, items.standard_error


def _own_scores(study: Study, router: Router) -> dict[str, tuple[float, float]]:
    """What each task's expert scores by itself, as far as that is stored."""
    rows = study.evaluations_on("report", study.anchors())
    by_expert = {one.anchor: rows[one.number] for one in study.anchors() if one.number in rows}
    found = {task: by_expert.get(expert_anchor(expert)) for task, expert in router.tasks.items()}
    return {task: _summary(row.items[task]) for task, row in found.items() if row is not None and task in row.items}
