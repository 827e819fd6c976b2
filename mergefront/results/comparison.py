"""What a comparison of merge methods found: scores by expert, forgetting, cost, who beats the base, and how surely.

Scores normalised by the expert are MergeBench's protocol (arXiv 2505.10833), the chance to beat the base over random
subsets of the experts is that of the in-the-wild study (arXiv 2511.21437).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import fsum
from typing import Any

from optuna.trial import TrialState

from mergefront.adapters.evaluator import PEAK_BYTES
from mergefront.optimizer.recipes.anchors import BASE, expert_anchor
from mergefront.optimizer.recipes.published import NOT_HERE, Published
from mergefront.optimizer.scores.comparison import holm, mean_interval
from mergefront.optimizer.scores.differences import LEVEL, beats, scored_difference
from mergefront.optimizer.scores.evaluation import Evaluation
from mergefront.optimizer.scores.objectives import COMPUTED, Objective
from mergefront.optimizer.search.attributes import RECIPE
from mergefront.results.report.detectable import Detectable, detectable_difference
from mergefront.study.evaluators import tasks_of
from mergefront.study.stored_study import Candidate, Study, rounded


@dataclass(frozen=True)
class Lead:
    """The tasks in which one model is better and worse than another beyond noise."""

    better: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()

    @property
    def beats(self) -> bool:
        return beats(self.better, self.worse)


@dataclass(frozen=True)
class Row:
    """One model of the table; ``kind`` is "base", "expert" or "merge".

    ``by_expert`` are its scores as shares of the task's expert's (larger is better, None where a share means nothing),
    ``mean`` their mean. ``forgets`` is the largest share of the base's score that it loses in a task (0: none),
    ``peak_bytes`` the most memory in use while the merge was made, the models included. None: not known.
    ``violates`` are the study's constraints that it misses.
    """

    label: str
    kind: str
    trial: int
    scores: Mapping[str, float]
    by_expert: Mapping[str, float | None]
    mean: float | None
    forgets: float | None
    seconds: float | None
    peak_bytes: int | None
    against_base: Lead
    against_expert: Lead
    violates: tuple[str, ...] = ()

    @property
    def is_winner(self) -> bool:
        """Whether it satisfies every constraint and beats the base beyond noise."""
        return self.kind == "merge" and self.against_base.beats and not self.violates


@dataclass(frozen=True)
class SubsetShare:
    """On how many of the random subsets a method beats the base, and the best of the subset's experts, in the mean.

    ``interval`` is the 95 % interval of the first share (Wilson), ``by_size`` the mean of the subsets' scores as shares
    of the experts', by how many experts were merged.
    """

    label: str
    subsets: int
    beats_base: int
    beats_best_expert: int
    interval: tuple[float, float]
    by_size: Mapping[int, float]


@dataclass(frozen=True)
class Comparison:
    """Every model of a comparison, the best merge first; ``failed`` and ``left_out`` have methods and reasons."""

    study: str
    split: str
    tasks: tuple[Objective, ...]
    rows: tuple[Row, ...]
    best_expert: str | None
    shares: tuple[SubsetShare, ...]
    failed: Mapping[str, str]
    left_out: Mapping[str, str]
    unfinished: int
    verdict: str
    detectable: tuple[Detectable, ...] = ()
    """The smallest lead over the base that the items would show, by task."""

    @property
    def comparisons(self) -> int:
        """How many a lead over the base is corrected for."""
        return len(self.tasks) * sum(1 for row in self.rows if row.kind != "base")

    @property
    def merges(self) -> list[Row]:
        return [row for row in self.rows if row.kind == "merge"]

    def to_json(self) -> dict[str, Any]:
        """What ``mergefront compare --json`` prints."""
        content = asdict(self)
        content["tasks"] = [{"name": task.name, "direction": task.direction} for task in self.tasks]
        return content | {"not_in_mergefront": {study: list(names) for study, names in NOT_HERE.items()}}


def compared(study: Study, merges: Sequence[Published], left_out: Mapping[str, str], split: str) -> Comparison:
    """What the study of a comparison holds by now of its anchors and of ``merges``, on the items of a split."""
    tasks = _tasks(study)
    known = {one.digest: one for one in study.candidates()}
    kept = study.ledger.evaluations(split, items=True)
    rows = {one.number: kept[digest] for digest, one in known.items() if digest in kept}
    anchors = {str(one.anchor): one for one in study.anchors() if one.number in rows}
    experts = [expert_anchor(name) for name in study.space.models if expert_anchor(name) in anchors]
    scores = {number: {task.name: float(row.scores[task.name]) for task in tasks} for number, row in rows.items()}
    reference = _references(tasks, study, {name: scores[anchors[name].number] for name in experts})
    shares = {number: _shares(tasks, row, reference) for number, row in scores.items()}
    usable = [task.name for task in tasks if all(row[task.name] is not None for row in shares.values())]
    means = {number: _mean([row[name] for name in usable]) for number, row in shares.items()}

    whole = {one.label: known[one.recipe.digest] for one in merges if one.subset is None and one.recipe.digest in known}
    listed = {**anchors, **{label: one for label, one in whole.items() if one.number in rows}}
    best = max(experts, key=lambda name: means[anchors[name].number] or 0.0, default=None)
    base = anchors.get(BASE)
    of_base = _leads(tasks, rows, [one.number for one in listed.values()], base)
    of_expert = _leads(tasks, rows, [one.number for one in listed.values()], anchors.get(best or ""))
    made = [
        Row(
            label,
            "base" if label == BASE else "expert" if label in experts else "merge",
            one.number,
            rounded(scores[one.number]),
            shares[one.number],
            means[one.number],
            None if base is None else _forgets(tasks, scores[one.number], scores[base.number]),
            one.evaluation.seconds.get("merge"),
            one.evaluation.details.get(PEAK_BYTES),
            of_base[one.number],
            of_expert[one.number],
            tuple(name for name, by in one.violations.items() if by > 0),
        )
        for label, one in listed.items()
    ]
    order = {"base": 0, "expert": 1, "merge": 2}
    made.sort(key=lambda row: (order[row.kind], 0.0 if row.kind != "merge" else -(row.mean or 0.0)))
    reasons = {failure.number: failure.reason for failure in study.failures()}
    failed = _failed(study, merges, reasons)
    unfinished = study.record.evaluations - study.finished_count()
    table = tuple(made)
    return Comparison(
        study.name,
        split,
        tasks,
        table,
        best,
        tuple(_subset_shares(merges, known, means, anchors)) if split == "search" else (),
        failed,
        dict(left_out),
        unfinished,
        _verdict(table, best, bool(usable)),
        _detectable(tasks, rows, [row.trial for row in table if row.kind != "base"], base),
    )


def _tasks(study: Study) -> tuple[Objective, ...]:
    """The objectives that somebody scores, and the tasks beside them."""
    objectives = [one for one in study.objectives if one.name not in COMPUTED]
    named = {one.name for one in objectives}
    side = [Objective(task.name, task.direction) for task in tasks_of(study.definition) if task.name not in named]
    return (*objectives, *side)


def _references(
    tasks: Sequence[Objective], study: Study, experts: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """The score of each task's expert: the one of its name, or else the best."""
    found = {}
    for task in tasks:
        own = experts.get(expert_anchor(task.name))
        every = [row[task.name] for row in experts.values()]
        if every:
            found[task.name] = own[task.name] if own is not None else (max if task.sign > 0 else min)(every)
    return found


