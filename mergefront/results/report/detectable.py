"""What a report's items can tell apart: the smallest difference that they would show, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median_low
from typing import Any

from mergefront.formatting import number
from mergefront.optimizer.scores.differences import LEVEL, scored_difference
from mergefront.optimizer.scores.evaluation import Evaluation
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.scores.power import POWER, detectable_by_mcnemar, detectable_by_t
from mergefront.results.verdict import Verdict, judged
from mergefront.study.stored_study import Study


@dataclass(frozen=True)
class Detectable:
    """The smallest difference of a merge and an anchor that is found at p < 0.05 with 80 % power.

    ``items`` are compared one by one (None: only standard errors are known). ``discordance`` is the share of right-or-
    wrong items that one has right and the other wrong, the median over all comparisons; other items go by the median
    standard error of a difference. ``alone`` is the difference of one comparison by itself, ``corrected`` that of the
    hardest of all the Holm-corrected ones; None: no difference would be found.
    """

    task: str
    items: int | None
    discordance: float | None
    alone: float | None
    corrected: float | None


def detectable_differences(found: Verdict, measured: Sequence[Objective]) -> list[Detectable]:
    """Of the tasks that a verdict's candidates were scored on; those whose noise is not known are left out."""
    made = (_of_task(found, objective) for objective in measured)
    return [one for one in made if one is not None]


def _of_task(found: Verdict, objective: Objective) -> Detectable | None:
    pairs = [
        (found.rows[merge], found.rows[anchor])
        for merge in found.merges
        for anchor in found.anchors.values()
        if all(objective.name in found.rows[one].scores for one in (merge, anchor))
    ]
    return detectable_difference(objective, pairs, found.comparisons)


def detectable_difference(
    objective: Objective, pairs: Sequence[tuple[Evaluation, Evaluation]], comparisons: int
) -> Detectable | None:
    """Of pairs that were scored on a task, corrected for so many comparisons; None where their noise is not known."""
    differences = [scored_difference(objective, first, second) for first, second in pairs]
    strictest = LEVEL / max(comparisons, 1)
    exact = [(part.pairs, sum(part.discordant)) for part in differences if part.pairs and part.discordant is not None]
    if exact and len(exact) == len(differences):
        items = median_low([pairs for pairs, _ in exact])
        discordance = median_low([discordant / pairs for pairs, discordant in exact])
        alone, corrected = (detectable_by_mcnemar(items, discordance, level) for level in (LEVEL, strictest))
        return Detectable(objective.name, items, discordance, alone, corrected)
    noisy = sorted((part for part in differences if part.standard_error > 0), key=lambda part: part.standard_error)
    if not noisy:
        return None
    usual = noisy[(len(noisy) - 1) // 2]
    by_t = [detectable_by_t(usual.standard_error, usual.degrees_of_freedom, level) for level in (LEVEL, strictest)]
    return Detectable(objective.name, usual.pairs, None, *by_t)


def measured_tasks(study: Study) -> list[Objective]:
    """The objectives of a study, then its tasks that are none (whose direction says nothing here)."""
    named = {objective.name for objective in study.objectives}
    return [*study.objectives, *(Objective(name) for name in study.definition.evaluator.tasks if name not in named)]


def detectable_line(found: Sequence[Detectable], comparisons: int) -> str:
    """``Smallest difference ...: maths 0.062 (0.081 among 12 comparisons; 400 items, 9 % of them discordant); ...``."""
    said = []
    for one in found:
        of = [] if one.items is None else [f"{one.items} items"]
        of += [] if one.discordance is None else [f"{100 * one.discordance:.0f} % of them discordant"]
        among = [f"{_size(one.corrected)} among {comparisons} comparisons"] if comparisons > 1 else []
        about = "; ".join([*among, ", ".join(of)] if of else among)
        said.append(f"{one.task} {_size(one.alone)}" + (f" ({about})" if about else ""))
    return f"Smallest difference found with {100 * POWER:.0f} % power at p < {LEVEL:g}: {'; '.join(said)}."


def _size(difference: float | None) -> str:
    return "none" if difference is None else number(difference)


def detectable_json(study: Study) -> dict[str, Any]:
    """``{"detectable": {"split", "comparisons", "tasks": [...]}}``; empty where no merge is compared with an anchor."""
    found = judged(study)
    if found is None:
        return {}
    tasks = [asdict(one) for one in detectable_differences(found, measured_tasks(study))]
    return {"detectable": {"split": found.split, "comparisons": found.comparisons, "tasks": tasks}}
