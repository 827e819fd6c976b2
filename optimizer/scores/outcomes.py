"""What happened to the items of a task beside their scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from mergefront.optimizer.scores.evaluation import Evaluation

OUTCOMES = "outcomes"
"""Key of ``Evaluation.details``: by task, how many items were "asked", and how many of them had each outcome."""
UNANSWERED, EMPTY, CUT, THOUGHT, SHORTENED = "unanswered", "empty", "cut", "thought", "shortened"
"""Outcomes of an item: no usable answer came (also under ``unanswered: reason``), an empty one, one that the limit of
new tokens cut off, one that ended inside the model's thoughts; the prompt was longer than the model reads and lost its
beginning."""

JUDGED_TWICE, JUDGED_ALIKE = "judged twice", "judged alike"
"""An answer that a judge was asked about twice, and one on which it said the same."""

PHRASES: Mapping[str, str] = {
    UNANSWERED: "items had no usable answer",
    EMPTY: "answers were empty",
    CUT: "answers were cut off at max_new_tokens",
    THOUGHT: "answers were cut off inside their thoughts",
    SHORTENED: "prompts were longer than the model reads and lost their beginning",
}
"""What is said of the items with an outcome."""


def outcome_text(counts: Mapping[str, int]) -> str:
    """``2 of 60 answers were empty; 1 of 60 ...``; nothing where nothing happened."""
    asked = counts.get("asked", 0)
    found = [(name, counts.get(name, 0)) for name in PHRASES]
    return "; ".join(f"{count} of {asked} {PHRASES[name]}" for name, count in found if count)


def agreement_text(counts: Mapping[str, int]) -> str:
    """``the judge agreed with itself on 11 of 12 answers``; nothing where no answer was judged twice."""
    twice = counts.get(JUDGED_TWICE, 0)
    if not twice:
        return ""
    return f"the judge agreed with itself on {counts.get(JUDGED_ALIKE, 0)} of {twice} answers that it judged twice"


def reasons(counts: Mapping[str, int]) -> str:
    """Why items had no usable answer: ``content filter: 2, ...``."""
    found = {key.partition(": ")[2]: count for key, count in counts.items() if key.startswith(f"{UNANSWERED}: ")}
    return ", ".join(f"{reason}: {count}" for reason, count in found.items())


def total_outcomes(evaluations: Iterable[Evaluation]) -> dict[str, Counter[str]]:
    """The outcomes of all evaluations together, by task."""
    found: dict[str, Counter[str]] = {}
    for evaluation in evaluations:
        of_tasks = evaluation.details.get(OUTCOMES)
        for task, counts in of_tasks.items() if isinstance(of_tasks, Mapping) else ():
            if isinstance(counts, Mapping) and "asked" in counts:  # a function of the user's may report anything
                found.setdefault(task, Counter()).update(counts)
    return found


def outcome_lines(evaluations: Iterable[Evaluation]) -> list[str]:
    """What happened to the items of each task in all evaluations together, a line for each task where anything did."""
    lines = []
    for task, counts in total_outcomes(evaluations).items():
        why = f" ({reasons(counts)})" if counts[UNANSWERED] else ""
        text, agreed = outcome_text(counts), agreement_text(counts)
        lines += [f"{task}: {text}{why}"] if text else []
        lines += [f"{task}: {agreed}"] if agreed else []
    return lines
