"""mergefront: the Pareto front of language model merges, in as few evaluations as possible.

The public names; each is imported when it is first used, so that ``import mergefront`` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergefront.adapters.local.backend import LocalBackend
    from mergefront.optimizer.errors import EvaluationError, MergefrontError, SearchStoppedError, UserError
    from mergefront.optimizer.recipes.range import Range
    from mergefront.optimizer.recipes.recipe import Recipe
    from mergefront.optimizer.recipes.space import MergeSpace
    from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores
    from mergefront.optimizer.scores.objectives import Objective
    from mergefront.running.compare import compare
    from mergefront.running.run import create, resume, run, search
    from mergefront.study.stored_study import Candidate, Study, load_study

_HOME = {
    "compare": "mergefront.running.compare",
    "create": "mergefront.running.run",
    "run": "mergefront.running.run",
    "resume": "mergefront.running.run",
    "search": "mergefront.running.run",
    "load_study": "mergefront.study.stored_study",
    "Study": "mergefront.study.stored_study",
    "Candidate": "mergefront.study.stored_study",
    "Recipe": "mergefront.optimizer.recipes.recipe",
    "MergeSpace": "mergefront.optimizer.recipes.space",
    "Range": "mergefront.optimizer.recipes.range",
    "Objective": "mergefront.optimizer.scores.objectives",
    "Evaluation": "mergefront.optimizer.scores.evaluation",
    "ItemScores": "mergefront.optimizer.scores.evaluation",
    "LocalBackend": "mergefront.adapters.local.backend",
    "MergefrontError": "mergefront.optimizer.errors",
    "UserError": "mergefront.optimizer.errors",
    "EvaluationError": "mergefront.optimizer.errors",
    "SearchStoppedError": "mergefront.optimizer.errors",
}

__all__ = [
    "Candidate",
    "Evaluation",
    "EvaluationError",
    "ItemScores",
    "LocalBackend",
    "MergeSpace",
    "MergefrontError",
    "Objective",
    "Range",
    "Recipe",
    "SearchStoppedError",
    "Study",
    "UserError",
    "compare",
    "create",
    "load_study",
    "resume",
    "run",
    "search",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mergefront' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
