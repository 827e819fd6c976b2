"""The merges of a study by the names that people call them: trials, the base, experts."""

from __future__ import annotations

from dataclasses import dataclass

from mergefront.formatting import trial
from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.recipes.anchors import BASE, anchors, expert_anchor
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.results.suggestion import evaluated_trial
from mergefront.study.stored_study import Candidate, Study


@dataclass(frozen=True)
class Merge:
    """A recipe under the name that stands above its answers."""

    label: str
    recipe: Recipe


class Merges:
    """The merges of ``study`` that can be asked; trials as far as they are evaluated."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._unmerged = {anchor.name: anchor.recipe for anchor in anchors(study.space)}

    def of(self, candidate: Candidate) -> Merge:
        """An evaluated candidate."""
        return Merge(trial(candidate.number, candidate.anchor), candidate.recipe)

    def trial(self, number: int) -> Merge:
        """Raises ``UserError`` for a trial that is not evaluated."""
        return self.of(evaluated_trial(self._study, number))

    def base(self) -> Merge:
        """The base model as it is."""
        return Merge(BASE, self._unmerged[BASE])

    def expert(self, name: str) -> Merge:
        """One expert alone; raises ``UserError`` where there is none of this name."""
        experts = list(self._study.space.models)
        if name not in experts:
            raise UserError(f"study {self._study.name!r} has no expert {name!r} {did_you_mean(name, experts)}")
        return Merge(expert_anchor(name), self._unmerged[expert_anchor(name)])

    def called(self, word: str) -> Merge | None:
        """A trial's number, ``base`` or an expert's name; None for a word that is none of them."""
        if word.isdecimal():
            return self.trial(int(word))
        if word == BASE:
            return self.base()
        return self.expert(word) if word in self._study.space.models else None
