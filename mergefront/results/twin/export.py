"""Writing a twin: the LoRAs of what a merge lost, and the router that chooses among them.

| file | is |
| --- | --- |
| experts/NAME/ | the LoRA of one expert on the merge beside it, as PEFT and vLLM load it |
| router.json | which expert a prompt is for (``router``) |
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from mergefront.adapters.merging.output.lost import Lost, write_lost
from mergefront.adapters.merging.output.plan import MergePlan
from mergefront.adapters.tasks.task import Task
from mergefront.optimizer.recipes.anchors import expert_anchor
from mergefront.results.twin.prompts import embedding_of, mean_embeddings, prompts_of
from mergefront.results.twin.router import Router, fit
from mergefront.study.evaluators import tasks_of
from mergefront.study.stored_study import Study

EXPERTS, ROUTER = "experts", "router.json"
_LOG = logging.getLogger(__name__)


def write_twin(study: Study, plan: MergePlan, folder: Path, rank: int) -> None:
    """Write LoRAs and router beside the merge in ``folder``. Raises ``UserError`` where there can be none."""
    lost = write_lost(plan, folder, folder / EXPERTS, rank)
    for name, one in lost.items():
        _LOG.info("expert %s: %.1f %% of what the merge lost of it is in its LoRA", name, 100 * one.kept)
    router = fit_router(study, folder)
    if router is not None:
        router.write(folder / ROUTER)
    (folder / EXPERTS / "README.md").write_text(_card(lost, router, rank), encoding="utf-8")


def fit_router(study: Study, folder: Path) -> Router | None:
    """A router of the study's search items, each of which is for the expert that is best at its task.

    None where no task asks a model by prompts, and where no expert was scored on one.
    """
    asking = [task for task in tasks_of(study.definition) if task.verb in ("generate", "loglikelihood")]
    owners = {task.name: expert for task in asking if (expert := best_expert(study, task)) is not None}
    tasks = [task for task in asking if task.name in owners]
    if not tasks:
        return None
    texts = {task.name: prompts_of(task, task.items("search")) for task in tasks}
    labels = [owners[name] for name, asked in texts.items() for _ in asked]
    means = mean_embeddings(folder, [text for asked in texts.values() for text in asked])
    return fit(means, labels, owners, embedding_of(folder))


def best_expert(study: Study, task: Task) -> str | None:
    """The expert with the best score of its own on a task's search items; None where none has one."""
    anchors = {anchor.anchor: anchor.evaluation.scores for anchor in study.anchors()}
    scored = {expert: anchors.get(expert_anchor(expert), {}).get(task.name) for expert in study.space.models}
    found = {expert: float(score) for expert, score in scored.items() if score is not None}
    sign = 1.0 if task.direction == "maximize" else -1.0
    return max(found, key=lambda expert: sign * found[expert]) if found else None


def _card(lost: Mapping[str, Lost], router: Router | None, rank: int) -> str:
    lines = [
        "# What the merge lost of its experts",
        "",
        f"One LoRA of rank {rank} for each expert, to be put on the merge in the folder above (Twin-Merging).",
        "*kept* is the LoRA's share of the squared difference between expert and merge.",
        "",
        "| expert | kept | MB |",
        "| --- | --- | --- |",
        *(f"| {name} | {one.kept:.1%} | {one.bytes / 1e6:.1f} |" for name, one in lost.items()),
        "",
        "```",
        f"vllm serve .. --enable-lora --max-lora-rank {_served_rank(rank)} --lora-modules "
        + " ".join(f"{name}={name}" for name in lost),
        "```",
    ]
    if router is not None:
        owners = ", ".join(f"{task}: {expert}" for task, expert in router.tasks.items())
        lines += ["", f"`router.json` above says whose prompt one is ({owners});"]
        lines.append(f"it is right on {router.accuracy:.1%} of the items that it was not fitted on.")
    return "\n".join(lines) + "\n"


def _served_rank(rank: int) -> int:
    """The smallest rank that vLLM has room for."""
    return next((known for known in (8, 16, 32, 64, 128, 256, 320, 512) if known >= rank), rank)
