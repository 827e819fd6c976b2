"""Which merges beat which anchors, and by more than noise.

A merge beats an anchor when it is better in at least one objective beyond noise and worse in none.
"Better" is tested with Holm's correction over all comparisons of the front, "worse" without a correction: doubt counts
against the merge in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mergefront.optimizer.scores.comparison import Difference, holm, weighted_sum
from mergefront.optimizer.scores.differences import LEVEL, RESOLUTION, scored_difference
from mergefront.optimizer.scores.evaluation import Evaluation, checked_scores
from mergefront.optimizer.scores.objectives import Normaliser
from mergefront.study.stored_study import Candidate, Study


@dataclass(frozen=True)
class Match:
    """One merge against one anchor; differences are positive where the merge is better.

    ``by_objective`` is in each objective's own unit, ``corrected`` its p-values after Holm;
    ``overall`` is the difference of the mean normalised scores.
    """

    merge: int
    anchor: str
    by_objective: Mapping[str, Difference]
    corrected: Mapping[str, float]
    overall: Difference

    @property
    def better(self) -> list[str]:
        return [name for name, p in self.corrected.items() if p < LEVEL and self.by_objective[name].mean > 0]

    @property
    def worse(self) -> list[str]:
        """Objectives in which the merge is worse beyond noise (no correction)."""
        return [name for name, part in self.by_objective.items() if part.p_value < LEVEL and part.mean < 0]

    @property
    def beats(self) -> bool:
        return bool(self.better) and not self.worse


@dataclass(frozen=True)
class Overall:
    """The merge with the best mean normalised score against the anchor with the best one.

    ``p_value`` is corrected for the number of merges that could have been picked; on report items
    the merge is the one picked on the search items, so that there is nothing to correct.
    """

    merge: int
    merge_mean: float
    anchor: str
    anchor_mean: float
    difference: Difference
    p_value: float

    @property
    def beats(self) -> bool:
        return self.difference.mean > 0 and self.p_value < LEVEL


@dataclass(frozen=True)
class Verdict:
    """Every front merge against every anchor on one split ("search" or "report").

    ``rows`` are the candidates' evaluations on that split, by trial number. ``comparisons`` is how many the p-values
    are corrected for: on the search items those of every merge tried, as the front was picked on the same items.
    """

    split: str
    merges: tuple[int, ...]
    anchors: Mapping[str, int]
    rows: Mapping[int, Evaluation]
    matches: tuple[Match, ...]
    overall: Overall
    comparisons: int

    @cached_property
    def paired(self) -> bool:
        """Whether any comparison was made item by item."""
        return any(part.pairs is not None for match in self.matches for part in match.by_objective.values())

    @cached_property
    def noise_known(self) -> bool:
        """Whether any score comes with its noise; otherwise every difference was taken as exact."""
        return any(
            part.standard_error > 0 or part.pairs is not None
            for match in self.matches
            for part in match.by_objective.values()
        )

    def beaten_by(self, anchor: str) -> list[Match]:
        """The matches that an anchor lost, best overall difference first."""
        lost = [match for match in self.matches if match.anchor == anchor and match.beats]
        return sorted(lost, key=lambda match: -match.overall.mean)


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
    on_search_items = verdict(study, "search") if split != "search" else None
    picked = None if on_search_items is None else on_search_items.overall.merge
    picked_from = len(study.candidates()) - len(anchors) if split == "search" else len(merges)
    objectives = study.objectives
    names = [objective.name for objective in objectives]
    scores = {number: checked_scores(row, names) for number, row in rows.items()}
    normaliser = Normaliser.from_anchors(
        objectives, [[scores[anchor.number][name] for name in names] for anchor in anchors], RESOLUTION
    )
    weights = [1.0 / (scale * len(names)) for scale in normaliser.scales]
    compared = []
    for merge in merges:
        for anchor in anchors:
            parts = {
                objective.name: scored_difference(objective, rows[merge.number], rows[anchor.number])
                for objective in objectives
            }
            compared.append((merge, anchor, parts))
    comparisons = picked_from * len(anchors) * len(names)
    flat = holm([part.p_value for _, _, parts in compared for part in parts.values()], comparisons)
    matches = []
    for index, (merge, anchor, parts) in enumerate(compared):
        corrected = dict(zip(parts, flat[index * len(names) : (index + 1) * len(names)], strict=True))
        overall = weighted_sum(list(parts.values()), weights)
        matches.append(Match(merge.number, str(anchor.anchor), parts, corrected, overall))

    means = {
        number: sum(normaliser.normalise([row[name] for name in names])) / len(names) for number, row in scores.items()
    }
    return Verdict(
        split,
        tuple(merge.number for merge in merges),
        {str(anchor.anchor): anchor.number for anchor in anchors},
        rows,
        tuple(matches),
        _overall(matches, anchors, means, picked, picked_from),
        comparisons,
    )


def front_merges(study: Study) -> list[Candidate]:
    """The front without the anchors and without merges that are an anchor's recipe."""
    of_anchors = {anchor.digest for anchor in study.anchors()}
    return [candidate for candidate in study.front() if candidate.digest not in of_anchors]


def _overall(
    matches: Sequence[Match],
    anchors: Sequence[Candidate],
    means: Mapping[int, float],
    picked: int | None,
    picked_from: int,
) -> Overall:
    # Who violates a constraint is no alternative to a merge that satisfies it.
    anchors = [anchor for anchor in anchors if anchor.feasible] or anchors
    best_anchor = max(anchors, key=lambda anchor: means[anchor.number])
    against_best = [match for match in matches if match.anchor == best_anchor.anchor]
    corrected = holm([match.overall.p_value for match in against_best], picked_from)
    known = {match.merge: index for index, match in enumerate(against_best)}
    if picked in known:
        best = known[picked]
        p_value = against_best[best].overall.p_value
    else:
        best = max(range(len(against_best)), key=lambda index: means[against_best[index].merge])
        p_value = corrected[best]
    match = against_best[best]
    return Overall(match.merge, means[match.merge], match.anchor, means[best_anchor.number], match.overall, p_value)


def verdicts(study: Study) -> list[Verdict]:
    """The verdict on the search items, and on the report items where they have been scored."""
    return [found for split in ("search", "report") if (found := verdict(study, split)) is not None]
