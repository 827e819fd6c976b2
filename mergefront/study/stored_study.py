"""A study as its user sees it: the front, the anchors, the best of each objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from mergefront import formatting
from mergefront.adapters.hub.places import ModelPlaces
from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.racing.race import RacingSettings, raced_front
from mergefront.optimizer.racing.standings import Standings
from mergefront.optimizer.recipes.anchors import BASE, anchors, expert_anchor, start_point
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.samplers.lazy import LazySampler
from mergefront.optimizer.scores import pareto
from mergefront.optimizer.scores.constraints import Constraint, feasible
from mergefront.optimizer.scores.differences import better_beyond_noise, score_interval
from mergefront.optimizer.scores.evaluation import Estimate, Evaluation
from mergefront.optimizer.scores.objectives import REFERENCE, Normaliser, Objective
from mergefront.optimizer.scores.suggestion import Objections, left_at_worst, objections
from mergefront.optimizer.search.attributes import ANCHOR, FAILURE, RECIPE, STOPPED, WARM_START
from mergefront.optimizer.search.stopping import Stop
from mergefront.storage import DEFAULT_STORAGE, studies, transfer
from mergefront.storage.database import Database
from mergefront.storage.ledger import StudyLedger
from mergefront.storage.studies import StudyRecord
from mergefront.study.continuation import root_of, stored_root
from mergefront.study.definition import EvaluatorDefinition, StudyDefinition
from mergefront.study.method_files import load_known_method_files
from mergefront.versions import versions

if TYPE_CHECKING:
    import pandas
    from optuna.samplers import BaseSampler

    from mergefront.optimizer.search.loop import SearchPlan

SPLITS = ("search", "report")
"""The items that a search optimises on, and those that it never sees."""


@dataclass(frozen=True)
class Candidate:
    """One evaluated recipe of a study; ``number`` is its trial, ``anchor`` its name if it is an anchor.

    ``digest`` tells its recipe from others, ``recipes`` has the recipe itself by its digest. ``violations`` says by
    how much it misses each constraint, at most 0 where it satisfies it.
    """

    number: int
    digest: str
    recipes: Mapping[str, Recipe] = field(repr=False, compare=False)
    evaluation: Evaluation
    scores: Mapping[str, float]
    standard_errors: Mapping[str, float]
    anchor: str | None = None
    violations: Mapping[str, float] = field(default_factory=dict)
    estimates: Mapping[str, Estimate] = field(default_factory=dict, repr=False, compare=False)
    """Of a racing study: what its objectives are on all items, by what all candidates answered."""

    @property
    def recipe(self) -> Recipe:
        """The whole recipe; read when it is asked for, since most candidates of a large study are only counted."""
        return self.recipes[self.digest]

    @property
    def feasible(self) -> bool:
        """Whether it satisfies every constraint."""
        return feasible(list(self.violations.values()))

    @property
    def params(self) -> Mapping[str, Any]:
        """Every coefficient of the recipe, searched or fixed."""
        return self.recipe.params


@dataclass(frozen=True)
class Failure:
    """A trial that could not be scored, and why."""

    number: int
    reason: str


@dataclass(frozen=True)
class Asked:
    """A trial to evaluate; ``anchor`` is its name if it is one, ``mergekit`` the recipe as mergekit reads it."""

    trial: int
    recipe: Recipe
    anchor: str | None
    mergekit: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """What an outside harness gets: coefficients, and the recipe as a mergekit configuration."""
        recipe = self.recipe
        shown = {"params": dict(recipe.params), "seed": recipe.seed, "mergekit": dict(self.mergekit)}
        return {"trial": self.trial, "anchor": self.anchor, **shown}


class Study:
    """A stored study. ``optuna`` is the ``optuna.Study`` underneath."""

    def __init__(self, database: Database, record: StudyRecord, root: Path | None = None) -> None:
        """``root`` is the folder of the study's files where that is not the one that the database knows."""
        self.database = database
        self.record = record
        self._given_root = root
        self._definition: tuple[StudyRecord, StudyDefinition] | None = None
        self._known: tuple[tuple[int, int], list[Candidate]] | None = None
        self._suggested: tuple[tuple[int, int], Candidate | None] | None = None
        self._read: tuple[int, dict[str, dict[str, Evaluation | None]]] | None = None

    @property
    def name(self) -> str:
        return self.record.name

    def refresh(self) -> Study:
        """This study with the name, budget and stop rule that the database has by now."""
        self.record = studies.reload(self.database, self.record)
        return self

    @cached_property
    def root(self) -> Path:
        """The folder from which relative paths start."""
        return root_of(self.record, self.database.url, self._given_root)

    @property
    def definition(self) -> StudyDefinition:
        """What the study was started with, which it goes on with."""
        if self._definition is None or self._definition[0] is not self.record:
            self._definition = (self.record, read_definition(self.record, self.database.url, self.root))
        return self._definition[1]

    @property
    def space(self) -> MergeSpace:
        return self.definition.space

    @property
    def places(self) -> ModelPlaces:
        """Where the study's models lie."""
        return self.definition.places

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives, in the order of Optuna's values."""
        return self.definition.objectives

    @property
    def has_one_objective(self) -> bool:
        """Whether there is a best instead of a front."""
        return len(self.objectives) == 1

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """What a candidate has to satisfy to be on the front."""
        return self.definition.constraints

    @property
    def racing(self) -> RacingSettings | None:
        """How the search races; None when every candidate answers every item."""
        return self.definition.racing

    @cached_property
    def optuna(self) -> optuna.Study:
        storage = self.database.optuna_storage
        return optuna.load_study(study_name=self.name, storage=storage, sampler=LazySampler(self._sampler))

    def _sampler(self) -> BaseSampler:
        from mergefront.optimizer.samplers.registry import make_sampler

        definition = self.definition
        return make_sampler(
            definition.sampler,
            seed=definition.seed,
            search_space=definition.space.distributions(),
            objectives=definition.objectives,
            options=definition.sampler_options,
            rule=definition.space.merge_rule,
        )

    @cached_property
    def ledger(self) -> StudyLedger:
        _ = self.definition  # recipes of merge methods of the user's own cannot be read before these are known
        return StudyLedger(self.database, self.record.study_id, versions())

    @cached_property
    def standings(self) -> Standings:
        """What its raced candidates score by all answers, as far as it was worked out."""
        return Standings()

    @property
    def plan(self) -> SearchPlan:
        """What the search loop needs to know of the study."""
        from mergefront.optimizer.search.loop import SearchPlan
        from mergefront.optimizer.search.warm_start_recipes import warm_start_recipes

        definition = self.definition
        return SearchPlan(
            definition.space,
            definition.objectives,
            tuple(anchors(definition.space)),
            self.record.evaluations,
            definition.racing,
            definition.seed,
            stop=definition.stop,
            constraints=definition.constraints,
            warm_start_recipes=(
                *(
                    start_point(definition.space, name, definition.learned[name])
                    for name in definition.anchors
                    if name in definition.learned
                ),
                *(
                    warm_start_recipes(self.optuna, definition.space)
                    if definition.warm_start or definition.compares
                    else ()
                ),
            ),
            searches=not definition.compares,
            side_tasks=tuple(definition.evaluator.tasks) if definition.compares else (),
            standings=self.standings,
        )

    def ask(self, lease: float | None = None) -> Asked | None:
        """The next trial for an outside harness, or None when the budget is spent or handed out.

        Recipes that were evaluated before are told by themselves. A trial that was not told within ``lease`` (seconds;
        a day where none is given) is handed out again.
        """
        from mergefront.optimizer.search import ask_tell
        from mergefront.study.evaluators import mergekit_config, written_dtype

        lease = ask_tell.DEFAULT_LEASE if lease is None else lease
        if not lease > 0:
            raise UserError(f"lease is {lease:g}; it must be a number of seconds above 0")
        ledger = StudyLedger(self.database, self.record.study_id, versions(), lease)
        found = ask_tell.ask(self.plan, self.optuna, ledger)
        if found is None:
            return None
        try:
            config = mergekit_config(self.definition, found.recipe, written_dtype(self.definition, found.recipe))
        except BaseException:
            ledger.release(found.claim)
            raise
        return Asked(found.number, found.recipe, found.anchor, config)

    def tell(
        self,
        trial: int,
        scores: Mapping[str, float] | None = None,
        *,
        standard_errors: Mapping[str, float] | None = None,
        items: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """The scores of an asked trial, one per objective and per further number that a constraint bounds.

        ``items`` has the scores of an objective's items by their ids; then its score and standard error are those of
        their mean, and merges are compared item by item. Telling the same scores again changes nothing; raises
        ``UserError`` for other scores than those told before, an unknown trial or objective, and a score that is
        missing or not finite.
        """
        from mergefront.optimizer.search import ask_tell

        plan = self.plan
        evaluation = ask_tell.told_evaluation(plan, scores or {}, standard_errors or {}, items or {})
        ask_tell.tell(plan, self.optuna, self.ledger, trial, evaluation)

    def tell_failed(self, trial: int, reason: str) -> None:
        """An asked trial could not be scored; telling so again changes nothing."""
        from mergefront.optimizer.search import ask_tell

        ask_tell.tell_failed(self.plan, self.optuna, self.ledger, trial, reason)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in these states, or all of them, by number; not to be changed."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    def _evaluation_count(self) -> int:
        return self.ledger.evaluation_count()

    def candidates(self) -> list[Candidate]:
        """Every evaluated candidate by trial number, anchors included, each recipe once.

        The scores of a racing study are estimated from what all its candidates answered, anew as more is known;
        the trials keep what was told when they finished.
        """
        trials = self.trials(TrialState.COMPLETE)
        # Both only grow while a study lives, so that equal counts mean equal contents.
        counted = (len(trials), self._evaluation_count())
        if self._known is None or self._known[0] != counted:
            self._known = (counted, self._candidates_of(trials))
        return list(self._known[1])

    def _candidates_of(self, trials: Sequence[FrozenTrial]) -> list[Candidate]:
        evaluations = self.ledger.evaluations()
        recipes = self.ledger.recipes()
        estimates: dict[str, dict[str, Estimate]] = {}
        if self.racing is not None:
            answered = self.standings.read_from(self.ledger)
            estimates = dict(zip(answered, self.standings.of(self.objectives, list(answered.values())), strict=True))
        made = []
        seen = set()
        for trial in trials:
            digest = trial.user_attrs.get(RECIPE)
            if digest is None or digest not in evaluations or (digest in seen and ANCHOR not in trial.user_attrs):
                continue
            seen.add(digest)
            evaluation = evaluations[digest]
            scores = dict(zip((objective.name for objective in self.objectives), trial.values, strict=True))
            errors = evaluation.standard_errors
            estimated = estimates.get(digest, {})
            if estimated:
                scores = {name: one.mean for name, one in estimated.items()}
                errors = {name: one.standard_error for name, one in estimated.items()}
            anchor = trial.user_attrs.get(ANCHOR)
            violations = dict(zip(map(str, self.constraints), trial.constraints.values(), strict=True))
            known = (trial.number, digest, recipes, evaluation, scores, errors, anchor, violations)
            made.append(Candidate(*known, estimated))
        return made

    def anchors(self) -> list[Candidate]:
        """The anchors evaluated so far."""
        return [candidate for candidate in self.candidates() if candidate.anchor is not None]

    def failures(self) -> list[Failure]:
        """The failed trials with their reasons."""
        return [
            Failure(trial.number, str(trial.user_attrs.get(FAILURE, "no reason was kept")))
            for trial in self.trials(TrialState.FAIL)
        ]

    def normaliser(self) -> Normaliser:
        """The unit system of this study, from its anchors."""
        return Normaliser.from_anchors(self.objectives, [self._row(anchor) for anchor in self.anchors()])

    def normalised(self, candidates: list[Candidate] | None = None) -> list[list[float]]:
        """The candidates' scores in the common unit (larger is better, 0 worst anchor, 1 best anchor)."""
        normaliser = self.normaliser()
        every = self.candidates() if candidates is None else candidates
        return [normaliser.normalise(self._row(candidate)) for candidate in every]

    def front(self) -> list[Candidate]:
        """The candidates that satisfy the constraints and that no other such dominates, by trial number.

        In a racing study scores are estimates: a candidate stays unless another one probably dominates it.
        """
        candidates = self._feasible(self.candidates())
        if not candidates:
            return []
        keep: Sequence[bool]
        if self.racing is None:
            signs = [objective.sign for objective in self.objectives]
            keep = pareto.nondominated(np.multiply([self._row(candidate) for candidate in candidates], signs)).tolist()
        else:
            keep = raced_front(self.objectives, [candidate.estimates for candidate in candidates])
        front: dict[str, Candidate] = {}
        for candidate, kept in zip(candidates, keep, strict=True):
            if kept:
                front.setdefault(candidate.digest, candidate)
        return list(front.values())

    def distinct_front(self, epsilon: float | None = None) -> list[Candidate]:
        """The front without members that are no real alternative to another one that stays, by trial number.

        A member stays when it is better than every other that stays in at least one objective: by more than
        ``epsilon`` in normalised units, or, without ``epsilon``, beyond noise (paired by item where items are kept;
        p < 0.05). Balanced members are preferred to stay. Raises ``UserError`` for an epsilon below 0.
        """
        if epsilon is not None and not 0 <= epsilon < float("inf"):
            raise UserError(
                f"epsilon is {epsilon}; it must be a number of at least 0, in normalised units such as 0.02"
            )
        front = self.front()
        if not front:
            return []
        rows = np.asarray(self.normalised(front))
        better: Sequence[Sequence[bool]]
        if epsilon is None:
            kept_items = self.ledger.evaluations(items={candidate.digest for candidate in front})
            better = better_beyond_noise(self.objectives, [kept_items[candidate.digest] for candidate in front])
        else:
            better = pareto.epsilon_better(rows, epsilon).tolist()
        kept = pareto.distinct(better, np.argsort(-rows.sum(axis=1), kind="stable").tolist())
        return [candidate for candidate, stays in zip(front, kept, strict=True) if stays]

    def best(self, objective: str | None = None) -> Candidate:
        """The candidate that is best in one objective among those that satisfy the constraints.

        A study of one objective needs no name. Raises ``UserError`` when there is none.
        """
        if objective is None:
            if len(self.objectives) > 1:
                several = ", ".join(known.name for known in self.objectives)
                raise UserError(f"study {self.name!r} has several objectives; give best() one of {several}")
            objective = self.objectives[0].name
        sign = next((known.sign for known in self.objectives if known.name == objective), None)
        if sign is None:
            names = [known.name for known in self.objectives]
            raise UserError(f"study {self.name!r} has no objective {objective!r} {did_you_mean(objective, names)}")
        return max(self._some_candidates(), key=lambda candidate: sign * candidate.scores[objective])

    def history(self, *, merges_only: bool = False) -> list[Candidate]:
        """Of a study of one objective: each candidate (or merge) that was better than all before it."""
        (objective,) = self.objectives
        found: list[Candidate] = []
        for candidate in self._feasible(self.candidates()):
            score = objective.sign * candidate.scores[objective.name]
            if merges_only and candidate.anchor is not None:
                continue
            if not found or score > objective.sign * found[-1].scores[objective.name]:
                found.append(candidate)
        return found

    def interval(self, candidate: Candidate, objective: Objective) -> tuple[float, float] | None:
        """The 95 % confidence interval of a score on the search items; None for a number without noise."""
        return score_interval(objective, self.evaluations_on("search", [candidate])[candidate.number])

    def own_evaluations(self) -> list[Evaluation]:
        """Those of the search's own candidates; the ledger may know others, such as a comparison's."""
        return list({candidate.digest: candidate.evaluation for candidate in self.candidates()}.values())

    def evaluations_on(self, split: str, candidates: Iterable[Candidate]) -> dict[int, Evaluation]:
        """The evaluations of those of ``candidates`` that were scored on a split, by trial number, with their items."""
        rows: dict[int, Evaluation] = {}
        wanted = list(candidates)
        found_by_digest = self._found(split, [one.digest for one in wanted])
        for candidate in wanted:
            found = found_by_digest[candidate.digest]
            if found is not None and split == "search":
                # While items are left, a candidate's scores are an estimate that gets better after it was told.
                found = replace(found, scores=candidate.scores, standard_errors=candidate.standard_errors)
            if found is not None:
                rows[candidate.number] = found
        return rows

    def _found(self, split: str, digests: Sequence[str]) -> Mapping[str, Evaluation | None]:
        """The evaluations of recipes on a split; what is asked for again is read once while nothing new is there."""
        counted = self._evaluation_count()
        if self._read is None or self._read[0] != counted:
            self._read = (counted, {name: {} for name in SPLITS})
        known = self._read[1][split]
        missing = [digest for digest in digests if digest not in known]
        known |= dict.fromkeys(missing) | self.ledger.find_all(missing, split)
        return known

    def merges(self) -> list[Candidate]:
        """The front without the base and without experts alone."""
        unmerged = {BASE, *(expert_anchor(name) for name in self.space.models)}
        return [candidate for candidate in self.front() if candidate.anchor not in unmerged]

    def suggested(self) -> Candidate | None:
        """The merge to take where nobody says which; None where nothing is fit to be.

        Of the merges on the front that no anchor beats and that lose to the base in no objective beyond noise, on the
        search items and on the report items as far as those were scored, it has the best worst objective (normalised).
        """
        merges = self.merges()
        assert self._known is not None
        if self._suggested is None or self._suggested[0] != self._known[0]:
            rows = self.normalised(merges)
            order = sorted(range(len(merges)), key=lambda index: (-min(rows[index]), -sum(rows[index])))
            against = self.objections(merges[index] for index in order)
            fit = next((candidate for candidate, found in against if not found), None)
            self._suggested = (self._known[0], fit)
        return self._suggested[1]

    def objections(self, candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, Objections]]:
        """Each of ``candidates`` with what keeps it from being suggested."""
        anchors = self.anchors()
        # Who violates a constraint is no alternative to a merge that satisfies it.
        names = {anchor.number: str(anchor.anchor) for anchor in anchors if anchor.feasible}
        base = next((anchor.number for anchor in anchors if anchor.anchor == BASE), None)
        of_anchors = {split: self.evaluations_on(split, anchors) for split in SPLITS}
        for candidate in candidates:
            found = Objections()
            for split, rows in of_anchors.items():
                if not rows:
                    continue
                for member in self.evaluations_on(split, [candidate]).values():
                    rivals = {name: rows[number] for number, name in names.items() if number in rows}
                    found |= objections(self.objectives, member, rivals, rows.get(base) if base is not None else None)
            yield candidate, found

    def left_at_worst(self, candidate: Candidate) -> list[str]:
        """The objectives in which a candidate is not better than the worst anchor beyond noise, though another is."""
        for split in reversed(SPLITS):
            for member in self.evaluations_on(split, [candidate]).values():
                return left_at_worst(self.objectives, member, list(self.evaluations_on(split, self.anchors()).values()))
        return []

    def knee(self) -> Candidate:
        """The front's knee: the largest sum of the objectives, each scaled to the front's range.

        It may leave an objective at its worst. Raises ``UserError`` when the front is empty.
        """
        return self._picked(pareto.knee)

    def preferred(self, weights: Mapping[str, float]) -> Candidate:
        """The front member that a user with these weights (objective -> importance) picks."""
        shares = self._shares(weights, "preferences")
        return self._picked(lambda rows: pareto.preferred(rows, shares))

    def along(self, direction: Mapping[str, float]) -> Candidate:
        """The front member that lies farthest along a direction (objective -> how much of it is wanted).

        From the front's worst values upwards, each objective scaled to the front's range: ``{"maths": 2, "french": 1}``
        wants gains of 2 to 1.
        """
        shares = self._shares(direction, "direction")
        return self._picked(lambda rows: pareto.along(rows, shares))

    def _picked(self, choose: Callable[[list[list[float]]], int]) -> Candidate:
        """The front member that ``choose`` picks by its normalised scores; raises ``UserError`` for an empty front."""
        self._some_candidates()
        front = self.front()
        return front[choose(self.normalised(front))]

    def _shares(self, given: Mapping[str, float], what: str) -> list[float]:
        """One number per objective from what a user gave for some of them."""
        names = [objective.name for objective in self.objectives]
        for name, share in given.items():
            if name not in names:
                raise UserError(f"study {self.name!r} has no objective {name!r} {did_you_mean(name, names)}")
            if not 0 <= share < float("inf"):
                raise UserError(f"{what}: {name}={share} must be a number of at least 0")
        if not any(given.values()):
            raise UserError(f"{what}: give at least one objective a number above 0, such as {names[0]}=0.7")
        return [given.get(name, 0.0) for name in names]

    def hypervolume(self, candidates: list[Candidate] | None = None) -> float:
        """Hypervolume of the candidates (all of them by default) that satisfy the constraints, in the normalised
        units, above the fixed reference point. Above six objectives it is estimated (``measured_hypervolume``)."""
        return self.measured_hypervolume(candidates).value

    def measured_hypervolume(self, candidates: list[Candidate] | None = None) -> pareto.Hypervolume:
        """The hypervolume with its standard error, 0 where it is exact."""
        rows = self.normalised(self._feasible(self.candidates() if candidates is None else candidates))
        return pareto.measured_hypervolume(rows, [REFERENCE] * len(self.objectives)) if rows else pareto.Hypervolume()

    def hypervolume_json(self, candidates: list[Candidate] | None = None) -> dict[str, float]:
        """The hypervolume as commands print it; with "hypervolume_error" where it is estimated."""
        found = self.measured_hypervolume(candidates)
        error = {"hypervolume_error": found.standard_error} if found.standard_error else {}
        return {"hypervolume": found.value, **error}

    def to_json(self) -> dict[str, Any]:
        """What ``mergefront front NAME --json`` prints; "constraints" and "infeasible" where there are constraints.

        A study of one objective has "best" and "history" instead of "front" and "hypervolume".
        """
        failures = self.failures()
        every = self.candidates()
        suggested = self.suggested()
        content = {
            "study": self.name,
            "objectives": [{"name": objective.name, "direction": objective.direction} for objective in self.objectives],
            **(self._best_json() if self.has_one_objective else self._front_json()),
            "anchors": [
                {"name": candidate.anchor, "trial": candidate.number, "scores": rounded(candidate.scores)}
                for candidate in every
                if candidate.anchor is not None
            ],
            "suggested": None if suggested is None else suggested.number,
            "evaluations": self.finished_count(),
            "failed": len(failures),
        }
        if self.constraints:
            content["constraints"] = [str(constraint) for constraint in self.constraints]
            content["infeasible"] = [
                {"trial": candidate.number, "violations": dict(candidate.violations)}
                for candidate in every
                if not candidate.feasible
            ]
        return content

    def _front_json(self) -> dict[str, Any]:
        members = [
            {"trial": candidate.number, "scores": rounded(candidate.scores), "params": dict(candidate.params)}
            for candidate in self.front()
        ]
        return {**self.hypervolume_json(), "front": members}

    def _best_json(self) -> dict[str, Any]:
        (objective,) = self.objectives
        history = self.history()
        best = history[-1] if history else None
        return {
            "best": best
            and {
                "trial": best.number,
                "anchor": best.anchor,
                "scores": rounded(best.scores),
                "interval": self.interval(best, objective),
                "params": dict(best.params),
            },
            "history": [{"trial": one.number, "scores": rounded(one.scores)} for one in history],
        }

    def to_frame(self) -> pandas.DataFrame:
        """The trials as a pandas ``DataFrame`` by their numbers.

        Columns: state ("complete", "fail", "running"), anchor, on_front, reason (of a failure), method, the recipe's
        coefficients by their names, ``score[maths]`` and ``standard_error[maths]`` of each objective. A racing study's
        scores are its present estimates. Raises ``UserError`` where pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("to_frame needs pandas; install it with: pip install pandas") from None
        known = {candidate.digest: candidate for candidate in self.candidates()}
        on_front = {candidate.digest for candidate in self.front()}
        names = [objective.name for objective in self.objectives]
        rows: dict[int, dict[str, Any]] = {}
        for trial in self.trials():
            digest = trial.user_attrs.get(RECIPE)
            found = known.get(str(digest)) if trial.state == TrialState.COMPLETE else None
            rows[trial.number] = {
                "state": trial.state.name.lower(),
                "anchor": trial.user_attrs.get(ANCHOR),
                "on_front": found is not None and digest in on_front,
                "reason": trial.user_attrs.get(FAILURE),
                "method": None if found is None else found.recipe.method,
                **(trial.params if found is None else found.params),
                **{f"score[{name}]": math.nan if found is None else found.scores[name] for name in names},
                **{
                    f"standard_error[{name}]": math.nan if found is None else found.standard_errors.get(name, math.nan)
                    for name in names
                },
            }
        return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("trial")

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        from mergefront.notebook import Row, study_html

        candidates, suggested = self.candidates(), self.suggested()
        front = {one.number for one in ([self.best()] if self.has_one_objective and candidates else self.front())}
        facts = [f"{self.finished_count()} of {self.record.evaluations} evaluations"]
        if not self.has_one_objective:
            measured = formatting.hypervolume(self.measured_hypervolume(candidates))
            facts += [f"{len(front)} on the front", f"hypervolume {measured}"]
        rows = [
            Row(
                one.number,
                one.anchor,
                tuple(float(one.scores[objective.name]) for objective in self.objectives),
                tuple(one.standard_errors.get(objective.name) for objective in self.objectives),
                one.number in front,
                suggested is not None and one.number == suggested.number,
            )
            for one in candidates
        ]
        return study_html(f"Study {self.name}: {', '.join(facts)}", self.objectives, rows)

    @property
    def stopped(self) -> Stop | None:
        """Why the last run ended; None while it is under way, or when it was interrupted or failed."""
        found = self.optuna.user_attrs.get(STOPPED)
        return None if found is None else Stop(found["cause"], found["reason"])

    def finished_count(self) -> int:
        """How many trials of the budget are spent: scored or failed."""
        finished = self.trials(TrialState.COMPLETE, TrialState.FAIL)
        return sum(1 for trial in finished if WARM_START not in trial.user_attrs)

    def _row(self, candidate: Candidate) -> list[float]:
        return [candidate.scores[objective.name] for objective in self.objectives]

    def _some_candidates(self) -> list[Candidate]:
        candidates = self.candidates()
        if not candidates:
            raise UserError(f"study {self.name!r} has no finished evaluation yet; run or resume it first")
        allowed = self._feasible(candidates)
        if not allowed:
            nearest = self.nearest_to_feasible()
            missed = formatting.nothing_feasible(nearest.number, nearest.violations)
            remedy = "Evaluate more, or begin a study with looser constraints"
            raise UserError(f"study {self.name!r}: {missed} {remedy}")
        return allowed

    def nearest_to_feasible(self) -> Candidate:
        """The candidate whose largest violation, in units of the constraints' median violation, is the smallest."""
        candidates = self.candidates()
        scales = {
            str(constraint): median(abs(candidate.violations[str(constraint)]) for candidate in candidates) or 1.0
            for constraint in self.constraints
        }
        return min(candidates, key=lambda c: max((by / scales[name] for name, by in c.violations.items()), default=0.0))

    @staticmethod
    def _feasible(candidates: list[Candidate]) -> list[Candidate]:
        return [candidate for candidate in candidates if candidate.feasible]

    def snapshot(self) -> Snapshot:
        """This study as it is now."""
        return Snapshot(self.database, self.record, self._given_root)

    def copy(self, target: Database, new_name: str | None = None) -> Study:
        """Copy the study within its database or to another one; raises ``UserError`` when the name is taken."""
        asks_a_server = EvaluatorDefinition.from_json(self.record.definition["evaluator"]).type == "server"
        root = stored_root(self.root, target.url)
        record = transfer.copy(self.database, self.name, target, new_name, root=root, with_responses=asks_a_server)
        return Study(target, record)

    def __repr__(self) -> str:
        return f"Study({self.name!r}, {self.database.url})"


