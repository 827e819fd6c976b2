"""Racing: the hopeless stop early, the promising get every item, the search never pays more than its share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

import mergefront as mf
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.racing.race import ItemRace, RacingSettings, raced_front
from mergefront.optimizer.racing.standings import Standings
from mergefront.optimizer.recipes.anchors import anchors
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import RACED, Estimate, Evaluation, EvaluationRequest, ItemScores
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.attributes import RECIPE, STANDARD_ERRORS
from mergefront.optimizer.search.restated_trials import restated

NAMES = ("maths", "french")
OBJECTIVES = tuple(Objective(name) for name in NAMES)
ITEMS = 400
IDS = tuple(f"q{number}" for number in range(ITEMS))


def answers(ability: float, task: str, salt: int) -> tuple[float, ...]:
    """Right or wrong on each item: difficulties are the task's, chance is the candidate's own."""
    difficulty = np.random.default_rng(len(task)).random(ITEMS)
    noise = np.random.default_rng([salt, len(task)]).normal(0, 0.1, ITEMS)
    return tuple((ability + noise > difficulty).astype(float).tolist())


def race_after(settings: RacingSettings, finished: tuple[Evaluation, ...]) -> ItemRace:
    """The race of a candidate after these, of which the first four are anchors."""
    return ItemRace(settings, 0, OBJECTIVES, finished, (0, 1, 2, 3))


def run(race: ItemRace, abilities: Mapping[str, float], salt: int) -> Evaluation:
    """One candidate through a race, as an evaluator runs it."""
    truth = {name: answers(ability, name, salt) for name, ability in abilities.items()}
    racing = race.start(dict.fromkeys(NAMES, IDS), {})
    while (batch := racing.batch()) is not None:
        for name, indices in batch.items():
            scored = ItemScores(tuple(IDS[i] for i in indices), tuple(truth[name][i] for i in indices))
            racing.tell(name, indices, scored)
    result = racing.result()
    return Evaluation(
        {name: one.mean for name, one in result.estimates.items()},
        {name: one.standard_error for name, one in result.estimates.items()},
        result.items,
        details=result.details,
    )


@pytest.fixture(scope="module")
def field() -> tuple[RacingSettings, tuple[Evaluation, ...]]:
    settings = RacingSettings(items=0.25)
    known = [(0.3, 0.3), (0.8, 0.4), (0.4, 0.8), (0.7, 0.7)]
    made = [
        run(ItemRace(settings, 0, OBJECTIVES, is_anchor=True), dict(zip(NAMES, ability, strict=True)), salt)
        for salt, ability in enumerate(known)
    ]
    return settings, tuple(made)


def test_a_hopeless_candidate_costs_a_fraction_of_the_anchors_items(field: Any) -> None:
    settings, known = field
    hopeless = run(race_after(settings, known), {"maths": 0.2, "french": 0.2}, 9)
    assert hopeless.details[RACED]["stopped"] == "dominated"
    assert len(hopeless.items["maths"].ids) < settings.share(ITEMS)
    assert hopeless.standard_errors["maths"] > known[0].standard_errors["maths"]
    assert hopeless.scores["maths"] == pytest.approx(0.2, abs=4 * hopeless.standard_errors["maths"])


def test_a_winner_gets_all_items_once_early_stops_have_paid_for_them(field: Any) -> None:
    settings, known = field
    losers = tuple(run(race_after(settings, known), {"maths": 0.2, "french": 0.2}, salt) for salt in range(20, 40))
    winner = run(race_after(settings, (*known, *losers)), {"maths": 0.9, "french": 0.9}, 9)
    assert winner.details[RACED]["stopped"] == "all items"
    truth = answers(0.9, "maths", 9)
    assert winner.scores["maths"] == pytest.approx(np.mean(truth))
    alone = run(race_after(settings, known), {"maths": 0.9, "french": 0.9}, 9)
    assert alone.details[RACED]["stopped"] == "budget of items"


@pytest.mark.long
def test_a_candidate_as_good_as_a_rival_is_hardly_ever_dropped_as_dominated(field: Any) -> None:
    """The stated confidence: at most 5 in 100 may be dropped that are not worse."""
    known = field[1]
    settings = RacingSettings(items=0.25, confidence=0.95)
    dropped = sum(
        run(race_after(settings, known), {"maths": 0.7, "french": 0.7}, salt).details[RACED]["stopped"] == "dominated"
        for salt in range(100, 300)
    )
    assert dropped <= 10


def test_a_candidate_answers_a_quarter_and_a_half_of_its_share_then_twice_as_many_each_time() -> None:
    assert RacingSettings(items=0.25).rounds(400) == [25, 50, 100, 200, 400]
    assert RacingSettings(items=0.2).rounds(1000) == [50, 100, 200, 400, 800, 1000]
    assert RacingSettings(items=0.25).rounds(40) == [4, 8, 16, 32, 40]
    assert RacingSettings(items=0.2).rounds(60) == [4, 8, 16, 32, 60]


def test_of_too_few_items_to_race_every_candidate_answers_all() -> None:
    assert RacingSettings(items=0.2).rounds(31) == [31, 31, 31] and RacingSettings(items=0.2).share(31) == 31
    assert RacingSettings(items=0.2).rounds(32) == [4, 8, 16, 32]
    race = ItemRace(RacingSettings(), 0, OBJECTIVES).start({"maths": IDS[:31], "french": IDS}, {})
    batch = race.batch()
    assert batch is not None and sorted(batch["maths"]) == list(range(31)) and len(batch["french"]) == 20


def test_of_few_items_candidates_answer_others_than_their_rivals() -> None:
    """All candidates answered the same 16 of 60 items, and the search optimised on the luck of these."""
    known: list[Evaluation] = []
    for salt in range(24):
        ability = {"maths": 0.5 + 0.01 * salt, "french": 0.5 - 0.01 * salt}
        truth = {name: answers(one, name, salt) for name, one in ability.items()}
        race = ItemRace(RacingSettings(), 0, OBJECTIVES, tuple(known), tuple(range(min(salt, 4))), salt < 4)
        racing = race.start(dict.fromkeys(NAMES, IDS[:60]), {})
        while (batch := racing.batch()) is not None:
            for name, indices in batch.items():
                scored = ItemScores(tuple(IDS[i] for i in indices), tuple(truth[name][i] for i in indices))
                racing.tell(name, indices, scored)
        result = racing.result()
        scores = {name: one.mean for name, one in result.estimates.items()}
        known.append(Evaluation(scores, {}, result.items, details=result.details))
    asked = [set(one.items["maths"].ids) for one in known]
    assert set.union(*asked) == set(IDS[:60])
    assert len(set.intersection(*asked[4:])) == 4
    assert sum(map(len, asked)) <= 16 * len(asked)


@pytest.mark.parametrize(("size", "dropped"), [(1.0, False), (3.0, True), (5.0, True)])
def test_who_is_smaller_is_not_dropped_however_little_it_knows(field: Any, size: float, dropped: bool) -> None:
    """An objective that no item decides is known exactly: the sparsest merge is on the front whatever it answers."""
    settings, known = field
    objectives = (Objective("maths"), Objective("delta_l1", "minimize"))
    rival = Evaluation({**known[3].scores, "delta_l1": 3.0}, {}, known[3].items)
    racing = ItemRace(settings, 0, objectives, (rival,)).start({"maths": IDS}, {"delta_l1": size})
    batch = racing.batch()
    assert batch is not None
    asked = batch["maths"]
    racing.tell("maths", asked, ItemScores(tuple(IDS[index] for index in asked), (0.0,) * len(asked)))
    assert (racing.batch() is None) == dropped


def test_who_is_not_on_the_front_by_the_estimates_costs_its_share_and_no_more(field: Any) -> None:
    """The items that early stops saved are for the front; a candidate behind it would eat them up."""
    settings, known = field
    losers = tuple(run(race_after(settings, known), {"maths": 0.2, "french": 0.2}, salt) for salt in range(20, 40))
    behind = run(race_after(settings, (*known, *losers)), {"maths": 0.62, "french": 0.62}, 12)
    assert behind.details[RACED]["stopped"] == "not on the front"
    assert behind.details[RACED]["asked"] == dict.fromkeys(NAMES, settings.share(ITEMS))


def test_who_answered_everything_is_on_the_front_or_is_not() -> None:
    """What other items there might be is open for all candidates alike, and tells none from another."""
    behind, ahead = ({name: Estimate(mean, 0.1, 0.0) for name in NAMES} for mean in (0.50, 0.51))
    assert raced_front(OBJECTIVES, [behind, ahead]) == [False, True]
    unsure = {name: Estimate(0.50, 0.1, 0.1) for name in NAMES}
    assert raced_front(OBJECTIVES, [unsure, ahead]) == [True, True]


def asked_in_turn(race: ItemRace, abilities: Mapping[str, float], salt: int) -> list[list[int]]:
    """The items of the first task that a race asks for, batch after batch."""
    truth = {name: answers(ability, name, salt) for name, ability in abilities.items()}
    racing, batches = race.start(dict.fromkeys(NAMES, IDS), {}), []
    while (batch := racing.batch()) is not None:
        batches.append(batch[NAMES[0]])
        for name, indices in batch.items():
            scored = ItemScores(tuple(IDS[i] for i in indices), tuple(truth[name][i] for i in indices))
            racing.tell(name, indices, scored)
    return batches


def test_every_candidate_is_asked_in_the_same_order(field: Any) -> None:
    settings, known = field
    race = race_after(settings, known)
    short = asked_in_turn(race, {"maths": 0.2, "french": 0.2}, 9)
    longer = asked_in_turn(race, {"maths": 0.72, "french": 0.72}, 10)
    assert len(short) < len(longer) and longer[: len(short)] == short


def test_a_later_candidate_answers_the_same_core_first_and_then_what_was_asked_least(field: Any) -> None:
    settings, known = field
    earlier = run(race_after(settings, known), {"maths": 0.72, "french": 0.72}, 10)
    first = asked_in_turn(race_after(settings, known), {"maths": 0.72, "french": 0.72}, 10)
    later = asked_in_turn(race_after(settings, (*known, earlier)), {"maths": 0.72, "french": 0.72}, 11)
    assert later[0] == first[0]
    answered = [set(one.items["maths"].ids) for one in (*known, earlier)]

    def times(index: int) -> int:
        return sum(IDS[index] in ids for ids in answered)

    rest = set(range(ITEMS)) - {index for batch in later for index in batch}
    assert np.mean([times(index) for index in later[1]]) < np.mean([times(index) for index in first[1]])
    assert max(times(index) for index in later[1]) <= max(times(index) for index in rest)


def test_between_two_that_answered_every_item_no_doubt_is_left() -> None:
    """The task's items are all there are: half of them leave a half of the variance that a sample has."""
    ids, rng = IDS[:40], np.random.default_rng(0)
    theirs, ours = rng.normal(0.0, 1.0, 40), rng.normal(0.2, 1.0, 40)
    rival = Evaluation({"maths": 0.0}, items={"maths": ItemScores(ids, tuple(theirs.tolist()))})
    race = ItemRace(RacingSettings(), 0, OBJECTIVES[:1], finished=(rival,))
    task = race.start({"maths": ids}, {}).fields["maths"]
    assert task.compared(ours, theirs).standard_error == 0.0
    half = task.compared(ours[:20], theirs[:20])
    assert half.standard_error == pytest.approx(np.std((ours - theirs)[:20], ddof=1) / np.sqrt(20) * np.sqrt(0.5))


