"""The demo's models are real and worth merging: each expert is best at its own skill, and items are kept apart."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from mergefront.demo import write_demo
from mergefront.demo.skills import SKILLS, VOCABULARY, draw, item
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import EvaluationRequest


@pytest.mark.parametrize("skill", SKILLS)
def test_items_ask_for_what_the_skill_does(skill: str) -> None:
    rng = random.Random(0)
    for _ in range(50):
        letters = draw(skill, rng)
        made = item(skill, letters, rng)
        assert made["prompt"] == f"{skill} {letters}:"
        if skill == "most":
            counts = {choice: letters.count(choice) for choice in made["choices"]}
            right = made["choices"][made["answer"]]
            assert len(counts) == 4
            assert all(counts[right] > count for choice, count in counts.items() if choice != right)
        else:
            assert made["answer"] == SKILLS[skill](letters)


def test_no_model_is_trained_on_the_items() -> None:
    from mergefront.demo.experts import _batch

    class StartingWithA:
        def __contains__(self, letters: object) -> bool:
            return str(letters).startswith("a")

    rng = random.Random(0)
    for skill in SKILLS:
        tokens, _ = _batch({skill: 1.0}, StartingWithA(), rng)
        firsts = {VOCABULARY[token] for token in tokens[:, 2].tolist()}
        assert "a" not in firsts and len(firsts) > 5


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    said: list[str] = []
    made = write_demo(tmp_path_factory.mktemp("demo"), progress=said.append)
    assert len(said) == 5
    return made


@pytest.mark.long
def test_the_demo_is_an_ordinary_study_with_models_that_transformers_reads(study_file: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    study = yaml.safe_load(study_file.read_text())
    folder = study_file.parent
    for path in (study["merge"]["base_model"], *study["merge"]["models"].values()):
        model = AutoModelForCausalLM.from_pretrained(folder / path)
        tokenizer = AutoTokenizer.from_pretrained(folder / path)
        assert model.config.vocab_size == len(tokenizer)
        text = "sort gacfbdaa: aaabcdfg\n"
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(tokenizer.encode(text)) == len(text) - len("sort") + 1


@pytest.mark.long
def test_search_and_report_items_are_all_different(study_file: Path) -> None:
    for skill in SKILLS:
        lines = [
            json.loads(line)["prompt"]
            for name in (f"{skill}.jsonl", f"{skill}_report.jsonl")
            for line in (study_file.parent / "data" / name).read_text().splitlines()
        ]
        assert len(lines) == len(set(lines)) >= 300


@pytest.mark.long
def test_each_expert_is_clearly_best_at_its_own_skill(study_file: Path) -> None:
    from mergefront.adapters.evaluator import TaskEvaluator
    from mergefront.adapters.local.backend import LocalBackend
    from mergefront.adapters.tasks.task_types import build_task

    study = yaml.safe_load(study_file.read_text())
    folder = study_file.parent
    tasks = [build_task(name, config, folder, study["seed"]) for name, config in study["tasks"].items()]
    models = {name: folder / path for name, path in study["merge"]["models"].items()}
    backend = LocalBackend.from_checkpoints(folder / study["merge"]["base_model"], models, device="cpu")
    evaluator = TaskEvaluator(backend, tasks)

    def scores(**weights: float) -> dict[str, float]:
        params = {f"weight[{name}]": weights.get(name, 0.0) for name in models}
        recipe = Recipe("task_arithmetic", dict.fromkeys(models, "-"), params, "base")
        return dict(evaluator.evaluate(recipe, EvaluationRequest(tuple(SKILLS), "report")).scores)

    alone = {expert: scores(**{expert: 1.0}) for expert in SKILLS}
    base = scores()
    for skill in SKILLS:
        others = [base, *(alone[other] for other in SKILLS if other != skill)]
        assert alone[skill][skill] > 0.95
        assert all(other[skill] < alone[skill][skill] - 0.03 for other in others)


@pytest.mark.long
def test_a_demo_that_is_there_is_not_made_again(study_file: Path) -> None:
    weights = study_file.parent / "models" / "base" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert write_demo(study_file.parent) == study_file
    assert weights.stat().st_mtime_ns == before
