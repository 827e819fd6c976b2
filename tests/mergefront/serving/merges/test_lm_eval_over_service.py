"""Tasks of the LM evaluation harness over a served merge score item by item as over local weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("lm_eval")

from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import GenerationRequest
from mergefront.adapters.local.backend import LocalBackend
from mergefront.adapters.remote.backend_types import make_backend, read_settings
from mergefront.adapters.tasks.task_types import build_task
from mergefront.optimizer.recipes.space import MergeSpace

SPACE = MergeSpace({"whole": "whole", "lora": "lora"}, method="task_arithmetic", parameters={"weight": [-1, 1]})
RECIPES = [SPACE.recipe({"weight[whole]": whole, "weight[lora]": lora}) for whole, lora in ((0.7, 0.4), (-0.9, -1.0))]
PROMPTS = [f"{verb} {what}:" for verb in ("Sort", "Write", "Question") for what in ("A", "B", "23", "two", "the merge")]
CHOICES = """\
task: local_choices
dataset_path: json
dataset_kwargs: {data_files: {test: choices.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc_norm, aggregation: mean, higher_is_better: true}]
"""
ANSWERS = """\
task: local_answers
dataset_path: json
dataset_kwargs: {data_files: {test: answers.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: answer
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.long
def test_item_scores_over_a_merge_service_are_those_of_local_weights(
    pool_folder: Path, pool_file: Callable[..., Path], start: Callable[..., Any], tmp_path: Path
) -> None:
    """A search by API would find other merges than one with the weights at hand, by tasks that should be the same."""
    local = LocalBackend.from_checkpoints(
        pool_folder / "base", {"whole": pool_folder / "whole", "lora": pool_folder / "lora"}, device="cpu"
    )
    with local.apply(RECIPES[0]) as model:
        written = model.generate([GenerationRequest(prompt, 5, ("\n",)) for prompt in PROMPTS])
    # Every third answer is wrong for the first merge, so that scores of both kinds are compared.
    right = [said.text if number % 3 else "never said" for number, said in enumerate(written)]
    write(tmp_path / "answers.jsonl", [{"prompt": p, "answer": a} for p, a in zip(PROMPTS, right, strict=True)])
    choices = ["A", "B!", "two", "23", "four", "Sort", "what both"]
    write(
        tmp_path / "choices.jsonl",
        [{"prompt": prompt, "choices": choices, "answer": number % 7} for number, prompt in enumerate(PROMPTS)],
    )
    (tmp_path / "answers.yaml").write_text(ANSWERS)
    (tmp_path / "choices.yaml").write_text(CHOICES)
    settings = {"type": "merge_service", "url": start(pool_file()).url, "pool": "tiny"}
    remote = make_backend(read_settings(settings), SPACE, ModelPlaces(tmp_path))
    for name in ("answers", "choices"):
        task = build_task(name, {"type": "lm_eval", "task": f"{name}.yaml", "report_fraction": 0.2}, tmp_path)
        found = []
        for recipe in RECIPES:
            with local.apply(recipe) as here, remote.apply(recipe) as there:
                expected = task.score(here, task.items("search"))
                assert task.score(there, task.items("search")) == expected
            found.append(expected.scores)
        assert len(found[0]) == 12 and set(found[0]) == {0.0, 1.0}, f"{name}: too little is told apart"
        assert found[0] != found[1], f"{name}: both merges score alike, so that the wrong merge would pass"
    remote.close()
