"""mergefront: the Pareto front of language model merges, in as few evaluations as possible.

    import mergefront as mf
    study = mf.search("study.yaml")
    for candidate in study.front():
        print(candidate.number, candidate.scores, candidate.params)

Everything here is imported when it is first used, so that ``import mergefront`` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergefront.adapters.local import LocalBackend
    from mergefront.api import load_study, search
    from mergefront.optimizer.errors import EvaluationError, MergefrontError, SearchStoppedError, UserError
    from mergefront.optimizer.evaluation import Evaluation, ItemScores
    from mergefront.optimizer.objectives import Objective
    from mergefront.optimizer.recipe import Recipe
    from mergefront.optimizer.space import MergeSpace, Range
    from mergefront.study import Candidate, Study

_HOME = {
    "search": "mergefront.api",
    "load_study": "mergefront.api",
    "Study": "mergefront.study",
    "Candidate": "mergefront.study",
    "Recipe": "mergefront.optimizer.recipe",
    "MergeSpace": "mergefront.optimizer.space",
    "Range": "mergefront.optimizer.space",
    "Objective": "mergefront.optimizer.objectives",
    "Evaluation": "mergefront.optimizer.evaluation",
    "ItemScores": "mergefront.optimizer.evaluation",
    "LocalBackend": "mergefront.adapters.local",
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
    "load_study",
    "search",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mergefront' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