@pytest.mark.parametrize(("common", "dropped"), [(1, False), (2, True)])
def test_two_items_in_common_are_the_fewest_that_tell_candidates_apart(common: int, dropped: bool) -> None:
    ids = IDS[:64]
    settings, exact = RacingSettings(items=1.0, confidence=0.5), {"size": 3.0}
    objectives = (Objective("maths"), Objective("size", "minimize"))
    race = ItemRace(settings, 0, objectives)
    asked = (race.start({"maths": ids}, exact).batch() or {})["maths"]
    rival = Evaluation(
        {"maths": 1.0, "size": 1.0}, items={"maths": ItemScores(tuple(ids[i] for i in asked[:common]), (1.0,) * common)}
    )
    racing = ItemRace(settings, 0, objectives, finished=(rival,)).start({"maths": ids}, exact)
    batch = (racing.batch() or {})["maths"]
    assert set(asked[:common]) <= set(batch)
    racing.tell("maths", batch, ItemScores(tuple(ids[i] for i in batch), tuple(0.1 * (i % 3) for i in batch)))
    assert (racing.batch() is None) is dropped


@pytest.mark.long
def test_the_stated_confidence_is_that_of_one_comparison() -> None:
    """A bolder test would drop good candidates more often than stated; a shyer one would ask far more items.

    The worst case: over all items the candidate equals its rival in one task, and in the other it is hopeless. With 64
    items the first decision falls after 16 of them, a quarter of a finite population.
    """
    settings, count, trials = RacingSettings(items=1.0, confidence=0.8), 64, 4000
    ids = IDS[:count]
    rng = np.random.default_rng(5)
    rival_scores = {name: rng.normal(0.0, 1.0, count) for name in NAMES}
    rival = Evaluation(
        dict.fromkeys(NAMES, 0.0),
        items={name: ItemScores(ids, tuple(scores.tolist())) for name, scores in rival_scores.items()},
    )
    dropped = 0
    for trial in range(trials):
        luck = rng.normal(0.0, 1.0, count)
        own = {"maths": rival_scores["maths"] + luck - luck.mean(), "french": rival_scores["french"] - 10.0 + luck}
        racing = ItemRace(settings, trial, OBJECTIVES, finished=(rival,)).start(dict.fromkeys(NAMES, ids), {})
        batch = racing.batch()
        assert batch is not None and {len(indices) for indices in batch.values()} == {16}
        for name, indices in batch.items():
            scored = ItemScores(tuple(ids[i] for i in indices), tuple(float(own[name][i]) for i in indices))
            racing.tell(name, indices, scored)
        dropped += racing.batch() is None
    # Two-sided p-values would make it 0.1, errors of an infinite population 0.13.
    assert dropped / trials == pytest.approx(0.2, abs=0.02)


