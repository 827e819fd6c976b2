"""The prompts of tasks as a preflight shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.prompt_findings import Reader, assembled, chat_refusals, traps
from mergefront.adapters.tasks.questions import Question
from mergefront.adapters.tasks.task import Task
from mergefront.optimizer.errors import UserError
from mergefront.study.preflight.findings import Findings


def show_prompts(found: Findings, tasks: Mapping[str, Task], reader: Reader) -> None:
    """Note one assembled prompt and answer of each task, and warn of what is likely to be a mistake in them."""
    questions: dict[str, list[Question]] = {}
    for name, task in tasks.items():
        items = [item for split in ("search", "report") for item in items_of(task, split)]
        asked: Sequence[Question] = ()
        with found.catch(f"tasks.{name}: "):
            asked = task.questions(items[:_MOST_LOOKED_AT])
        refusals = chat_refusals(asked, reader)
        found.problems.extend(f"tasks.{name}: {why}" for why in refusals)
        if asked and not refusals:
            questions[name] = asked
            found.notes.append(f"task {name} asks {assembled(asked[0], reader)}")
    found.warnings.extend(traps(questions, reader))


_MOST_LOOKED_AT = 1000
"""Items of a task whose prompts are looked at, in their seeded order: a few-shot prompt takes a millisecond to make."""


def items_of(task: Task, split: str) -> Sequence[Item]:
    try:
        return task.items(split)
    except UserError:
        return ()
