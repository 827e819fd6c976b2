"""Which merges beat which anchors, and by more than noise.

A beats B where A is better in some objective beyond noise and worse in none. A merge is picked from many, so its leads
are tested with Holm's correction over all comparisons; where it is behind, the p-value counts as it is: doubt counts
against the merge in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mergefront.optimizer.recipes.anchors import expert_anchor
from mergefront.optimizer.scores.comparison import Difference, holm, weighted_sum
from mergefront.optimizer.scores.differences import LEVEL, RESOLUTION, beats, scored_difference
from mergefront.optimizer.scores.evaluation import Evaluation, checked_scores
from mergefront.optimizer.scores.objectives import Normaliser
from mergefront.study.stored_study import Candidate, Study


@dataclass(frozen=True)
class Compared:
    """A difference, positive where the merge is better, with the p-value that counts."""

    difference: Difference
    p_value: float

    @classmethod
    def of(cls, difference: Difference, corrected: float) -> Compared:
        return cls(difference, corrected if difference.mean > 0 else difference.p_value)

    @property
    def is_better(self) -> bool:
        return self.difference.mean > 0 and self.p_value < LEVEL

    @property
    def is_worse(self) -> bool:
        return self.difference.mean < 0 and self.p_value < LEVEL


@dataclass(frozen=True)
class Match:
    """One merge against one anchor, in each objective's own unit.

    ``mean`` is the difference of the mean normalised objectives, which says how much and claims nothing; None with one
    objective.
    """

    merge: int
    anchor: str
    by_objective: Mapping[str, Compared]
    mean: Difference | None

    @property
    def better(self) -> list[str]:
        return [name for name, part in self.by_objective.items() if part.is_better]

    @property
    def worse(self) -> list[str]:
        return [name for name, part in self.by_objective.items() if part.is_worse]

    @property
    def beats(self) -> bool:
        return beats(self.better, self.worse)


@dataclass(frozen=True)
class Verdict:
    """Every front merge against every anchor on one split ("search" or "report").

    ``rows`` are the candidates' evaluations on that split, by trial number, ``normalised`` their scores in its anchors'
    unit. ``best_anchor`` and ``best_expert`` have the best mean of these. ``picked`` is the suggested merge, or else
    the one with the best mean on the search items. ``comparisons`` is how many the p-values are corrected for: on the
    search items those of every merge tried, as the front was picked on the same items.
    """

    split: str
    merges: tuple[int, ...]
    anchors: Mapping[str, int]
    rows: Mapping[int, Evaluation]
    normalised: Mapping[int, Sequence[float]]
    matches: tuple[Match, ...]
    best_anchor: str
    best_expert: str | None
    picked: int
    comparisons: int

    @cached_property
    def differences(self) -> list[Difference]:
        return [part.difference for match in self.matches for part in match.by_objective.values()]

    @property
    def paired(self) -> bool:
        """Whether any comparison was made item by item."""
        return any(part.pairs is not None for part in self.differences)

    @property
    def noise_known(self) -> bool:
        """Whether any score comes with its noise; otherwise every difference was taken as exact."""
        return any(part.standard_error > 0 or part.pairs is not None for part in self.differences)

    @property
    def exact(self) -> bool:
        """Whether any comparison is McNemar's exact test."""
        return any(part.discordant is not None for part in self.differences)

    def match(self, merge: int, anchor: str) -> Match:
        return next(one for one in self.matches if (one.merge, one.anchor) == (merge, anchor))

    def beaten_by(self, anchor: str) -> list[Match]:
        """The matches that an anchor lost, the merge with the best mean first."""
        lost = [match for match in self.matches if match.anchor == anchor and match.beats]
        return sorted(lost, key=lambda match: -sum(self.normalised[match.merge]))


def verdict(study: Study, split: str = "search") -> Verdict | None:
    """The verdict on a study's front; None while there is no merge or no anchor to compare.

    On the "report" split only the candidates that were evaluated on its items take part.
    """
    anchors, merges = study.anchors(), front_merges(study)
    rows = study.evaluations_on(split, (*merges, *anchors))
    merges = [candidate for candidate in merges if candidate.number in rows]
    anchors = [candidate for candidate in anchors if candidate.number in rows]
    if not merges or not anchors:
        return None
    normaliser, normalised = normalised_rows(study, rows)
    pairs = [(merge, anchor) for merge in merges for anchor in anchors]
    parts = [
        [scored_difference(objective, rows[merge.number], rows[anchor.number]) for objective in study.objectives]
        for merge, anchor in pairs
    ]
    picked_from = len(study.candidates()) - len(anchors) if split == "search" else len(merges)
    comparisons = picked_from * len(anchors) * len(study.objectives)
    corrected = iter(holm([part.p_value for differences in parts for part in differences], comparisons))
    weights = [1.0 / (scale * len(normaliser.scales)) for scale in normaliser.scales]
    matches = []
    for (merge, anchor), differences in zip(pairs, parts, strict=True):
        compared = {
            objective.name: Compared.of(part, next(corrected))
            for objective, part in zip(study.objectives, differences, strict=True)
        }
        mean = None if study.has_one_objective else weighted_sum(differences, weights)
        matches.append(Match(merge.number, str(anchor.anchor), compared, mean))
    # Who violates a constraint is no alternative to a merge that satisfies it.
    eligible = [anchor for anchor in anchors if anchor.feasible] or anchors
    experts = {expert_anchor(name) for name in study.space.models}
    return Verdict(
        split,
        tuple(merge.number for merge in merges),
        {str(anchor.anchor): anchor.number for anchor in anchors},
        rows,
        normalised,
        tuple(matches),
        str(_best(eligible, normalised)),
        _best([anchor for anchor in anchors if anchor.anchor in experts], normalised),
        _picked(study, merges),
        comparisons,
    )


def judged(study: Study) -> Verdict | None:
    """The verdict that counts: on the report items as soon as they were scored."""
    return verdict(study, "report") or verdict(study, "search")


def front_merges(study: Study) -> list[Candidate]:
    """The front, or the best, without the anchors and without merges that are an anchor's recipe."""
    of_anchors = {anchor.digest for anchor in study.anchors()}
    members = study.history()[-1:] if study.has_one_objective else study.front()
    return [candidate for candidate in members if candidate.digest not in of_anchors]


def normalised_rows(study: Study, rows: Mapping[int, Evaluation]) -> tuple[Normaliser, dict[int, list[float]]]:
    """The unit of those anchors that are among ``rows`` (0 the worst, 1 the best), and all rows in it."""
    names = [objective.name for objective in study.objectives]
    scores = {number: list(checked_scores(row, names).values()) for number, row in rows.items()}
    of_anchors = [scores[anchor.number] for anchor in study.anchors() if anchor.number in scores]
    normaliser = Normaliser.from_anchors(study.objectives, of_anchors, RESOLUTION)
    return normaliser, {number: normaliser.normalise(row) for number, row in scores.items()}


def _best(anchors: Sequence[Candidate], normalised: Mapping[int, Sequence[float]]) -> str | None:
    """The name of the anchor with the best mean of the normalised objectives."""
    if not anchors:
        return None
    return max(anchors, key=lambda anchor: sum(normalised[anchor.number])).anchor


def _picked(study: Study, merges: list[Candidate]) -> int:
    """The merge that a verdict is first about: the suggested one, or the one with the best mean on the search items."""
    suggested = study.suggested()
    if suggested is not None and suggested.number in [merge.number for merge in merges]:
        return suggested.number
    means = [sum(row) for row in study.normalised(merges)]
    return merges[means.index(max(means))].number
