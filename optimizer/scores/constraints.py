"""Constraints: what a candidate has to satisfy to be worth having, whatever its objectives.

A constraint bounds one reported number: an objective, another task, or anything that an evaluation reports
(``Evaluation.scores``, else ``Evaluation.cost``). Its violation is in that number's own unit and at most 0 where the
constraint holds, which is Optuna's convention too. Anchors may violate constraints; they are baselines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.scores.evaluation import Evaluation, finite_number

COSTS = ("items", "requests", "scored_tokens", "generated_tokens")
"""What evaluators of tasks count in ``Evaluation.cost`` without being asked."""

_WRITTEN = re.compile(r"^\s*(?P<name>.+?)\s*(?P<relation><=|>=)\s*(?P<bound>\S+)\s*$")


@dataclass(frozen=True)
class Constraint:
    """The number ``name`` has to be at most ("<=") or at least (">=") ``bound``, in its own unit."""

    name: str
    relation: Literal["<=", ">="]
    bound: float

    def __post_init__(self) -> None:
        if self.relation not in ("<=", ">="):
            raise UserError(f"constraint on {self.name!r}: relation {self.relation!r} must be '<=' or '>='")
        if not math.isfinite(self.bound):
            raise UserError(f"constraint on {self.name!r}: bound {self.bound} must be a finite number")

    def violation(self, value: float) -> float:
        """How far ``value`` is beyond the bound; at most 0 where the constraint holds."""
        return value - self.bound if self.relation == "<=" else self.bound - value

    def reported(self, evaluation: Evaluation) -> float:
        """The bounded number; raises ``EvaluationError`` when it is missing or not finite."""
        given = evaluation.scores.get(self.name, evaluation.cost.get(self.name))
        if given is None:
            known = ", ".join([*evaluation.scores, *evaluation.cost]) or "nothing"
            raise EvaluationError(
                f"the constrained number {self.name!r} was not reported (reported: {known})", kind="missing constraint"
            )
        return finite_number(given, f"the constrained {self.name!r}")

    def __str__(self) -> str:
        return f"{self.name} {self.relation} {self.bound:g}"


def constraints_from(given: Sequence[str | Constraint | Mapping[str, object]]) -> tuple[Constraint, ...]:
    """Constraints from ``"forgetting <= 0.02"``, ``{"name": "forgetting", "at_most": 0.02}``, or ``Constraint`` itself.

    Raises ``UserError`` for what cannot be read and for a constraint that is stated twice.
    """
    made = [entry if isinstance(entry, Constraint) else _read(entry) for entry in given]
    stated = [(constraint.name, constraint.relation) for constraint in made]
    for name, relation in stated:
        if stated.count((name, relation)) > 1:
            raise UserError(f"constraints: {name!r} has two bounds of the kind {relation!r}; keep the tighter one")
    return tuple(made)


def checked_violations(evaluation: Evaluation, constraints: Sequence[Constraint]) -> list[float]:
    """The violation of every constraint; raises ``EvaluationError`` for a number that is missing or not finite."""
    return [constraint.violation(constraint.reported(evaluation)) for constraint in constraints]


def feasible(violations: Sequence[float]) -> bool:
    """Whether every constraint holds."""
    return all(violation <= 0.0 for violation in violations)


def _read(entry: str | Mapping[str, object]) -> Constraint:
    if isinstance(entry, str):
        found = _WRITTEN.match(entry)
        if found is None:
            raise UserError(f"constraint {entry!r} must be written like 'forgetting <= 0.02' or 'maths >= 0.5'")
        return Constraint(found["name"], found["relation"], _number(entry, found["bound"]))  # type: ignore[arg-type]
    bounds = {"at_most": "<=", "at_least": ">="}
    stated = [key for key in bounds if entry.get(key) is not None]
    if set(entry) - {"name", *bounds} or not isinstance(entry.get("name"), str) or len(stated) != 1:
        raise UserError(f"constraint {dict(entry)!r} must have a 'name' and either 'at_most' or 'at_least'")
    relation = bounds[stated[0]]
    return Constraint(str(entry["name"]), relation, _number(str(entry["name"]), entry[stated[0]]))  # type: ignore[arg-type]


def _number(where: str, given: object) -> float:
    try:
        return float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(f"constraint {where!r}: bound {given!r} is not a number") from None
