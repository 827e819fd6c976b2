"""Exact match by reading against exact match by writing:

    python -m benchmarks.evaluation.reading STUDY.yaml [--candidates 6] [--items 100]

Candidates of the study (its first anchors, then random ones) are scored both ways, in turn, on the search items of its
tasks of metric exact_match. Scores have to be equal, item by item. Prints processor seconds of both, their ratio, the
tokens of answers that each took, and the share of items that had to be written to their end although they are wrong, or
are right by other tokens than those of an accepted answer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import optuna

from mergefront.adapters.counted_model import CountedModel
from mergefront.adapters.language_model import (
    Generation,
    GenerationRequest,
    LanguageModel,
    LogLikelihood,
    ScoringRequest,
)
from mergefront.optimizer.recipes.anchors import anchors
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.study.check import check_study
from mergefront.study.definition import StudyDefinition
from mergefront.study.evaluators import local_backend, tasks_of


def candidates(definition: StudyDefinition, count: int) -> list[Recipe]:
    """The first anchors of a study, then points of its space by chance."""
    space, sampled = definition.space, optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [anchor.recipe for anchor in anchors(space)][: count // 2]
    while len(found) < count:
        trial = sampled.ask({name: searched.distribution() for name, searched in space.searched.items()})
        found.append(space.recipe(trial.params))
    return found


class Noted:
    """A model whose answers are kept."""

    heeds_wanted = True

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.answers: list[Generation] = []

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        return self.model.loglikelihood(requests)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        self.answers = self.model.generate(requests)
        return self.answers


def main() -> None:
    parser = argparse.ArgumentParser(description="Exact match by reading against exact match by writing.")
    parser.add_argument("study", type=Path)
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--items", type=int, default=100)
    given = parser.parse_args()
    definition = check_study(given.study).definition_or_raise()
    backend, tasks = local_backend(definition), tasks_of(definition)
    seconds, tokens, asked, differ, right, written = [0.0, 0.0], [0, 0], 0, 0, 0.0, 0
    for number, recipe in enumerate(candidates(definition, given.candidates)):
        with backend.apply(recipe) as model:
            for task in tasks:
                items = task.items("search")[: given.items]
                scores = []
                for way in (number % 2, 1 - number % 2):
                    noted = Noted(model)
                    counted = CountedModel(noted, writes_all=way == 1)
                    begun = time.process_time()
                    scores.append(task.score(counted, items).scores)
                    seconds[way] += time.process_time() - begun
                    tokens[way] += counted.generated_tokens
                    if way == 0:
                        written += sum(
                            said.finish != "settled"
                            if not score
                            else said.margins is None or bool(said.margins.shortfall)
                            for said, score in zip(noted.answers, scores[-1], strict=True)
                        )
                if number % 2:
                    scores.reverse()
                asked += len(items)
                right += sum(scores[0])
                differ += sum(one != other for one, other in zip(*scores, strict=True))
        print(
            f"{number + 1} candidates: {seconds[0]:.1f} s by reading, {seconds[1]:.1f} s by writing "
            f"({seconds[1] / seconds[0]:.1f} times), {tokens[0]} tokens instead of {tokens[1]}, "
            f"{100 * right / asked:.0f} % right, {100 * written / asked:.1f} % written to their end, "
            f"{differ} of {asked} scores differ",
            flush=True,
        )


if __name__ == "__main__":
    main()
