"""Where a search keeps its claims and evaluations: the protocol that ``mergefront.storage`` implements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import Evaluation


@dataclass(frozen=True)
class Claim:
    """A slot of the budget that this process works on.

    ``trial_number`` is set once its trial exists; ``deaths`` counts the workers that died on it;
    ``fresh`` says that nobody worked on it before, ``in_line`` that slots before it are being proposed.
    """

    slot: int
    trial_number: int | None
    deaths: int = 0
    fresh: bool = False
    in_line: bool = False


@dataclass(frozen=True)
class Attributes:
    """What a trial carries besides parameters and values (``attributes``): a user's and Optuna's own."""

    user: Mapping[str, Any] = field(default_factory=dict)
    system: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why a recipe could not be scored; failures of one ``kind`` have the same cause."""

    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"

    def bounded(self) -> Failure:
        """With texts short enough to be kept: see ``bounded``."""
        return Failure(bounded(self.kind, LONGEST_KIND), bounded(self.reason))


LONGEST_REASON = 4000
"""Characters of a reason or another text of an evaluation that are kept: in JSON, a character is 12 bytes at most."""
LONGEST_KIND = 255


def bounded(text: str, longest: int = LONGEST_REASON) -> str:
    """``text`` in at most ``longest`` characters: the beginning and the end of what is longer."""
    if len(text) <= longest:
        return text
    half = longest // 2 - 10
    return f"{text[:half]} [{len(text) - 2 * half} more] {text[-half:]}"


class Ledger(Protocol):
    """Where claims and evaluations are kept; implemented by ``mergefront.storage``."""

    def claim(self, budget: int) -> Claim | None:
        """Take over an abandoned slot or open the next one; None when none is left below ``budget``."""

    def claim_of(self, trial_number: int) -> tuple[Claim, bool] | None:
        """The claim that a trial fills and whether it is finished; None for an unknown trial."""

    def others_at_work(self) -> bool:
        """Whether another live process works on a slot of this study."""

    def wait_for_turn(self, claim: Claim, should_stop: Callable[[], bool]) -> bool:
        """Until every slot before this one has its proposal, so that this one's sees them all; False when
        ``should_stop`` said so meanwhile.

        Slots whose workers died or are stuck are not waited for.
        """

    def bind(
        self,
        claim: Claim,
        trial: FrozenTrial,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        attributes: Attributes,
    ) -> None:
        """Note which trial fills a claimed slot; write its parameters and attributes, all or nothing."""

    def finish(
        self,
        claim: Claim,
        trial: FrozenTrial,
        recipe: Recipe,
        outcome: Evaluation | Failure,
        values: Sequence[float] | None,
        attributes: Attributes,
        keep: bool,
    ) -> bool:
        """Keep the outcome (unless ``keep`` is False: it was kept before), tell the trial and close the claim.

        All or nothing. ``values`` are the objectives' scores, None for a failure. Returns False where the trial was
        told before, perhaps something else; then the claim is closed and nothing more.
        """

    def release(self, claim: Claim) -> None:
        """Give an unfinished slot back, so that a later run takes it over at once."""

    def keep_alive(self, claim: Claim) -> AbstractContextManager[None]:
        """While entered, others see that this process is at work on the slot."""

    def find(self, recipe: Recipe) -> Evaluation | None:
        """The evaluation of an identical recipe, or None."""

    def evaluations_beside(self, known: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
        """Every finished evaluation with its items by its recipe's digest, in the order in which they finished.

        Those that are ``known`` are not read again: what has finished does not change.
        """