def abilities(recipe: Recipe) -> dict[str, float]:
    weights = [float(recipe.params[f"weight[{name}]"]) for name in NAMES]
    return {
        "maths": 0.3 + 0.6 * weights[0] - 0.3 * weights[1] ** 2,
        "french": 0.3 + 0.6 * weights[1] - 0.3 * weights[0] ** 2,
    }


def salt(recipe: Recipe) -> int:
    return int(recipe.digest[:6], 16)


class ItemEvaluator:
    """Two weights, two tasks whose items are right or wrong: what ``TaskEvaluator`` does, without a model."""

    def __init__(self, stop: Callable[[int], None] = lambda count: None) -> None:
        self.asked: list[tuple[str, int]] = []
        self.stop = stop

    def evaluate(self, recipe: Recipe, request: EvaluationRequest) -> Evaluation:
        self.stop(len(self.asked))
        assert request.race is not None
        evaluation = run(request.race, abilities(recipe), salt(recipe))
        paid = sum(len(items.ids) for items in evaluation.items.values())
        self.asked.append((recipe.digest, paid))
        return Evaluation(
            evaluation.scores,
            evaluation.standard_errors,
            evaluation.items,
            cost={"items": float(paid)},
            details=evaluation.details,
        )


def search(folder: Path, evaluator: ItemEvaluator, sampler: str = "random") -> mf.Study:
    space = MergeSpace(NAMES, method="task_arithmetic", parameters={"weight": [0, 1]})
    return mf.search(
        space=space,
        evaluate=evaluator,
        objectives=list(NAMES),
        evaluations=14,
        sampler=sampler,
        racing={"items": 0.25},
        storage=f"sqlite:///{folder}/study.db",
        name="race",
    )


