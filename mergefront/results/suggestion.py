"""Which merge mergefront suggests to take, in words, and what else there is to choose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from shlex import quote

from mergefront.formatting import number, trial
from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.search.attributes import SEED
from mergefront.results.verdict import Verdict
from mergefront.study.stored_study import Candidate, Study


def suggestion_lines(study: Study, suggested: Candidate | None, found: Verdict | None) -> list[str]:
    """Who is suggested and why, or why nobody is; then a warning for what the suggested merge gives up.

    ``found`` is the verdict that stands beside it, on whose items its weakest objective is said.
    """
    alike = alike_lines(study)
    if suggested is None:
        return [*alike, nothing_suggested(study)]
    who = trial(suggested.number, suggested.anchor)
    fit = "that no anchor beats and that lose to the base in nothing beyond noise"
    if study.has_one_objective:
        best = f"Suggested: {who}, the best; no anchor beats it, and it does not lose to the base beyond noise."
        return [*alike, best]
    names = [objective.name for objective in study.objectives]
    rows = {} if found is None else found.normalised
    worst, name = min(zip(rows.get(suggested.number) or study.normalised([suggested])[0], names, strict=True))
    value = f"{name}, at {number(worst)} (0 worst anchor, 1 best anchor)"
    seen = found is not None and found.split == "report"
    where = f" on the search items. On the report items its weakest is {value}" if seen else f": {value}"
    said = f"Suggested: {who}. Of the merges on the front {fit}, its weakest objective is the best{where}."
    return [*alike, said, *warnings(study, suggested)]


def alike_lines(study: Study) -> list[str]:
    """A warning for each objective in which every merge and anchor has the same score."""
    candidates = study.candidates()
    if len(candidates) <= len(study.anchors()):
        return []
    first = candidates[0].scores
    return [
        f"Warning: all {len(candidates)} merges and anchors score {number(first[objective.name])} in {objective.name}, "
        "so they cannot be compared. See the prompts (mergefront check) and the answers (mergefront chat)."
        for objective in study.objectives
        if all(candidate.scores[objective.name] == first[objective.name] for candidate in candidates)
    ]


def warnings(study: Study, candidate: Candidate) -> list[str]:
    """What a candidate gives up: a sentence each for what it leaves, loses and is beaten by."""
    ((_, against),) = study.objections([candidate])
    who = f"Warning: {trial(candidate.number, candidate.anchor)}"
    left, lost, rivals = map(" and ".join, (study.left_at_worst(candidate), against.lost, against.beaten_by))
    said = [f"{who} leaves {left} at the level of the worst anchor."] if left else []
    said += [f"{who} loses to the base in {lost} beyond noise."] if lost else []
    return said + ([f"{who} is beaten by {rivals}."] if rivals else [])


def nothing_suggested(study: Study) -> str:
    """Why no member of a front is suggested."""
    merges = study.merges()
    if not merges and study.has_one_objective:
        best = study.best()
        return f"No merge is suggested: the best is {trial(best.number, best.anchor)}."
    if not merges:
        return "No merge is suggested: the front holds none."
    found = [against for _, against in study.objections(merges)]
    lost = Counter(name for against in found for name in against.lost)
    beaten = sum(1 for against in found if against.beaten_by)
    reasons = [f"lose to the base in {name} beyond noise ({count})" for name, count in lost.items()]
    reasons += [f"are beaten by an anchor ({beaten})"] if beaten else []
    return f"No merge is suggested: those on the front ({len(merges)}) {' or '.join(reasons)}."


def export_command(study: Study, suggested: Candidate | None, storage: str = "", which: str = "") -> str:
    """The command that exports what is suggested, or a trial to choose; ``storage`` is the option that it needs.

    ``which`` is the option that names the trial, where it is to be said.
    """
    places = study.places
    named = [reference for reference in (study.space.base_model, *study.space.models.values()) if reference is not None]
    # Servers and functions know their models by name only; then there are no weights to merge.
    has_weights = all(places.hub_name(one) is not None or (study.root / one).exists() for one in named)
    choice = (which if suggested is not None else " --trial N") + ("" if has_weights else " --config-only")
    return f"mergefront export {quote(study.name)}{storage}{choice} --out merged"


def next_steps(study: Study, storage: str = "") -> dict[str, str]:
    """What one can do with a front: commands, with the suggested trial (else the knee) filled in, and what each does.

    ``storage`` is the option that they need.
    """
    front = study.front()
    if not front:
        return {}
    taken = study.suggested() or study.knee()
    others = [str(one.number) for one in front if one.anchor is None and one.digest != taken.digest][:1]
    name, which = f"{quote(study.name)}{storage}", f" --trial {taken.number}"
    steps = {}
    if study.definition.evaluator.asks_models:
        compared = " ".join([str(taken.number), *others, "base"])
        steps[f"mergefront chat {name}{which}"] = f"talk to it; /compare {compared}"
    if study.definition.evaluator.tasks:
        steps[f"mergefront report {name} --out report.html"] = "on items that the search never saw"
    return steps | {export_command(study, taken, storage, which): "weights and model card"}


@dataclass(frozen=True)
class Choice:
    """Which candidate a user means; without anything said, the suggested one.

    Raises ``UserError`` where several things are said.
    """

    trial: int | None = None
    suggested: bool = False
    knee: bool = False
    prefer: Mapping[str, float] | None = None
    start_point: str | None = None

    def __post_init__(self) -> None:
        named = [one is not None for one in (self.trial, self.prefer, self.start_point)]
        if [self.suggested, self.knee, *named].count(True) > 1:
            raise UserError(
                "choose one of --suggested, --trial N, --knee, --start-point NAME and --prefer maths=0.7,french=0.3"
            )

    def of(self, study: Study) -> Candidate:
        """Raises ``UserError`` where the study has no such candidate."""
        if self.prefer is not None:
            return study.preferred(self.prefer)
        if self.knee:
            return study.knee()
        if self.trial is not None:
            return evaluated_trial(study, self.trial)
        if self.start_point is not None:
            trials = study.trials()
            of_name = {one.user_attrs[SEED]: one.number for one in trials if SEED in one.user_attrs}
            if self.start_point not in of_name:
                known = [one.name for one in study.plan.warm_start_recipes]
                hint = did_you_mean(self.start_point, known) if known else "(it begins with none)"
                if self.start_point in known:
                    hint = "yet; raise --evaluations"
                raise UserError(f"study {study.name!r} evaluated no start point {self.start_point!r} {hint}")
            return evaluated_trial(study, of_name[self.start_point])
        suggested = study.suggested()
        if suggested is None:
            remedy = choices(study)  # refuses a study without any member first
            raise UserError(f"{nothing_suggested(study)} {remedy}")
        return suggested


def evaluated_trial(study: Study, number: int) -> Candidate:
    """Raises ``UserError`` for a trial that is not evaluated, with the reason where it failed."""
    for candidate in study.candidates():
        if candidate.number == number:
            return candidate
    failure = next((failure for failure in study.failures() if failure.number == number), None)
    if failure is not None:
        raise UserError(f"trial {number} of study {study.name!r} failed: {failure.reason}")
    front = ", ".join(str(candidate.number) for candidate in study.front())
    raise UserError(f"study {study.name!r} has no evaluated trial {number}; on its front are: {front or 'none yet'}")


def choices(study: Study) -> str:
    """What to choose instead. Raises ``UserError`` where there is nothing to choose from."""
    shares = ",".join(f"{objective.name}=1" for objective in study.objectives)
    on_front = ", ".join(str(candidate.number) for candidate in study.front())
    knee = f"--knee (trial {study.knee().number}, the largest sum of the objectives)"
    return f"Choose with --trial N (on the front: {on_front}), {knee} or --prefer {shares}"
