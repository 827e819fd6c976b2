"""Pictures in a study, from its file to the exported model: what is seen is scored, and the export sees alike."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_llava import CHAT, make_llava
from tiny_models import move

import mergefront as mf
from mergefront.adapters.language_model import GenerationRequest
from mergefront.adapters.local.asked import asked_model
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.results.export import export_candidate
from mergefront.results.export_check import check_export
from mergefront.study.check import check_study
from mergefront.study.evaluators import tasks_of

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
QUESTION = "What is two plus two?"


def study_in(folder: Path, answers: list[str], **merge: Any) -> Path:
    """A study of four pictures, by what is written about them and how likely an answer is."""
    for task, key in (("writing", "answer"), ("liking", "answer")):
        items = [
            {"prompt": QUESTION, "image": f"{number}.png", key: answer if task == "writing" else " four"}
            for number, answer in enumerate(answers)
        ]
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    content = {
        "study": "pictures",
        "merge": {
            "method": "task_arithmetic", "base_model": "base", "models": {"one": "one", "two": "two"},
            "space": {"weight": [0, 1]}, **merge,
        },
        "backend": {"type": "local", "device": "cpu"},
        "tasks": {
            "writing": {"type": "jsonl", "path": "writing.jsonl", "metric": "exact_match", "max_new_tokens": 4},
            "liking": {"type": "jsonl", "path": "liking.jsonl", "metric": "loss"},
        },
        "objectives": ["writing", "liking"],
        "search": {"sampler": "random", "evaluations": 7},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return folder / "study.yaml"


@pytest.fixture
def written(tokenizer: Any, tmp_path: Path) -> tuple[list[str], Any]:
    """What the expert ``one`` writes about four pictures; folders of LLaVAs ``base``, ``one`` and ``two``."""
    answers = []
    for number in range(4):
        pixels = torch.randint(256, (16, 16, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{number}.png")
    model, processor = make_llava(tokenizer, CHAT)
    for seed, name in enumerate(("base", "one", "two")):
        move(model, seed, 0.1 * seed)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        if name == "one":
            requests = [GenerationRequest(QUESTION, 4, ("\n",), str(tmp_path / f"{n}.png")) for n in range(4)]
            answers = [one.text for one in asked_model(model, processor).generate(requests)]
    return answers, model


def assert_seen_as_scored(path: Path) -> mf.Study:
    """Run, export the last merge, and score it again from its folder alone: every item has the score it had."""
    assert check_study(path).problems == []
    study = mf.run(path)
    assert not study.failures() and study.finished_count() == 7
    chosen = study.candidates()[-1]
    out = export_candidate(study, chosen, path.parent / "out")
    assert "tensors equal the merge that was scored" in check_export(study, chosen, out)
    backend = mf.LocalBackend.from_checkpoints(out, {"same": out}, device="cpu")
    known = study.ledger.find(chosen.recipe)
    assert known is not None
    with backend.apply(Recipe("task_arithmetic", {"same": ""}, {"weight[same]": 0.0}, "base")) as model:
        for task in tasks_of(study.definition):
            again = task.score(model, task.items("search"))
            assert known.items[task.name].scores == pytest.approx(again.scores, abs=1e-5)
    return study


def test_pictures_are_scored_exported_and_seen_again(written: tuple[list[str], Any], tmp_path: Path) -> None:
    answers, _ = written
    study = assert_seen_as_scored(study_in(tmp_path, answers))
    one = next(anchor for anchor in study.anchors() if anchor.anchor == "expert one")
    assert one.scores["writing"] == 1.0, "it is asked as it was asked here"
    assert len({candidate.scores["liking"] for candidate in study.candidates()}) == 7


def test_a_base_that_never_saw_a_picture_is_merged_with_an_experts_eyes(
    written: tuple[list[str], Any], tokenizer: Any, tmp_path: Path
) -> None:
    """A language model, an expert in it, and one that sees: its pictures' token comes with its eyes."""
    import shutil

    import transformers

    answers, model = written
    for name in ("base", "two"):
        shutil.rmtree(tmp_path / name)
        move(model, 7 if name == "two" else 8, 0.1)
        text = transformers.LlamaForCausalLM(deepcopy(model.config.text_config))
        text.load_state_dict(
            {key.replace("language_model.", ""): tensor for key, tensor in model.state_dict().items()
             if "language_model" in key or "lm_head" in key}
        )  # fmt: skip
        text.resize_token_embeddings(len(tokenizer))
        text.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    scoped = {"scope": "language", "carry": {"vision": "one"}}
    problems = check_study(study_in(tmp_path, answers, **scoped)).problems
    assert len(problems) == 1 and "another tokenizer than the base: '<image>'" in problems[0]
    assert_seen_as_scored(study_in(tmp_path, answers, **scoped, tokenizer_source="union"))
    (problem,) = check_study(study_in(tmp_path, answers, **scoped, tokenizer_source="base")).problems
    assert (
        "merge.carry: vision: its token '<image>' (image_token_index 160)" in problem
        and "none of the merge's tokenizer" in problem
    )