class Snapshot(Study):
    """A study as it is when it is first read: what is said of it is of one moment, and its trials are read once."""

    @cached_property
    def _trials(self) -> list[FrozenTrial]:
        return super().trials()

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return [trial for trial in self._trials if not states or trial.state in states]

    @cached_property
    def _evaluations(self) -> int:
        return super()._evaluation_count()

    def _evaluation_count(self) -> int:
        return self._evaluations


def rounded(scores: Mapping[str, float]) -> dict[str, float]:
    """Without the dust that estimates leave of a 0, such as -1.3e-19; adding 0.0 makes a 0 of -0."""
    return {name: round(float(score), 12) + 0.0 for name, score in scores.items()}


def as_study(study: str | Study, *, storage: str = DEFAULT_STORAGE, root: str | Path | None = None) -> Study:
    """A study that is loaded already, or the one of this name; see ``load_study``."""
    return study if isinstance(study, Study) else load_study(study, storage=storage, root=root)


def load_study(name: str, *, storage: str = DEFAULT_STORAGE, root: str | Path | None = None) -> Study:
    """The stored study of this name; raises ``UserError`` when there is none.

    ``root`` is the folder of its files where that is not the one that the database knows.
    """
    database = Database(storage, create=False)
    return Study(database, studies.load(database, name), None if root is None else Path(root))


def read_definition(record: StudyRecord, storage: str, root: Path) -> StudyDefinition:
    """The typed definition of a stored study; loads the merge methods of the user's own that it names."""
    stored = record.definition
    load_known_method_files(stored.get("method_files", {}), root)
    return StudyDefinition.from_json(
        stored, name=record.name, storage=storage, root=root, evaluations=record.evaluations
    )


def continued(definition: StudyDefinition, record: StudyRecord) -> StudyDefinition:
    """The stored definition that ``definition`` goes on with, in its own folder and where it says to run."""
    stored = read_definition(record, definition.storage, definition.root)
    return replace(stored, runtime=definition.runtime, stop=definition.stop, allow=definition.allow)
