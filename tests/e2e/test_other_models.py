"""Studies of models that are not causal decoders, from the study file to the exported model."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TINY_MODELS, TinyModel, move

import mergefront as mf
from mergefront.results.export import export_candidate
from mergefront.study.check import check_study

STUDY = """
study: tiny
merge:
  method: task_arithmetic
  base_model: base
  models: {{first: first, second: second}}
  space: {{weight: [0, 1]}}
backend: {{type: local, device: cpu}}
tasks: {{mine: {task}}}
objectives: [mine]
search: {{sampler: random, evaluations: 6}}
"""
NEAREST = """
import torch

PAIRS = {"Sort 3 1 2": "1 2 3", "naive": "naïve", "A, B or C?": "It is B!", "Write 425": "quatre cent"}


def nearest(model, tokenizer):
    assert type(model).__name__ == "BertModel", "the class that the base was saved as"
    def embed(text):
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)[0]
    return {
        question: torch.cosine_similarity(embed(question), embed(answer), dim=0)
        for question, answer in PAIRS.items()
    }
"""
PICTURES = """
from PIL import Image

COLOURS = {"A": (255, 0, 0), "B": (0, 255, 0), "C": (0, 0, 255), "Sort": (9, 9, 9)}


def likeness(model, processor):
    inputs = processor(
        images=[Image.new("RGB", (28, 28), colour) for colour in COLOURS.values()], text=list(COLOURS),
        padding=True, return_tensors="pt",
    )
    return dict(zip(COLOURS, model(**inputs).logits_per_image.diagonal()))
"""
EMBEDDER = TinyModel("bert", {}, "AutoModel")
ANSWERS = "{type: jsonl, path: items.jsonl, metric: exact_match, max_new_tokens: 4}"
CHOICES = "{type: jsonl, path: items.jsonl, metric: loglikelihood}"


def study_in(folder: Path, tiny: TinyModel, tokenizer: Any, task: str) -> Path:
    for seed, name in enumerate(("base", "first", "second")):
        model = tiny.make()
        if seed:
            move(model, seed, 0.3)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "nearest.py").write_text(NEAREST)
    items = [{"prompt": f"Sort {n}:", "choices": [f" {n}", " 38 4"], "answer": 0} for n in (23, 43, 83, 44)]
    if task == ANSWERS:
        items = [{"prompt": item["prompt"], "answer": "4"} for item in items]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "study.yaml").write_text(STUDY.format(task=task))
    return folder / "study.yaml"


def test_an_embedder_is_searched_by_a_function_and_exported(tokenizer: Any, tmp_path: Path) -> None:
    task = "{type: python, call: 'nearest:nearest', direction: minimize}"
    path = study_in(tmp_path, EMBEDDER, tokenizer, task)
    assert check_study(path).problems == []
    study = mf.run(path)
    assert not study.failures() and study.finished_count() == 6
    scores = {candidate.scores["mine"] for candidate in study.candidates()}
    assert len(scores) > 3, "each merge has a score of its own"
    out = export_candidate(study, study.candidates()[-1], tmp_path / "exported")
    assert json.loads((out / "config.json").read_text())["architectures"] == ["BertModel"]


def test_a_model_of_images_and_text_is_scored_with_its_processor(tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="needs Pillow")
    from transformers import CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    path = study_in(tmp_path, TINY_MODELS["clip"], tokenizer, "{type: python, call: 'pictures:likeness'}")
    (tmp_path / "pictures.py").write_text(PICTURES)
    images = CLIPImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False)
    words = deepcopy(tokenizer)
    words.pad_token = words.eos_token
    for name in ("base", "first", "second"):
        CLIPProcessor(images, words).save_pretrained(tmp_path / name)
    assert check_study(path).problems == []
    study = mf.run(path)
    assert not study.failures() and study.finished_count() == 6


@pytest.mark.parametrize("kind, task", [("mt5", ANSWERS), ("bart", CHOICES), ("mamba2", ANSWERS), ("lfm2", CHOICES)])
def test_encoder_decoders_and_recurrent_models_are_searched(
    tokenizer: Any, tmp_path: Path, kind: str, task: str
) -> None:
    study = mf.run(study_in(tmp_path, TINY_MODELS[kind], tokenizer, task))
    assert not study.failures() and study.finished_count() == 6


@pytest.mark.parametrize("kind", ["bert", "whisper"])
def test_what_continues_no_text_is_refused_before_anything_runs(tokenizer: Any, tmp_path: Path, kind: str) -> None:
    problems = check_study(study_in(tmp_path, TINY_MODELS[kind], tokenizer, CHOICES)).problems
    (said,) = problems
    assert "continues no text; score it with a task of type classify, embed or python" in said
