"""Tasks of the LM evaluation harness give the harness' own numbers, item by item, on any of our models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mergefront.adapters.huggingface import HuggingFaceModel
from mergefront.adapters.tasks import build_task, problems_of
from mergefront.demo.experts import _new_model, _tokenizer
from mergefront.demo.skills import SKILLS, item
from mergefront.optimizer.errors import UserError

lm_eval = pytest.importorskip("lm_eval")

CHOICES = """\
task: local_most
dataset_path: json
dataset_kwargs: {data_files: {test: most.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
ANSWERS = """\
task: local_reverse
dataset_path: json
dataset_kwargs: {data_files: {test: reverse.jsonl, validation: reverse_validation.jsonl}}
test_split: test
validation_split: validation
fewshot_split: validation
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: answer
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 10}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import random

    made = tmp_path_factory.mktemp("harness")
    rng = random.Random(0)
    for name, skill, count in (("most", "most", 40), ("reverse", "reverse", 30), ("reverse_validation", "reverse", 20)):
        letters = ["".join(rng.choices("abcdefgh", k=6)) for _ in range(count)]
        lines = [item(skill, f"{text}aab", rng) for text in letters] if skill in SKILLS else []
        (made / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (made / "most.yaml").write_text(CHOICES)
    (made / "reverse.yaml").write_text(ANSWERS)
    return made


@pytest.fixture(scope="module")
def model() -> Any:
    import torch

    torch.manual_seed(0)
    return _new_model().eval(), _tokenizer()


@pytest.mark.slow
def test_scores_are_the_harness_own_on_its_own_hugging_face_model(
    folder: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(folder)  # the harness reads data files from the current folder
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    theirs = simple_evaluate(
        model=HFLM(pretrained=model[0], tokenizer=model[1], batch_size=8, backend="causal"),
        tasks=["local_most"],
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
        verbosity=None,
    )
    assert theirs is not None
    by_document = {json.dumps(one["doc"], sort_keys=True): one for one in theirs["samples"]["local_most"]}
    ours = HuggingFaceModel(*model)
    for metric in ("acc", "acc_norm"):
        task = build_task("most", {"type": "lm_eval", "task": "most.yaml", "metric": metric}, folder)
        for split in ("search", "report"):
            scored = task.score(ours, task.items(split))
            expected = [
                by_document[json.dumps(task.documents[id_], sort_keys=True)][metric]
                for id_ in scored.ids  # type: ignore[attr-defined]
            ]
            assert list(scored.scores) == expected


@pytest.mark.slow
def test_search_on_validation_items_report_on_test_items(folder: Path, model: Any) -> None:
    task = build_task("reverse", {"type": "lm_eval", "task": "reverse.yaml", "num_fewshot": 2}, folder)
    assert (len(task.items("search")), len(task.items("report"))) == (20, 30)
    assert task.verb == "generate" and task.direction == "maximize"
    assert task.announcement is None, "a task of one's own is no published benchmark"  # type: ignore[attr-defined]
    everything = task.score(HuggingFaceModel(*model, max_length=128), task.items("search"))
    again = build_task("reverse", {"type": "lm_eval", "task": "reverse.yaml", "num_fewshot": 2}, folder)
    some = again.score(HuggingFaceModel(*model, max_length=128), again.items("search")[7:9])
    assert some.scores == everything.scores[7:9], "an item's examples must not depend on which others were asked"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"task": "most.yml"}, "there is no file"),
        ({"task": "most.yaml", "metric": "acc_nrm"}, "did you mean 'acc_norm'"),
        ({"task": "most.yaml", "filter": "strict"}, "has no filter 'strict'"),
        ({"task": "most.yaml", "search_items": 500}, "search_items is 500; there are 20"),
        ({"task": "local_mots", "include_path": "."}, "did you mean 'local_most'"),
        ({"task": "most.yaml", "metrics": "acc"}, "did you mean 'metric'"),
    ],
)
def test_what_is_wrong_is_named(config: dict[str, Any], said: str, folder: Path) -> None:
    problems = problems_of({"type": "lm_eval", **config}, folder)
    assert said in "\n".join(problems)


def test_a_split_of_its_own_never_shares_an_item(folder: Path) -> None:
    config = {"type": "lm_eval", "task": "most.yaml", "report_fraction": 0.25}
    task = build_task("most", config, folder, seed=3)
    search, report = ({item.id for item in task.items(split)} for split in ("search", "report"))
    assert not search & report and len(search) == 30 and len(report) == 10
    with pytest.raises(UserError, match="did you mean 'report'"):
        task.items("reports")