def test_a_search_pays_no_more_than_its_share_and_says_what_it_paid(tmp_path: Path) -> None:
    study = search(tmp_path, ItemEvaluator())
    paid = sum(candidate.evaluation.cost["items"] for candidate in study.candidates())
    assert paid <= 0.25 * 14 * 2 * ITEMS
    assert all(sum(one.evaluation.details[RACED]["asked"].values()) <= 2 * ITEMS for one in study.candidates())
    assert len(anchors(study.space)) == sum(
        one.evaluation.details[RACED]["stopped"] == "anchor" for one in study.anchors()
    ) - sum(one.anchor == "metric-weighted average" for one in study.anchors())


def test_a_study_estimates_its_candidates_anew_from_what_all_of_them_answered(tmp_path: Path) -> None:
    """What was told when a trial finished is known better once others have answered the other items."""
    study = search(tmp_path, ItemEvaluator())
    now, told, plain = [], [], []
    for candidate in study.candidates():
        for name, ability in abilities(candidate.recipe).items():
            truth = np.mean(answers(ability, name, salt(candidate.recipe)))
            evaluation = study.ledger.evaluations(items=True)[candidate.recipe.digest]
            now.append(candidate.scores[name] - truth)
            told.append(evaluation.scores[name] - truth)
            plain.append(evaluation.items[name].mean - truth)
    assert np.std(now) < np.std(told) < np.std(plain)


def test_the_front_of_a_race_leaves_out_who_is_probably_dominated(tmp_path: Path) -> None:
    study = search(tmp_path, ItemEvaluator())
    front = {candidate.number for candidate in study.front()}
    best = {candidate.number for name in NAMES for candidate in [study.best(name)]}
    base = next(candidate for candidate in study.anchors() if candidate.anchor == "base")
    assert best <= front and base.number not in front


