"""Whether an exported model is the one that was scored: tensor by tensor, or by scoring some items again."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mergefront.optimizer.errors import MergefrontError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.results.export import write_mixture

if TYPE_CHECKING:
    from mergefront.study.stored_study import Candidate, Study

ITEMS = 12
"""Items of each task that are scored again where tensors cannot tell: a dozen takes seconds to minutes."""


def check_export(study: Study, candidate: Candidate, folder: Path) -> str:
    """One sentence on whether the model in ``folder`` is the candidate as it was scored.

    A local study's merge is made live once more and compared with the folder tensor by tensor. Where tensors differ
    (compressed task vectors, an accelerator's arithmetic), and for studies that were scored by servers, a dozen items
    of each task are scored again with the exported model.
    """
    evaluator = study.definition.evaluator
    if not evaluator.asks_models:
        return "Not compared with what was scored: a function of your own scored it."
    told = ""
    try:
        if evaluator.type == "local":
            compared, differing = _differing(study, candidate, folder)
            if not differing:
                return f"All {compared} tensors equal the merge that was scored."
            told = f"{len(differing)} of {compared} tensors are not those that were scored (first {differing[0]}). "
        return told + _scored_again(study, candidate, folder)
    except MergefrontError as error:
        return f"{told}Not compared with what was scored: {error}"


def _differing(study: Study, candidate: Candidate, folder: Path) -> tuple[int, list[str]]:
    """How many tensors were compared, and the names of those that differ."""
    from mergefront.adapters.checkpoints.header import Checkpoint
    from mergefront.study.evaluators import is_mixture, local_backend

    if is_mixture(study.definition):
        with TemporaryDirectory() as name:
            write_mixture(study, candidate.recipe, Path(name))
            again, written = Checkpoint(Path(name)), Checkpoint(folder)
            names = sorted(again.header.tensors.keys() | written.header.tensors.keys())
            differing = [
                one for one in names if one not in again or one not in written or not _equal(again[one], written[one])
            ]
            return len(names), differing
    backend = local_backend(study.definition)
    with backend.apply(candidate.recipe):
        return backend.compare(Checkpoint(folder))


def _equal(one: Any, other: Any) -> bool:
    return bool(one.shape == other.shape and one.dtype == other.dtype and (one == other).all())


def _scored_again(study: Study, candidate: Candidate, folder: Path) -> str:
    from mergefront.adapters.local.backend import LocalBackend
    from mergefront.study.evaluators import tasks_of

    known = study.ledger.find(candidate.recipe)
    tasks = {task.name: task for task in tasks_of(study.definition) if task.verb in ("generate", "loglikelihood")}
    stored = {} if known is None else {name: items for name, items in known.items.items() if name in tasks}
    if not stored:
        return "No scores of items are stored, so that none could be compared."
    runtime = study.definition.runtime
    backend = LocalBackend.from_checkpoints(
        folder,
        {"exported": folder},
        device=runtime.get("device", "auto"),
        device_map=runtime.get("device_map"),
        max_memory=runtime.get("max_memory"),
    )
    said = []
    unchanged = Recipe("task_arithmetic", {"exported": str(folder)}, {"weight[exported]": 0.0}, str(folder))
    with backend.apply(unchanged) as model:
        for name, items in stored.items():
            before = dict(list(zip(items.ids, items.scores, strict=True))[:ITEMS])
            again = [item for item in tasks[name].items("search") if item.id in before]
            if again:
                after = tasks[name].score(model, again).mean
                mean = sum(before[item.id] for item in again) / len(again)
                said.append(f"{name} {after:.3f} ({mean:.3f} when it was searched, {len(again)} items)")
    return f"Scored again with the exported model: {', '.join(said)}."