def share(task: Objective, score: float, reference: float) -> float | None:
    """``score`` as a share of ``reference``, above 1 where it is better; None where a share means nothing.

    Of what is minimised, and of numbers below 0 (mean log-likelihoods), the other way round.
    """
    positive = reference > 0 and score >= 0
    if positive and task.sign > 0:
        return score / reference
    if positive and score > 0:
        return reference / score
    if reference < 0 and score < 0:
        return reference / score if task.sign > 0 else score / reference
    return None


def _shares(
    tasks: Sequence[Objective], scores: Mapping[str, float], reference: Mapping[str, float]
) -> dict[str, float | None]:
    return {
        task.name: share(task, scores[task.name], reference[task.name]) if task.name in reference else None
        for task in tasks
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fsum(known) / len(known) if known else None


def _forgets(tasks: Sequence[Objective], scores: Mapping[str, float], base: Mapping[str, float]) -> float | None:
    kept = [found for task in tasks if (found := share(task, scores[task.name], base[task.name])) is not None]
    return max(0.0, 1.0 - min(kept)) if kept else None


def _leads(
    tasks: Sequence[Objective], rows: Mapping[int, Evaluation], numbers: Sequence[int], rival: Candidate | None
) -> dict[int, Lead]:
    """Each row against one model: leads corrected for all that are tested (Holm), losses as they are."""
    if rival is None:
        return dict.fromkeys(numbers, Lead())
    parts = {
        (number, task.name): scored_difference(task, rows[number], rows[rival.number])
        for number in numbers
        for task in tasks
        if number != rival.number
    }
    corrected = holm([part.p_value for part in parts.values()])
    better: dict[int, list[str]] = {number: [] for number in numbers}
    worse: dict[int, list[str]] = {number: [] for number in numbers}
    for ((number, task), part), p_value in zip(parts.items(), corrected, strict=True):
        if part.mean > 0 and p_value < LEVEL:
            better[number].append(task)
        if part.mean < 0 and part.p_value < LEVEL:
            worse[number].append(task)
    return {number: Lead(tuple(better[number]), tuple(worse[number])) for number in numbers}


def _detectable(
    tasks: Sequence[Objective], rows: Mapping[int, Evaluation], numbers: Sequence[int], base: Candidate | None
) -> tuple[Detectable, ...]:
    if base is None or not numbers:
        return ()
    pairs = [(rows[number], rows[base.number]) for number in numbers]
    made = (detectable_difference(task, pairs, len(numbers) * len(tasks)) for task in tasks)
    return tuple(one for one in made if one is not None)


def _failed(study: Study, merges: Sequence[Published], reasons: Mapping[int, str]) -> dict[str, str]:
    """Why merges over all experts could not be scored, by their labels."""
    trials = study.trials(TrialState.FAIL)
    of_digest = {trial.user_attrs.get(RECIPE): reasons[trial.number] for trial in trials if trial.number in reasons}
    return {
        one.label: of_digest[one.recipe.digest]
        for one in merges
        if one.subset is None and one.recipe.digest in of_digest
    }


def _subset_shares(
    merges: Sequence[Published],
    known: Mapping[str, Candidate],
    means: Mapping[int, float | None],
    anchors: Mapping[str, Candidate],
) -> list[SubsetShare]:
    by_label: dict[str, list[tuple[float, tuple[str, ...]]]] = {}
    for one in merges:
        candidate = known.get(one.recipe.digest)
        mean = None if candidate is None else means.get(candidate.number)
        if one.subset is not None and mean is not None:
            by_label.setdefault(one.label, []).append((mean, one.subset))
    of_base = means.get(anchors[BASE].number) if BASE in anchors else None
    if of_base is None:
        return []
    of_experts = {name: means.get(one.number) or 0.0 for name, one in anchors.items()}
    found = []
    for label, scored in by_label.items():
        above = [float(mean > of_base) for mean, _ in scored]
        best = [mean > max(of_experts.get(expert_anchor(name), 0.0) for name in chosen) for mean, chosen in scored]
        of_size: dict[int, list[float]] = {}
        for mean, chosen in sorted(scored, key=lambda one: len(one[1])):
            of_size.setdefault(len(chosen), []).append(mean)
        by_size = {size: fsum(means) / len(means) for size, means in of_size.items()}
        found.append(SubsetShare(label, len(scored), int(sum(above)), sum(best), mean_interval(above), by_size))
    return sorted(found, key=lambda one: -one.beats_base / one.subsets)


def _verdict(rows: Sequence[Row], best_expert: str | None, comparable: bool) -> str:
    """What the table says, in a sentence or two."""
    merges = [row for row in rows if row.kind == "merge"]
    if not merges:
        return "No merge has been scored yet."
    winners = [row for row in merges if row.is_winner]
    best = max(winners or merges, key=lambda row: row.mean or 0.0)
    reached = ""
    if comparable and best.mean is not None:
        others = {row.label: row.mean for row in rows if row.label in (BASE, best_expert) and row.mean is not None}
        compared_to = ", ".join(f"{label} {mean:.3f}" for label, mean in others.items())
        reached = f" ({best.mean:.3f} of the experts' scores in the mean; {compared_to})"
    if not winners:
        return (
            f"No method at its published coefficients beats the base beyond noise on these items without a loss in "
            f"another task; {best.label} comes nearest{reached}."
        )
    count = f"{len(winners)} of {len(merges)} merges beat the base beyond noise"
    against = (
        f"it beats {best_expert} too"
        if best.against_expert.beats
        else f"it does not beat {best_expert}, the best expert alone, beyond noise"
    )
    return f"{count}; the best of them is {best.label}{reached}, and {against}."