@pytest.mark.long
def test_an_interrupted_race_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = ItemEvaluator()
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    search(tmp_path / "whole", whole)

    def interrupt(count: int) -> None:
        if count == 9:
            raise KeyboardInterrupt

    first, second = ItemEvaluator(interrupt), ItemEvaluator()
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "broken", first)
    search(tmp_path / "broken", second)
    assert first.asked + second.asked == whole.asked


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"items": 0}, "racing: items is 0"),
        ({"items": True}, "must be a number"),
        ({"confidence": 1.0}, r"racing: confidence is 1.0"),
        ({"confidance": 0.9}, "did you mean 'confidence'"),
        ("yes", "write true"),
    ],
)
def test_wrong_settings_say_what_would_be_right(given: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        RacingSettings.read(given)


def test_the_sampler_sees_what_is_known_by_now_and_the_trials_keep_what_they_were_told(tmp_path: Path) -> None:
    """Proposals would be made from estimates that later answers have shown to be wrong."""
    study = search(tmp_path, ItemEvaluator())
    seen = restated(study.optuna, study.objectives, study.ledger.evaluations(items=True), Standings())
    shown = {trial.number: trial for trial in seen.get_trials(deepcopy=False)}
    open_errors: list[float] = []
    told_errors: list[float] = []
    for candidate in study.candidates():
        told = study.optuna.get_trials()[candidate.number]
        assert shown[candidate.number].values == [candidate.scores[name] for name in NAMES]
        assert told.values == [candidate.evaluation.scores[name] for name in NAMES]
        open_errors += shown[candidate.number].user_attrs[STANDARD_ERRORS]
        told_errors += told.user_attrs[STANDARD_ERRORS]
    assert min(open_errors) >= 0 and np.mean(open_errors) < 0.8 * np.mean(told_errors)
    assert any(shown[trial.number].values != trial.values for trial in study.optuna.get_trials())


SAMPLERS: dict[str, dict[str, Any]] = {
    "mm-mo": {"n_startup": 0},
    "map": {"n_startup": 2},
    "evo-merging": {"population": 4},
    "nsga2": {"population_size": 4},
    "tpe": {"n_startup_trials": 4},
}
"""Samplers whose proposals depend on scores, with a start so short that they soon do."""


class ToldAlike:
    """Tells every study the same scores; its items bear them out, or, ``turned``, show each task the other's."""

    def __init__(self, turned: bool) -> None:
        self.turned = turned

    def evaluate(self, recipe: Recipe, request: EvaluationRequest) -> Evaluation:
        told = abilities(recipe)
        shown = dict(zip(NAMES, reversed(told.values()), strict=True)) if self.turned else told
        items = {name: ItemScores(IDS[:60], answers(shown[name], name, salt(recipe))[:60]) for name in NAMES}
        details = {RACED: {"asked": dict.fromkeys(NAMES, 60), "of": dict.fromkeys(NAMES, 120), "stopped": "anchor"}}
        return Evaluation(told, dict.fromkeys(NAMES, 0.05), items, details=details)


@pytest.mark.cases(2)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_proposes_from_the_restated_trials(tmp_path: Path, sampler: str) -> None:
    """Two searches are told the same; only what the items say of it by now can make their proposals differ."""

    def proposals(turned: bool, racing: bool) -> list[dict[str, Any]]:
        study = mf.search(
            space=MergeSpace(NAMES, method="task_arithmetic", parameters={"weight": [0, 1]}),
            evaluate=ToldAlike(turned),
            objectives=list(NAMES),
            evaluations=12,
            sampler=sampler,
            sampler_options=SAMPLERS[sampler],
            racing=racing,
            storage=f"sqlite:///{tmp_path}/{turned}{racing}.db",
            name="race",
        )
        return [trial.params for trial in study.optuna.get_trials(deepcopy=False)]

    assert proposals(turned=False, racing=True) != proposals(turned=True, racing=True)
    if sampler == "tpe":  # the quickest
        assert proposals(turned=False, racing=False) == proposals(turned=True, racing=False), "told the same after all"


def test_what_no_item_decides_stays_as_it_was_told() -> None:
    """A latency measured with noise would be taken for exact as soon as a study races."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trial(
        optuna.trial.create_trial(
            values=[0.5, 3.0], user_attrs={RECIPE: "one", STANDARD_ERRORS: [0.1, 0.2]}, params={}, distributions={}
        )
    )
    answered = ItemScores(("a", "b", "c", "d"), (1.0, 0.0, 1.0, 1.0))
    evaluation = Evaluation(
        {"maths": 0.5, "latency": 3.0}, {"maths": 0.1, "latency": 0.2}, {"maths": answered},
        details={RACED: {"of": {"maths": 8}}},
    )  # fmt: skip
    objectives = (Objective("maths"), Objective("latency", "minimize"))
    (shown,) = restated(study, objectives, {"one": evaluation}, Standings()).get_trials(deepcopy=False)
    assert shown.values == [0.75, 3.0]
    assert shown.user_attrs[STANDARD_ERRORS][1] == 0.2 and shown.user_attrs[STANDARD_ERRORS][0] > 0
